"""The same groups for our own trainer and for the plugin on verl: numbers, and both ways to a loss.

Needs tensordict and verl where `plugin` or `data_of` is called.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from aipo.config.settings import AlgorithmSettings, RolloutSettings, Settings, TrainSettings
from aipo.core.batch import Row, collate, corrected
from aipo.core.objective import ObjectiveSettings, objective_loss
from aipo.core.tokens import Segment, TokenStream, expert_stream
from aipo.core.types import Condition, ConsultOutcome, Source, StopReason, Verdict
from aipo.grading import Grade
from aipo.integrations.verl.credit import RowCredit, rows_by_minibatch, taught_by
from aipo.integrations.verl.loss import AipoLoss
from aipo.rollout.episode import Consultation, Rollout
from aipo.rollout.group import Group, MemberRollout
from aipo.tasks.base import Problem
from aipo.training.algorithm import objective_settings
from aipo.training.batch import minibatches
from aipo.training.credit import REWARDS, Credit
from aipo.training.credit import credits_of as own_credits_of

HORIZON = 32
WON, LOST, UNGRADED = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNGRADED
PATH: list[str | int] = [0, "rollout", 1]
Result = list[tuple[Tensor, dict[str, Tensor]]]
"""Loss and gradient by stream of each optimiser step."""


@dataclass(frozen=True)
class Numbers:
    """Log-probabilities of a stream's response tokens."""

    new: Tensor
    """By the weights that are being updated."""
    old: Tensor
    """By the weights before the update, as verl recomputes them."""
    reference: Tensor


@dataclass(frozen=True)
class Batch:
    """Groups of rollouts, and the numbers of every stream that comes of them, by name."""

    seed: int
    groups: list[Group]
    made: dict[str, Numbers] = field(default_factory=dict)

    def of(self, name: str, stream: TokenStream) -> Numbers:
        """Return the numbers of a stream; sampler and trainer differ a little."""
        if name not in self.made:
            rng = Random(f"{self.seed} {name}")

            def near(values: Tensor, by: float) -> Tensor:
                moved = [rng.uniform(-by, by) for _ in values]
                return values + torch.tensor(moved, dtype=torch.float64)

            log_probs = torch.tensor(stream.log_probs[stream.prompt_length :], dtype=torch.float64)
            old = near(torch.where(log_probs == 0, -1.5, log_probs), 0.05)
            self.made[name] = Numbers(near(old, 0.6), old, near(old, 0.3))
        return self.made[name]


def batch_of(
    seed: int, feedback: bool = True, verdicts: tuple[Verdict, ...] = (WON, LOST), experts: int = 0
) -> Batch:
    """Four groups of four, lengths and sources at random, and experts."""
    rng, groups = Random(seed), []
    for number in range(4):
        members = []
        for index in range(4):
            condition = Condition.CONSULTING if index < 2 else Condition.SOLO
            produced = _rollout(rng, feedback and condition is Condition.CONSULTING)
            grade = Grade(rng.choice(verdicts), "")
            members.append(
                MemberRollout(id=f"{number}#{index}", condition=condition, rollout=produced, grade=grade)
            )
        solo = (8,) * rng.randint(1, 4)
        solutions = [expert_stream(solo, (9,) * rng.randint(1, 5)) for _ in range(experts)]
        problem = Problem(id=str(number), text="?", gold="!")
        groups.append(
            Group(problem=problem, members=tuple(members), experts=tuple(solutions), solo_prompt_ids=solo)
        )
    return Batch(seed, groups)


def _rollout(rng: Random, feedback: bool) -> Rollout:
    def policy() -> Segment:
        n = rng.randint(1, 5)
        return Segment(Source.POLICY, (5,) * n, tuple(rng.uniform(-3.0, -0.1) for _ in range(n)))

    segments = [Segment(Source.PROMPT, (1,) * rng.randint(1, 4)), policy()]
    spans, consultations = [], []
    if feedback:
        n = rng.randint(1, 4)
        reported = tuple(rng.uniform(-2.0, -0.1) for _ in range(n)) if rng.random() < 0.5 else ()
        asked = sum(len(s.ids) for s in segments)
        segments += [Segment(Source.FEEDBACK, (6,) * n, reported), policy()]
        spans.append((asked - 1, asked))  # the request is one token; what was said stays
        consultations.append(_consultation(rng.randint(1, 20)))
        segments += [Segment(Source.SCAFFOLD, (7,) * 2), policy()] if rng.random() < 0.3 else []
    return Rollout(
        stream=TokenStream(tuple(segments)),
        response="",
        policy_text="",
        stop=StopReason.END,
        consultations=tuple(consultations),
        consult_spans=tuple(spans),
    )


