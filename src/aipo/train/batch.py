"""From groups to the rows of one optimiser step: advantages, experts, consult-stripped copies.

Owns what is learnt from and with which credit. Must not know models.
Invariant: an UNGRADED rollout leaves no row; a copy is made of correct consulting rollouts only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from aipo.config.settings import AlgorithmSettings
from aipo.core.advantages import Advantage, FeedbackAdvantage, Member, group_advantages
from aipo.core.batch import Aggregation, Row, weighted_rows
from aipo.core.coefficients import Coefficient, CoefficientSettings
from aipo.core.objective import ObjectiveSettings
from aipo.core.surrogates import Clip
from aipo.core.tokens import TokenStream, stripped_copy
from aipo.core.types import Condition, ConsultOutcome, Verdict
from aipo.rollout.group import Group, MemberRollout


@dataclass(frozen=True, slots=True)
class Credit:
    """A stream and its advantages; weights come later, from the whole batch."""

    stream: TokenStream
    advantage: Advantage


def objective_settings(algorithm: AlgorithmSettings) -> ObjectiveSettings:
    """Return the settings of `core`'s objective."""
    clip = Clip(algorithm.clip_low, algorithm.clip_high)
    coefficient = CoefficientSettings(
        Coefficient(algorithm.coefficient), algorithm.floor, algorithm.shape, clip
    )
    return ObjectiveSettings(clip, coefficient, algorithm.feedback_weight)


def credits_of(group: Group, algorithm: AlgorithmSettings) -> list[Credit]:
    """Return what one group teaches.

    An expert counts as a correct solo member of its group (LUFFY, arXiv 2504.14945); in a group of experts
    only there is nothing to compare with and its advantage is 1, which makes it supervised fine-tuning.
    """
    expert = Member(Verdict.CORRECT, Condition.SOLO)
    members = [Member(m.grade.verdict, m.condition) for m in group.members]
    advantages = group_advantages(
        members + [expert] * len(group.experts),
        normalise_std=algorithm.normalise_std,
        split_baselines=algorithm.split_baselines,
        feedback=FeedbackAdvantage(algorithm.feedback_advantage),
    )
    sampled = any(m.verdict is not Verdict.UNGRADED for m in members)
    result: list[Credit] = []
    for member, advantage in zip(group.members, advantages, strict=False):
        if advantage is None or member.rollout is None:
            continue
        result.append(Credit(member.rollout.stream, advantage))
        if algorithm.stripped_copies and advantage.feedback > 0 and _deserves_copy(member):
            copy = stripped_copy(member.rollout.stream, member.rollout.dropped, group.solo_prompt_ids)
            result.append(Credit(copy, Advantage(0.0, advantage.feedback)))
    for stream, advantage in zip(group.experts, advantages[len(group.members) :], strict=True):
        assert advantage is not None
        credit = advantage.policy if sampled else 1.0
        result.append(Credit(stream, Advantage(0.0, credit)))
    return result


def _deserves_copy(member: MemberRollout) -> bool:
    """A correct rollout that was told something."""
    assert member.rollout is not None
    answered = any(c.outcome is ConsultOutcome.ANSWERED for c in member.rollout.consultations)
    return member.grade.verdict is Verdict.CORRECT and answered


def minibatches(groups: Sequence[Group], algorithm: AlgorithmSettings, number: int) -> list[list[Row]]:
    """Split groups, in order, into `number` optimiser steps; each is one global batch with its own N."""
    trained = objective_settings(algorithm).feedback_trained
    aggregation = Aggregation(algorithm.aggregation)
    result = []
    for part in range(number):
        share = groups[part * len(groups) // number : (part + 1) * len(groups) // number]
        credits = [credit for group in share for credit in credits_of(group, algorithm)]
        rows = weighted_rows(
            [c.stream for c in credits], [c.advantage for c in credits], aggregation, feedback_trained=trained
        )
        result.append(rows)
    return result


def microbatches(rows: Sequence[Row], max_tokens: int) -> list[list[Row]]:
    """Cut rows, sorted by length, so that no part pads to more than `max_tokens` tokens."""
    parts: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row.stream)):
        if parts and (len(parts[-1]) + 1) * len(row.stream) <= max_tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts
