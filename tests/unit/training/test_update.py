"""One policy update is the objective's gradient and nothing else, whatever is left out to save time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import LlamaConfig, PreTrainedModel

from aipo.core.advantages import Advantage
from aipo.core.batch import Row, TokenBatch, collate, weighted_rows
from aipo.core.feedback import CoefficientSettings
from aipo.core.objective import ObjectiveSettings, objective_loss
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Source
from aipo.training import update
from aipo.training.log_probs import token_log_probs
from aipo.training.update import Updater, UpdateSettings
from support.engines import random_model
from support.updates import EVEN_ROWS, OBJECTIVE, double_model, gradient_of

CONFIG = LlamaConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
)
FLOORED = ObjectiveSettings(coefficient=CoefficientSettings(kind="floored"))
MASKED = ObjectiveSettings(coefficient=CoefficientSettings(kind="masked"))
ADVANTAGES = [
    Advantage(1.0, 0.5),
    Advantage(0.0, 0.0),
    Advantage(-0.5, 0.0),
    Advantage(0.0, 1.0),
    Advantage(0.0, 0.0),
]
NOTHING = [Advantage(0.0, 0.0)] * 3


def rows_of(advantages: Sequence[Advantage], objective: ObjectiveSettings) -> list[Row]:
    rng = Random(0)
    streams = []
    for i in range(len(advantages)):
        ids = [tuple(rng.randrange(3, 50) for _ in range(n)) for n in (1 + 4 * (i % 2), 3 + i, 2)]
        sampled = Segment(Source.POLICY, ids[1], tuple(-3.0 - rng.random() for _ in ids[1]))
        streams.append(
            TokenStream((Segment(Source.PROMPT, ids[0]), sampled, Segment(Source.FEEDBACK, ids[2])))
        )
    return weighted_rows(streams, list(advantages), "token_mean", feedback_trained=objective.feedback_trained)


def updated(
    rows: Sequence[Row], objective: ObjectiveSettings, by_source: bool = False, truncation: float = 0.0
) -> tuple[PreTrainedModel, dict[str, float]]:
    """Take one step of plain gradient descent with rate 1, so that the change of a weight is its gradient."""
    model = random_model(CONFIG)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    settings = UpdateSettings(
        temperature=1.0, microbatch_tokens=24, max_grad_norm=1e6, pad_id=0, mismatch_truncation=truncation
    )
    updater = Updater(Accelerator(cpu=True), model, optimiser, settings)
    return model, updater.apply([rows], objective, by_source)


def gradient(
    rows: Sequence[Row], objective: ObjectiveSettings, source: Source | None = None
) -> dict[str, torch.Tensor]:
    """The gradient of the whole batch at once, by its definition; of one source's tokens if asked."""
    model = random_model(CONFIG)
    batch = collate(rows, 0)
    if source is not None:
        batch = replace(batch, weight=batch.weight * (batch.sources == source))
    log_p, _ = token_log_probs(model, batch.ids, 1.0)
    objective_loss(log_p, batch, objective).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("objective", [FLOORED, MASKED], ids=["floored", "masked"])
def test_a_step_is_the_gradient_of_the_whole_mini_batch(objective: ObjectiveSettings) -> None:
    rows = rows_of(ADVANTAGES, objective)
    before = {n: p.detach().clone() for n, p in random_model(CONFIG).named_parameters()}
    after, _ = updated(
        [Row(stream=r.stream, advantage=r.advantage, weight=r.weight) for r in rows], objective
    )
    expected = gradient(rows, objective)
    for name, parameter in after.named_parameters():
        torch.testing.assert_close(before[name] - parameter, expected[name], atol=1e-6, rtol=1e-4)


def test_rows_that_teach_nothing_are_never_backpropagated_and_yet_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learnt: list[int] = []

    def watched(
        model: torch.nn.Module, ids: torch.Tensor, temperature: float, first: int, *more: Any
    ) -> tuple[torch.Tensor, ...]:
        learnt.extend([len(ids)] if torch.is_grad_enabled() else [])
        return token_log_probs(model, ids, temperature, first, *more)

    monkeypatch.setattr(update, "token_log_probs", watched)
    _, metrics = updated(rows_of(ADVANTAGES, FLOORED), FLOORED)
    assert sum(learnt) == 3
    assert metrics["policy_tokens"] == 3 + 4 + 5 + 6 + 7 and metrics["feedback_tokens"] == 10
    learnt.clear()
    updated(rows_of(ADVANTAGES, MASKED), MASKED)
    assert sum(learnt) == 2  # masked: an advantage on FEEDBACK alone teaches nothing


def test_a_mini_batch_that_teaches_nothing_changes_nothing_and_has_its_metrics() -> None:
    before = {n: p.detach().clone() for n, p in random_model(CONFIG).named_parameters()}
    after, metrics = updated(rows_of(NOTHING, FLOORED), FLOORED)
    assert all(torch.equal(before[n], p) for n, p in after.named_parameters())
    assert metrics["grad_norm"] == 0.0 and metrics["policy_tokens"] == 12 and metrics["entropy"] > 0


def test_a_sampler_that_is_not_the_trainer_is_corrected_for_up_to_the_truncation() -> None:
    """By hand: ratios to the trainer's own log p, so 1 at first, and each token's weight p/p_sampler."""
    rows = rows_of(ADVANTAGES, MASKED)
    before = {n: p.detach().clone() for n, p in random_model(CONFIG).named_parameters()}
    model = random_model(CONFIG)
    batch = collate(rows, 0)
    log_p, _ = token_log_probs(model, batch.ids, 1.0)
    weights = torch.exp(log_p.detach() - batch.log_p_old).clamp(max=1.5) * batch.weight * batch.policy_mask
    assert len(weights[batch.policy_mask].unique()) > 3  # some truncated, most not
    (log_p * weights * batch.policy_advantage).sum().neg().backward()
    after, metrics = updated(rows, MASKED, truncation=1.5)
    for name, parameter in after.named_parameters():
        grad = dict(model.named_parameters())[name].grad
        assert grad is not None
        torch.testing.assert_close(before[name] - parameter, grad, atol=1e-6, rtol=1e-4)
    assert metrics["first_ratio_error"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["mismatch_mean"] > 0.1  # what the correction is for is recorded all the same


def test_gradient_norms_by_source_are_those_of_their_tokens_and_leave_the_step_alone() -> None:
    rows = rows_of(ADVANTAGES, FLOORED)
    plain, _ = updated(rows, FLOORED)
    measured, metrics = updated(rows, FLOORED, by_source=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), measured.parameters(), strict=True))
    for source in (Source.POLICY, Source.FEEDBACK):
        norm = torch.cat([g.flatten() for g in gradient(rows, FLOORED, source).values()]).norm()
        assert metrics[f"grad_norm_{source.name.lower()}"] == pytest.approx(float(norm), rel=1e-4)
    assert "grad_norm_policy" not in updated(rows, FLOORED)[1]


