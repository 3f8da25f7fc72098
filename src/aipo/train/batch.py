"""From groups to the rows of one optimiser step: advantages, experts, consult-stripped copies.

Owns what is learnt from and with which credit. Must not know models.
Invariant: an UNGRADED rollout leaves no row; a copy is made of correct consulting rollouts only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aipo.config.settings import AlgorithmSettings
from aipo.core.advantages import (
    Advantage,
    Estimator,
    FeedbackAdvantage,
    Member,
    group_advantages,
    overlong_penalty,
    whitened,
)
from aipo.core.algorithms import ALGORITHMS, Algorithm
from aipo.core.batch import Aggregation, Row, weighted_rows
from aipo.core.coefficients import Coefficient, CoefficientSettings
from aipo.core.objective import ObjectiveSettings
from aipo.core.surrogates import Clip, SurrogateSettings
from aipo.core.tokens import TokenStream, stripped_copy
from aipo.core.types import Condition, ConsultOutcome, Source, Verdict
from aipo.rollout.group import Group, MemberRollout


@dataclass(frozen=True, slots=True)
class Credit:
    """A stream and its advantages; weights come later, from the whole batch."""

    stream: TokenStream
    advantage: Advantage


def objective_settings(algorithm: AlgorithmSettings) -> ObjectiveSettings:
    """Return the settings of `core`'s objective."""
    base = base_algorithm(algorithm)
    coefficient = CoefficientSettings(Coefficient(algorithm.coefficient), algorithm.floor, algorithm.shape)
    surrogate = SurrogateSettings(base.surrogate, base.clip)
    return ObjectiveSettings(surrogate, coefficient, algorithm.feedback_weight)


def base_algorithm(settings: AlgorithmSettings) -> Algorithm:
    """Return the named algorithm with what the settings change in it."""
    named = ALGORITHMS[settings.name]
    low = named.clip.low if settings.clip_low is None else settings.clip_low
    high = named.clip.high if settings.clip_high is None else settings.clip_high
    return replace(
        named,
        clip=Clip(low, high),
        estimator=Estimator(settings.estimator) if settings.estimator else named.estimator,
        aggregation=Aggregation(settings.aggregation) if settings.aggregation else named.aggregation,
    )


def credits_of(group: Group, algorithm: AlgorithmSettings, max_response_tokens: int) -> list[Credit]:
    """Return what one group teaches.

    An expert counts as a correct solo member of its group (LUFFY, arXiv 2504.14945); in a group of experts
    only there is nothing to compare with and its advantage is 1, which makes it supervised fine-tuning.
    """
    expert = Member(Verdict.CORRECT, Condition.SOLO)
    members = [_member(m, algorithm.overlong_buffer_tokens, max_response_tokens) for m in group.members]
    advantages = group_advantages(
        members + [expert] * len(group.experts),
        estimator=base_algorithm(algorithm).estimator,
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


def _member(member: MemberRollout, buffer_tokens: int, max_response_tokens: int) -> Member:
    stream = member.rollout.stream if member.rollout else None
    length = len(stream) - stream.prompt_length if stream else 0
    penalty = overlong_penalty(length, max_response_tokens, buffer_tokens)
    return Member(member.grade.verdict, member.condition, penalty)


def _deserves_copy(member: MemberRollout) -> bool:
    """A correct rollout that was told something."""
    assert member.rollout is not None
    answered = any(c.outcome is ConsultOutcome.ANSWERED for c in member.rollout.consultations)
    return member.grade.verdict is Verdict.CORRECT and answered


def minibatches(
    groups: Sequence[Group], algorithm: AlgorithmSettings, number: int, max_response_tokens: int
) -> list[list[Row]]:
    """Split groups, in order, into `number` optimiser steps; each is one global batch with its own N."""
    base = base_algorithm(algorithm)
    credits = [credits_of(group, algorithm, max_response_tokens) for group in groups]
    if base.estimator.over_batch:
        credits = _whitened(credits)
    result = []
    for part in range(number):
        share = credits[part * len(groups) // number : (part + 1) * len(groups) // number]
        flat = [credit for group in share for credit in group]
        rows = weighted_rows(
            [c.stream for c in flat],
            [c.advantage for c in flat],
            base.aggregation,
            feedback_trained=objective_settings(algorithm).feedback_trained,
            horizon_tokens=max_response_tokens,
        )
        result.append(rows)
    return result


def _whitened(credits: Sequence[Sequence[Credit]]) -> list[list[Credit]]:
    """Return the credits with POLICY advantages normalised over the whole step; FEEDBACK's stay."""
    sampled = [c for group in credits for c in group if c.stream.count(Source.POLICY)]
    values = whitened([c.advantage.policy for c in sampled], [c.stream.count(Source.POLICY) for c in sampled])
    new = {id(c): value for c, value in zip(sampled, values, strict=True)}
    return [
        [
            replace(c, advantage=Advantage(new.get(id(c), c.advantage.policy), c.advantage.feedback))
            for c in group
        ]
        for group in credits
    ]


def microbatches(rows: Sequence[Row], max_tokens: int) -> list[list[Row]]:
    """Cut rows, sorted by length, so that no part pads to more than `max_tokens` tokens."""
    parts: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row.stream)):
        if parts and (len(parts[-1]) + 1) * len(row.stream) <= max_tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts
