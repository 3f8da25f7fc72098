"""What each row of a step is credited with, by mini-batch: advantages and weights are the package's own.

An UNGRADED rollout has no row. What nobody sampled, a copy or an expert's solution, has one only where it
teaches, so that nothing is computed for the others.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aipo.config.settings import AlgorithmSettings, Settings
from aipo.core.advantages import Member
from aipo.core.batch import Row
from aipo.core.rewards import reward_of
from aipo.core.tokens import TokenStream
from aipo.core.types import Condition, Source, Verdict
from aipo.rollout.group import Group
from aipo.training.algorithm import objective_settings
from aipo.training.batch import minibatches
from aipo.training.credit import Credit, credits_of, members_of

ALONE = "none"
"""Baseline of what is compared with nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Groups, and where their rows are."""

    groups: list[Group]
    keys: dict[int, str]
    """The row of each stream, by the stream's `id`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCredit:
    """What a row takes into the update."""

    row: Row
    """Its stream, its advantages, and the weight of each of its trained tokens."""
    key: str
    """Where it stands in the transfer queue; of a copy, where the rollout stands that it is a copy of."""
    is_copy: bool
    baseline: str
    """Name of the rows that it is compared with, which verl's own estimators take as its group."""
    siblings: int
    """Rows with that name, itself included."""
    reward: float
    """With its penalty, for verl's own estimators; 0 for a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """A group that is learnt from, and what it teaches."""

    group: Group
    credits: list[Credit]


def taught_by(groups: Sequence[Group], algorithm: AlgorithmSettings, settings: Settings) -> list[Taught]:
    """Return what groups teach: all of them, with dynamic sampling those that teach something."""
    longest = settings.rollout.max_response_tokens
    found = [Taught(group=g, credits=credits_of(g, algorithm, longest)) for g in groups]
    if not settings.train.dynamic_sampling_rounds:
        return found
    return [taught for taught in found if any(credit.teaches for credit in taught.credits)]


def rows_by_minibatch(
    taught: Sequence[Taught], keys: Mapping[int, str], algorithm: AlgorithmSettings, settings: Settings
) -> list[list[RowCredit]]:
    """Return the rows of each optimiser step; `keys` are those of the streams, by their `id`.

    Degenerate case: a mini-batch without rows is left out.
    """
    credits, train = [of.credits for of in taught], settings.train
    longest, objective = settings.rollout.max_response_tokens, objective_settings(algorithm)
    parts = minibatches(credits, algorithm, train.minibatches_per_step, longest)
    baselines, rewards = _baselines(taught, algorithm, longest)
    siblings, copied = Counter(baselines.values()), _copied(credits)

    def credited(row: Row) -> RowCredit:
        rollout = copied.get(id(row.stream), row.stream)
        is_copy = rollout is not row.stream
        baseline = ALONE if is_copy else baselines[id(row.stream)]
        return RowCredit(
            row=row,
            key=keys[id(rollout)],
            is_copy=is_copy,
            baseline=baseline,
            siblings=1 if is_copy else siblings[baseline],
            reward=0.0 if is_copy else rewards[id(row.stream)],
        )

    wanted = [
        [credited(row) for row in part if row.stream.count(Source.POLICY) or objective.teaches(row)]
        for part in parts
    ]
    return [part for part in wanted if part]


def _copied(credits: Sequence[Sequence[Credit]]) -> dict[int, TokenStream]:
    """Return the rollout that each copy was made of, by the `id` of the copy's stream."""
    rollouts: dict[int, TokenStream] = {}
    for of_group in credits:
        last = None
        for credit in of_group:
            if not credit.copy_of:
                last = credit.stream
            elif last is not None:  # `credits_of` puts a copy behind its rollout
                rollouts[id(credit.stream)] = last
    return rollouts


def _baselines(
    taught: Sequence[Taught], algorithm: AlgorithmSettings, longest: int
) -> tuple[dict[int, str], dict[int, float]]:
    """Return name of the baseline and reward of each stream, by its `id`."""
    names: dict[int, str] = {}
    rewards: dict[int, float] = {}
    for number, of in enumerate(taught):
        for member, facts in zip(of.group.members, members_of(of.group, algorithm, longest), strict=True):
            if member.rollout is None or member.grade.verdict is Verdict.UNGRADED:
                continue
            names[id(member.rollout.stream)] = _name(number, facts, algorithm)
            rewards[id(member.rollout.stream)] = _reward(facts)
        for stream in of.group.experts:
            expert = Member(verdict=Verdict.CORRECT, condition=Condition.SOLO, expert=True)
            names[id(stream)] = _name(number, expert, algorithm)
            rewards[id(stream)] = 1.0
    return names, rewards


def _name(number: int, member: Member, algorithm: AlgorithmSettings) -> str:
    kind = "banned" if member.banned else member.condition.value
    return f"{number}/{kind}" if algorithm.split_baselines else str(number)


def _reward(member: Member) -> float:
    return reward_of(member.verdict, member.reward) + member.penalty