@dataclass(frozen=True)
class KlToSampler:
    """A term that knows no advantage: -beta k3, an estimator of the KL divergence, on POLICY tokens."""

    beta: float
    only_advantages: bool = False
    sources: Sequence[Source] = (Source.POLICY,)

    def teaches(self, advantage: Advantage) -> bool:
        return not self.only_advantages or advantage.policy != 0

    def value(self, log_p: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        delta = batch.log_p_old - log_p
        return -self.beta * (delta.exp() - 1 - delta)


def by_hand(rows: Sequence[Row], beta: float) -> dict[str, torch.Tensor]:
    """The gradient of the base objective plus the mean k3 over all POLICY tokens, each row by itself."""
    model, total = random_model(CONFIG), torch.zeros(())
    for row in rows:
        log_p, _ = token_log_probs(model, torch.tensor([row.stream.ids]), 1.0)
        for t, source in enumerate(row.stream.sources):
            if source is Source.POLICY:
                delta = row.stream.log_probs[t] - log_p[0, t]
                total = total + row.weight * beta * (torch.exp(delta) - 1 - delta)
    total.backward()
    base = gradient(rows, FLOORED)
    return {n: base[n] + p.grad for n, p in model.named_parameters() if p.grad is not None}


def largest_error(after: PreTrainedModel, wanted: dict[str, torch.Tensor]) -> float:
    before = dict(random_model(CONFIG).named_parameters())
    steps = {name: before[name].detach() - p.detach() for name, p in after.named_parameters()}
    return max(float((steps[name] - wanted[name]).abs().max()) for name in wanted)


@pytest.mark.parametrize("advantages", [ADVANTAGES, NOTHING], ids=["some teach", "none teaches"])
def test_a_further_term_has_its_gradient_on_rows_without_an_advantage(
    advantages: Sequence[Advantage],
) -> None:
    rows, beta = rows_of(advantages, FLOORED), 2.0
    wanted = by_hand(rows, beta)
    after, _ = updated(rows, replace(FLOORED, further=(KlToSampler(beta),)))
    assert largest_error(after, wanted) < 1e-6
    if advantages is ADVANTAGES:  # what skipping A = 0 would have cost
        skipping, _ = updated(rows, replace(FLOORED, further=(KlToSampler(beta, only_advantages=True),)))
        assert largest_error(skipping, wanted) > 1e-2


@pytest.mark.parametrize(("parts", "rows_in_each"), [(1, 8), (2, 4), (8, 1)])
def test_how_a_mini_batch_is_cut_changes_no_gradient(
    monkeypatch: pytest.MonkeyPatch, parts: int, rows_in_each: int
) -> None:
    learnt: list[int] = []

    def watched(
        model: torch.nn.Module, ids: torch.Tensor, temperature: float, first: int = 1, *more: Any
    ) -> tuple[torch.Tensor, ...]:
        learnt.extend([len(ids)] if torch.is_grad_enabled() else [])
        return token_log_probs(model, ids, temperature, first, *more)

    monkeypatch.setattr(update, "token_log_probs", watched)
    model = double_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    settings = UpdateSettings(
        temperature=1.0,
        microbatch_tokens=rows_in_each * len(EVEN_ROWS[0].stream),
        max_grad_norm=1e6,
        pad_id=0,
    )
    Updater(Accelerator(cpu=True), model, optimiser, settings).apply([EVEN_ROWS], OBJECTIVE)
    assert learnt == [rows_in_each] * parts
    for old, new, expected in zip(before, model.parameters(), gradient_of(EVEN_ROWS), strict=True):
        torch.testing.assert_close(old - new.detach(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("given", [(1, 2), ()], ids=["tags", "none"])
def test_rows_without_requests_are_learnt_in_the_policy_from_which_those_tags_are_taken(
    given: tuple[int, ...],
) -> None:
    """The gradient is that of a model whose logits of the tags are as good as -inf; of other rows as ever."""
    rows = [replace(row, without_requests=i % 2 == 0) for i, row in enumerate(rows_of(ADVANTAGES, FLOORED))]
    model = random_model(CONFIG)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    batch = collate(rows, 0)
    logits = model(batch.ids).logits[:, :-1].float()
    taken = torch.zeros_like(logits)
    for i, row in enumerate(rows):
        taken[i, :, list(given)] = -1e9 if row.without_requests else 0.0
    log_p = torch.log_softmax(logits + taken, -1).gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    objective_loss(torch.nn.functional.pad(log_p, (1, 0)), batch, FLOORED).backward()
    optimiser = torch.optim.SGD((after := random_model(CONFIG)).parameters(), lr=1.0)
    settings = UpdateSettings(
        temperature=1.0, microbatch_tokens=24, max_grad_norm=1e6, pad_id=0, request_ids=(1, 2)
    )
    Updater(Accelerator(cpu=True), after, optimiser, settings).apply([rows], FLOORED)
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    error = max(
        float((before[n] - p.detach() - expected[n]).norm() / expected[n].norm())
        for n, p in after.named_parameters()
    )
    assert error < 1e-4 if given else error > 1e-3