def _consultation(reply_tokens: int) -> Consultation:
    return Consultation(
        agent="verify",
        request="",
        outcome=ConsultOutcome.ANSWERED,
        reply="",
        reply_tokens=reply_tokens,
        detail="",
        context="",
        latency_s=0.0,
    )


def settings(name: str, coefficient: str, **more: Any) -> AlgorithmSettings:
    return AlgorithmSettings(name=name, coefficient=coefficient, **{"mismatch_truncation": 0.0} | more)


def recipe(algorithm: AlgorithmSettings, minibatches_: int, **train: Any) -> Settings:
    return Settings(
        algorithm=algorithm,
        rollout=RolloutSettings(max_response_tokens=HORIZON),
        train=TrainSettings(minibatches_per_step=minibatches_, prompts_per_step=4, **train),
    )


def names_of(groups: Sequence[Group], credits: Sequence[Sequence[Credit]]) -> dict[int, str]:
    """Name every stream that is learnt from, by its `id`: the same in both ways."""
    names = {id(m.rollout.stream): m.id for g in groups for m in g.members if m.rollout}
    names |= {id(e): f"{g.problem.id}/expert {i}" for g in groups for i, e in enumerate(g.experts)}
    return names | {
        id(c.stream): f"copy of {c.copy_of}" for of_group in credits for c in of_group if c.copy_of
    }


def entropy(log_p: Tensor) -> Tensor:
    """Stands for the policy's entropy: any function with a gradient."""
    return 0.3 * log_p * log_p + 0.1


# this package's own trainer


def own(of: Batch, algorithm: AlgorithmSettings, number: int, reward: str = "verdict") -> Result:
    """Loss and gradient of each optimiser step, as `training/update.py` makes them.

    Its sampler is its trainer: p_old is the trainer's own unless a correction is asked for.
    """
    groups = REWARDS[reward](of.groups, PATH)
    credits = [own_credits_of(group, algorithm, HORIZON) for group in groups]
    names = names_of(groups, credits)
    return [
        _own_step(rows, [names[id(row.stream)] for row in rows], of, algorithm)
        for rows in minibatches(credits, algorithm, number, HORIZON)
    ]


