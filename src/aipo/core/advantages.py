"""From the verdicts of one group to one POLICY and one FEEDBACK advantage per rollout.

Owns baselines. Must not know tokens, models or tasks.
Invariant: an UNGRADED rollout changes nothing, as if it had never been sampled; a (sub)group without
variance gives exactly 0, but for the estimators that normalise over the batch, which move it by its mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from aipo.core.types import Condition, Verdict

REWARD = {Verdict.CORRECT: 1.0, Verdict.INCORRECT: 0.0}
"""UNGRADED has no reward on purpose: looking it up is a `KeyError`."""

STD_EPSILON = 1e-6
WHITEN_EPSILON = 1e-8


class Estimator(StrEnum):
    """What a reward is compared with, and in which unit the difference is measured."""

    GROUP_NORMALISED = "group_normalised"
    """(R - mean) / std of the group: GRPO, arXiv 2402.03300 eq. 3."""
    GROUP_CENTRED = "group_centred"
    """R - mean of the group: Dr. GRPO, arXiv 2503.20783."""
    LEAVE_ONE_OUT = "leave_one_out"
    """R - mean of the *other* rollouts of the group: RLOO, arXiv 2402.14740."""
    BATCH_NORMALISED = "batch_normalised"
    """(R - mean) / std over all POLICY tokens of the batch: REINFORCE++, arXiv 2501.03262."""
    GROUP_CENTRED_BATCH_NORMALISED = "group_centred_batch_normalised"
    """R - mean of the group, then normalised over the batch: REINFORCE++ with baseline, same paper."""

    @property
    def over_batch(self) -> bool:
        """Whether `whitened` has to follow, over the whole batch."""
        return self in (Estimator.BATCH_NORMALISED, Estimator.GROUP_CENTRED_BATCH_NORMALISED)


class FeedbackAdvantage(StrEnum):
    """What a FEEDBACK token is credited with [ours, docs/method.md#feedback-advantage]."""

    SIGNED = "signed"
    """The rollout's own advantage A within its group, of either sign, before any batch normalisation."""
    SIGNED_UNIT = "signed_unit"
    """The same A; tokens with A < 0 take the weight p of `unit` (see `CoefficientSettings`)."""
    POSITIVE = "positive"
    """max(0, A)."""
    OVER_SOLO = "over_solo"
    """max(0, R - mean R of the solo siblings): what help added over what the policy can do alone."""


@dataclass(frozen=True, slots=True)
class Member:
    """What a group's baseline needs to know of one rollout."""

    verdict: Verdict
    condition: Condition
    penalty: float = 0.0
    """Added to the reward, at most 0: see `overlong_penalty`. OVER_SOLO does not see it."""
    expert: bool = False
    """An expert trajectory: a sibling like any other (LUFFY), but nothing that the policy can do alone."""


@dataclass(frozen=True, slots=True)
class Advantage:
    """Advantages of one rollout: for its POLICY and for its FEEDBACK tokens."""

    policy: float
    feedback: float


def overlong_penalty(response_tokens: int, max_tokens: int, buffer_tokens: int) -> float:
    """Return DAPO's soft overlong punishment, in [-1, 0]: arXiv 2503.14476 eq. 13.

    0 up to `max_tokens - buffer_tokens`, then falling linearly to -1 at `max_tokens`. No buffer, no penalty.

    >>> [overlong_penalty(tokens, 100, 20) for tokens in (80, 90, 100)]
    [0.0, -0.5, -1.0]
    """
    excess = response_tokens - (max_tokens - buffer_tokens)
    return -min(1.0, excess / buffer_tokens) if buffer_tokens > 0 and excess > 0 else 0.0


def group_relative(rewards: Sequence[float], estimator: Estimator) -> list[float]:
    """Return each reward's advantage within its group; the batch's part, if any, is left to `whitened`.

    Degenerate cases: equal rewards, hence also a group of one, give exactly 0, but for BATCH_NORMALISED,
    which has no baseline in the group and returns the rewards; no rewards give an empty list.

    >>> group_relative([1.0, 0.0], Estimator.GROUP_CENTRED)
    [0.5, -0.5]
    >>> group_relative([1.0, 0.0], Estimator.LEAVE_ONE_OUT)
    [1.0, -1.0]
    >>> group_relative([1.0, 1.0, 1.0], Estimator.GROUP_NORMALISED)
    [0.0, 0.0, 0.0]
    """
    if estimator is Estimator.BATCH_NORMALISED:
        return list(rewards)
    if not rewards or min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    mean = fmean(rewards)
    centred = [reward - mean for reward in rewards]
    if estimator is Estimator.LEAVE_ONE_OUT:
        return [c * len(centred) / (len(centred) - 1) for c in centred]
    if estimator is not Estimator.GROUP_NORMALISED:
        return centred
    std = (sum(c * c for c in centred) / (len(centred) - 1)) ** 0.5
    return [c / (std + STD_EPSILON) for c in centred]


def whitened(advantages: Sequence[float], tokens: Sequence[int]) -> list[float]:
    """Return advantages with mean 0 and variance 1 over the batch's POLICY tokens: REINFORCE++.

    `tokens` is the number of POLICY tokens of each rollout, which weighs it. Degenerate cases: fewer than two
    tokens, or no variance, give exactly 0.

    >>> [round(a, 4) for a in whitened([1.0, 0.0], [2, 2])]
    [0.866, -0.866]
    """
    total = sum(tokens)
    if total < 2 or not advantages or min(advantages) == max(advantages):
        return [0.0] * len(advantages)
    mean = sum(a * n for a, n in zip(advantages, tokens, strict=True)) / total
    variance = sum((a - mean) ** 2 * n for a, n in zip(advantages, tokens, strict=True)) / (total - 1)
    return [(a - mean) / (variance + WHITEN_EPSILON) ** 0.5 for a in advantages]


def group_advantages(
    group: Sequence[Member],
    *,
    estimator: Estimator = Estimator.GROUP_NORMALISED,
    split_baselines: bool = True,
    feedback: FeedbackAdvantage = FeedbackAdvantage.OVER_SOLO,
) -> list[Advantage | None]:
    """Return each rollout's advantages, None for UNGRADED ones, which must leave the batch.

    With `split_baselines` a rollout is compared with graded siblings of its own condition only, so that solo
    failures do not push down what consulting siblings show [ours]. OVER_SOLO falls back on the mean of all
    graded rollouts in a group without graded solo members.

    >>> won, lost = Verdict.CORRECT, Verdict.INCORRECT
    >>> group = [Member(won, Condition.CONSULTING), Member(lost, Condition.CONSULTING),
    ...          Member(lost, Condition.SOLO), Member(Verdict.UNGRADED, Condition.SOLO)]
    >>> for advantage in group_advantages(group, estimator=Estimator.GROUP_CENTRED):
    ...     print(advantage)
    Advantage(policy=0.5, feedback=1.0)
    Advantage(policy=-0.5, feedback=0.0)
    Advantage(policy=0.0, feedback=0.0)
    None
    """
    graded = [i for i, member in enumerate(group) if member.verdict is not Verdict.UNGRADED]
    reward = {i: REWARD[group[i].verdict] for i in graded}
    policy: dict[int, float] = {}
    for siblings in _baseline_sets(group, graded, split_baselines):
        relative = group_relative([reward[i] + group[i].penalty for i in siblings], estimator)
        policy.update(zip(siblings, relative, strict=True))
    credit = _feedback_rule(group, reward, feedback)
    return [Advantage(policy[i], credit(i, policy[i])) if i in reward else None for i in range(len(group))]


def _baseline_sets(group: Sequence[Member], graded: list[int], split: bool) -> list[list[int]]:
    if not split:
        return [graded]
    return [[i for i in graded if group[i].condition is condition] for condition in Condition]


def _feedback_rule(
    group: Sequence[Member], reward: dict[int, float], rule: FeedbackAdvantage
) -> Callable[[int, float], float]:
    if rule in (FeedbackAdvantage.SIGNED, FeedbackAdvantage.SIGNED_UNIT):
        return lambda _, advantage: advantage
    if rule is FeedbackAdvantage.POSITIVE:
        return lambda _, advantage: max(0.0, advantage)
    solo = [r for i, r in reward.items() if group[i].condition is Condition.SOLO and not group[i].expert]
    baseline = fmean(solo or reward.values()) if reward else 0.0
    return lambda i, _: max(0.0, reward[i] - baseline)
