"""The same rollouts for our own trainer and for the plugin on verl: groups, numbers, both ways to a loss.

Needs tensordict and verl where `plugin` or `data_of` is called.
"""

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from aipo.config.settings import AlgorithmSettings
from aipo.core.batch import Row, collate, corrected
from aipo.core.objective import objective_loss
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Condition, Source, StopReason, Verdict
from aipo.grading import Grade
from aipo.integrations.verl.credit import RowFacts, credits_of, minibatches_of
from aipo.integrations.verl.estimators import advantages
from aipo.integrations.verl.loss import AipoLoss
from aipo.integrations.verl.plan import Plan
from aipo.rollout.episode import Rollout
from aipo.rollout.group import Group, MemberRollout
from aipo.tasks.base import Problem
from aipo.training.algorithm import base_algorithm, objective_settings
from aipo.training.batch import minibatches
from aipo.training.credit import credits_of as own_credits_of

HORIZON = 32
WON, LOST, UNGRADED = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNGRADED


@dataclass(frozen=True)
class Batch:
    """Groups of rollouts in verl's order, and log-probabilities under the new and the old weights."""

    groups: list[Group]
    new: list[Tensor]
    """Of each response token of each row, by the weights that are being updated."""
    old: list[Tensor]
    """The same by the weights before the update, as verl recomputes them."""

    @property
    def members(self) -> list[MemberRollout]:
        return [member for group in self.groups for member in group.members]

    @property
    def streams(self) -> list[TokenStream]:
        return [member.rollout.stream for member in self.members if member.rollout]


def batch_of(seed: int, feedback: bool = True, verdicts: tuple[Verdict, ...] = (WON, LOST)) -> Batch:
    """Four groups of four, lengths and sources at random; sampler and trainer differ a little."""
    rng, groups = Random(seed), []
    for number in range(4):
        members = []
        for index in range(4):
            condition = Condition.CONSULTING if index < 2 else Condition.SOLO
            stream = _stream(rng, feedback and condition is Condition.CONSULTING)
            verdict = rng.choice(verdicts)
            produced = Rollout(
                stream=stream,
                response="",
                policy_text="",
                stop=StopReason.END,
                consultations=(),
                consult_spans=(),
            )
            members.append(
                MemberRollout(
                    id=f"{number}#{index}", condition=condition, rollout=produced, grade=Grade(verdict, "")
                )
            )
        groups.append(Group(problem=Problem(id=str(number), text="?", gold="!"), members=tuple(members)))
    new, old = [], []
    for group in groups:
        for member in group.members:
            assert member.rollout is not None
            stream = member.rollout.stream
            log_probs = torch.tensor(stream.log_probs[stream.prompt_length :], dtype=torch.float64)
            sampled = torch.where(log_probs == 0, -1.5, log_probs)
            old.append(
                sampled + torch.tensor([rng.uniform(-0.05, 0.05) for _ in sampled], dtype=torch.float64)
            )
            new.append(old[-1] + torch.tensor([rng.uniform(-0.6, 0.6) for _ in sampled], dtype=torch.float64))
    return Batch(groups, new, old)


def _stream(rng: Random, feedback: bool) -> TokenStream:
    def policy() -> Segment:
        n = rng.randint(1, 5)
        return Segment(Source.POLICY, (5,) * n, tuple(rng.uniform(-3.0, -0.1) for _ in range(n)))

    segments = [Segment(Source.PROMPT, (1,) * rng.randint(1, 4)), policy()]
    if feedback:
        n = rng.randint(1, 4)
        reported = tuple(rng.uniform(-2.0, -0.1) for _ in range(n)) if rng.random() < 0.5 else ()
        segments += [Segment(Source.FEEDBACK, (6,) * n, reported), policy()]
        segments += [Segment(Source.SCAFFOLD, (7,) * 2), policy()] if rng.random() < 0.3 else []
    return TokenStream(tuple(segments))