def _own_step(
    rows: list[Row], names: list[str], of: Batch, algorithm: AlgorithmSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    objective = objective_settings(algorithm)
    numbers = [of.of(name, row.stream) for name, row in zip(names, rows, strict=True)]
    rows = [_with_old(row, n.old, objective, algorithm) for row, n in zip(rows, numbers, strict=True)]
    batch = collate(rows, 0, torch.float64)
    prompts, width = [row.stream.prompt_length for row in rows], batch.ids.shape[1]

    def placed(values: Sequence[Tensor]) -> Tensor:
        each = zip(values, prompts, strict=True)
        return torch.stack([torch.nn.functional.pad(v, (p, width - p - len(v))) for v, p in each])

    leaves = {name: n.new.clone().requires_grad_() for name, n in zip(names, numbers, strict=True)}
    log_p = placed(list(leaves.values()))
    if algorithm.mismatch_truncation:
        batch = corrected(batch, placed([n.old for n in numbers]), algorithm.mismatch_truncation)
    if objective.kl is not None:
        reference = placed([n.reference for n in numbers])
        batch = replace(batch, kl_reference=objective.kl.term(log_p, reference))
    batch = replace(batch, entropy=entropy(log_p))
    loss = objective_loss(log_p, batch, objective)
    loss.backward()
    return loss.detach(), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def _with_old(row: Row, old: Tensor, objective: ObjectiveSettings, algorithm: AlgorithmSettings) -> Row:
    recomputed = (0.0,) * row.stream.prompt_length + tuple(old.tolist())
    stream = row.stream
    if not algorithm.mismatch_truncation:  # a sampler that is the trainer
        stream = _resampled(row.stream, old)
    return replace(row, stream=stream, recomputed=recomputed if objective.needs_old_feedback_log_p else None)


def _resampled(stream: TokenStream, old: Tensor) -> TokenStream:
    values, at, segments = old.tolist(), 0, [stream.segments[0]]
    for segment in stream.segments[1:]:
        here = tuple(values[at : at + len(segment.ids)])
        at += len(segment.ids)
        segments.append(replace(segment, log_probs=here) if segment.source is Source.POLICY else segment)
    return TokenStream(tuple(segments))


# the plugin


def jagged(rows: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def plugin_parts(of: Batch, recipe_: Settings) -> tuple[list[list[RowCredit]], dict[int, str]]:
    """Return the plugin's rows of each optimiser step, and the names of their streams."""
    groups = REWARDS[recipe_.train.reward](of.groups, PATH)
    taught = taught_by(groups, recipe_.algorithm, recipe_)
    names = names_of(groups, [each.credits for each in taught])
    return rows_by_minibatch(taught, names, recipe_.algorithm, recipe_), names


def plugin(
    of: Batch, recipe_: Settings, ranks: int = 1, micro: int = 3, policy: dict[str, float] | None = None
) -> Result:
    """The same through credit and loss of the plugin: steps, ranks, micro-batches of `micro` rows."""
    algorithm = recipe_.algorithm
    loss_of = AipoLoss(objective_settings(algorithm), algorithm.mismatch_truncation)
    parts, names = plugin_parts(of, recipe_)
    results = []
    for credits in parts:
        total, gradients = torch.zeros((), dtype=torch.float64), {}
        for start in range(0, len(credits), micro):
            part = credits[start : start + micro]
            by_name = {names[id(credit.row.stream)]: credit for credit in part}
            numbers = {name: of.of(name, credit.row.stream) for name, credit in by_name.items()}
            leaves = {name: n.new.clone().requires_grad_() for name, n in numbers.items()}
            data = data_of(
                list(by_name.values()), list(numbers.values()), policy and [policy[n] for n in by_name]
            )
            data.set_non_tensor("dp_size", ranks)
            streams = [credit.row.stream for credit in part]
            output = {"log_probs": whole(streams, list(leaves.values()))}
            output["entropy"] = whole(streams, [entropy(leaf) for leaf in leaves.values()])
            loss, _ = loss_of(output, data)
            (loss / ranks).backward()  # verl averages over ranks
            total = total + loss.detach() / ranks
            gradients |= {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        results.append((total, gradients))
    return results


def whole(streams: Sequence[TokenStream], leaves: Sequence[Tensor]) -> Tensor:
    """Log-probabilities of whole sequences, shifted by one as a model gives them: nested."""
    rows = []
    for stream, leaf in zip(streams, leaves, strict=True):
        before = torch.full((stream.prompt_length - 1,), -9.0).double()
        rows.append(torch.cat([before, leaf, torch.full((1,), -9.0).double()]))
    lengths = torch.tensor([len(row) for row in rows]).cumsum(0).tolist()
    return torch.nested.nested_tensor_from_jagged(torch.cat(rows), torch.tensor([0, *lengths]))


def data_of(
    credits: Sequence[RowCredit], numbers: Sequence[Numbers], policy: Sequence[float] | None = None
) -> Any:
    """Return verl's micro-batch; `policy` are the POLICY advantages of an estimator of verl's own."""
    from tensordict import TensorDict

    rows = [credit.row for credit in credits]
    streams = [row.stream for row in rows]
    begins = [stream.prompt_length for stream in streams]
    each = list(zip(streams, begins, strict=True))
    sources = [torch.tensor([int(source) for source in s.sources[p:]]) for s, p in each]
    given = policy or [row.advantage.policy for row in rows]

    def constant(values: Sequence[float]) -> Tensor:
        pairs = zip(sources, values, strict=True)
        return jagged([torch.full((len(x),), value, dtype=torch.float64) for x, value in pairs])

    fields = {
        "prompts": jagged([torch.tensor(s.ids[:p]) for s, p in each]),
        "responses": jagged([torch.tensor(s.ids[p:]) for s, p in each]),
        "token_sources": jagged(sources),
        "rollout_log_probs": jagged([torch.tensor(s.log_probs[p:], dtype=torch.float64) for s, p in each]),
        "old_log_probs": jagged([n.old for n in numbers]),
        "ref_log_prob": jagged([n.reference for n in numbers]),
        "token_weights": constant([row.weight for row in rows]),
        "feedback_advantages": constant([row.advantage.feedback for row in rows]),
        "advantages": jagged(
            [(x == Source.POLICY).double() * value for x, value in zip(sources, given, strict=True)]
        ),
    }
    return TensorDict(fields, batch_size=len(rows))


def same(ours: Result, theirs: Result) -> None:
    assert len(ours) == len(theirs)
    for (loss, gradients), (other, others) in zip(ours, theirs, strict=True):
        assert loss.item() == pytest.approx(other.item(), rel=1e-6, abs=1e-9)
        for row in gradients.keys() | others.keys():
            own_row, other_row = gradients.get(row), others.get(row)
            missing = torch.zeros_like(own_row if own_row is not None else other_row)  # type: ignore[arg-type]
            assert torch.allclose(
                own_row if own_row is not None else missing,
                other_row if other_row is not None else missing,
                rtol=1e-6,
                atol=1e-9,
            )