def plan_of(algorithm: AlgorithmSettings) -> Plan:
    base = base_algorithm(algorithm)
    return Plan(
        objective=objective_settings(algorithm),
        estimator=base.estimator,
        aggregation=base.aggregation,
        feedback_advantage=algorithm.feedback_advantage,
        split_baselines=algorithm.split_baselines,
        mismatch_truncation=algorithm.mismatch_truncation or 0.0,
        max_response_tokens=HORIZON,
        consulting=2,
        solo=2,
    )


def settings(name: str, coefficient: str, **more: Any) -> AlgorithmSettings:
    return AlgorithmSettings(name=name, coefficient=coefficient, stripped_copies=False, **more)


# this package's own trainer


def own(of: Batch, algorithm: AlgorithmSettings, number: int) -> list[tuple[Tensor, dict[int, Tensor]]]:
    """Loss and gradient by row of each optimiser step, as `training/update.py` makes them.

    Its sampler is its trainer: p_old is the trainer's own unless a correction is asked for.
    """
    credits = [own_credits_of(group, algorithm, HORIZON) for group in of.groups]
    place = {id(stream): i for i, stream in enumerate(of.streams)}
    results = []
    for rows in minibatches(credits, algorithm, number, HORIZON):
        rows = [_with_old(row, of.old[place[id(row.stream)]], algorithm) for row in rows]
        which = [place[id(row.stream)] for row in _untouched(rows, of, place)]
        results.append(_own_step(rows, which, of, algorithm))
    return results


_ORIGIN: dict[int, TokenStream] = {}


def _with_old(row: Row, old: Tensor, algorithm: AlgorithmSettings) -> Row:
    recomputed = (0.0,) * row.stream.prompt_length + tuple(old.tolist())
    objective = objective_settings(algorithm)
    stream = row.stream
    if not algorithm.mismatch_truncation:  # a sampler that is the trainer
        stream = _resampled(row.stream, old)
    _ORIGIN[id(stream)] = row.stream
    return replace(row, stream=stream, recomputed=recomputed if objective.needs_old_feedback_log_p else None)


def _resampled(stream: TokenStream, old: Tensor) -> TokenStream:
    values, at, segments = old.tolist(), 0, [stream.segments[0]]
    for segment in stream.segments[1:]:
        here = tuple(values[at : at + len(segment.ids)])
        at += len(segment.ids)
        segments.append(replace(segment, log_probs=here) if segment.source is Source.POLICY else segment)
    return TokenStream(tuple(segments))


def _untouched(rows: list[Row], of: Batch, place: dict[int, int]) -> list[Row]:
    return [replace(row, stream=_ORIGIN[id(row.stream)]) for row in rows]


def _own_step(
    rows: list[Row], which: list[int], of: Batch, algorithm: AlgorithmSettings
) -> tuple[Tensor, dict[int, Tensor]]:
    batch = collate(rows, 0, torch.float64)
    prompts = [row.stream.prompt_length for row in rows]
    leaves = [of.new[i].clone().requires_grad_() for i in which]
    width = batch.ids.shape[1]
    log_p = torch.stack([_placed(leaf, p, width) for leaf, p in zip(leaves, prompts, strict=True)])
    if algorithm.mismatch_truncation:
        old = torch.stack([_placed(of.old[i], p, width) for i, p in zip(which, prompts, strict=True)])
        batch = corrected(batch, old, algorithm.mismatch_truncation)
    loss = objective_loss(log_p, batch, objective_settings(algorithm))
    loss.backward()
    return loss.detach(), {
        i: leaf.grad for i, leaf in zip(which, leaves, strict=True) if leaf.grad is not None
    }


def _placed(values: Tensor, prompt: int, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (prompt, width - prompt - len(values)))


# the plugin


def jagged(rows: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def plugin(
    of: Batch, plan: Plan, number: int, ranks: int = 1, micro: int = 3, policy: list[float] | None = None
) -> list[tuple[Tensor, dict[int, Tensor]]]:
    """The same through credit and loss of the plugin: steps, ranks, micro-batches of `micro` rows."""
    facts = [facts_of(member) for member in of.members]
    steps = minibatches_of(len(facts), len(facts) // number, ranks)
    credits = credits_of(facts, steps, plan)
    given = policy or advantages(
        [float(f.verdict is WON) + c.penalty for f, c in zip(facts, credits, strict=True)],
        [f.policy_tokens if f.counts else 0 for f in facts],
        [c.baseline for c in credits],
        plan.estimator,
    )
    results = []
    for rows in steps:
        total, gradients = torch.zeros((), dtype=torch.float64), {}
        for start in range(0, len(rows), micro):
            part = rows[start : start + micro]
            leaves = {i: of.new[i].clone().requires_grad_() for i in part}
            data = data_of(
                of, part, facts, [(credits[i].weight, credits[i].feedback, given[i]) for i in part]
            )
            data.set_non_tensor("dp_size", ranks)
            loss, _ = AipoLoss(plan)({"log_probs": whole(of, leaves)}, data)
            (loss / ranks).backward()  # verl averages over ranks
            total = total + loss.detach() / ranks
            gradients |= {i: leaf.grad for i, leaf in leaves.items() if leaf.grad is not None}
        results.append((total, gradients))
    return results


def facts_of(member: MemberRollout) -> RowFacts:
    assert member.rollout is not None
    stream = member.rollout.stream
    response = len(stream) - stream.prompt_length
    graded = member.grade.verdict is not UNGRADED
    return RowFacts(
        group=member.id.partition("#")[0],
        verdict=member.grade.verdict,
        condition=member.condition,
        policy_tokens=stream.count(Source.POLICY) if graded else 0,
        feedback_tokens=stream.count(Source.FEEDBACK) if graded else 0,
        response_tokens=response,
    )


def whole(of: Batch, leaves: dict[int, Tensor]) -> Tensor:
    """Log-probabilities of whole sequences, shifted by one as a model gives them: nested."""
    rows = []
    for i, leaf in leaves.items():
        prompt = of.streams[i].prompt_length
        rows.append(
            torch.cat([torch.full((prompt - 1,), -9.0).double(), leaf, torch.full((1,), -9.0).double()])
        )
    return torch.nested.nested_tensor_from_jagged(
        torch.cat(rows), torch.tensor([0, *torch.tensor([len(r) for r in rows]).cumsum(0).tolist()])
    )


def data_of(
    of: Batch, part: list[int], facts: list[RowFacts], given: list[tuple[float, float, float]]
) -> Any:
    from tensordict import TensorDict

    streams = [of.streams[i] for i in part]
    prompts = [s.prompt_length for s in streams]
    sources = [
        torch.tensor([int(x) if facts[i].counts else int(Source.SCAFFOLD) for x in s.sources[p:]])
        for i, s, p in zip(part, streams, prompts, strict=True)
    ]
    fields = {
        "prompts": jagged([torch.tensor(s.ids[:p]) for s, p in zip(streams, prompts, strict=True)]),
        "responses": jagged([torch.tensor(s.ids[p:]) for s, p in zip(streams, prompts, strict=True)]),
        "token_sources": jagged(sources),
        "rollout_log_probs": jagged(
            [
                torch.tensor(s.log_probs[p:], dtype=torch.float64)
                for s, p in zip(streams, prompts, strict=True)
            ]
        ),
        "old_log_probs": jagged([of.old[i] for i in part]),
        "token_weights": jagged(
            [torch.full((len(x),), g[0], dtype=torch.float64) for x, g in zip(sources, given, strict=True)]
        ),
        "feedback_advantages": jagged(
            [torch.full((len(x),), g[1], dtype=torch.float64) for x, g in zip(sources, given, strict=True)]
        ),
        "advantages": jagged(
            [(x == Source.POLICY).double() * g[2] for x, g in zip(sources, given, strict=True)]
        ),
    }
    return TensorDict(fields, batch_size=len(part))


def same(
    ours: list[tuple[Tensor, dict[int, Tensor]]], theirs: list[tuple[Tensor, dict[int, Tensor]]]
) -> None:
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
