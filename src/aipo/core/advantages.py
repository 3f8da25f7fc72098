"""From the verdicts of one group to one POLICY and one FEEDBACK advantage per rollout.

Owns baselines. Must not know tokens, models or tasks.
Invariant: an UNGRADED rollout changes nothing, as if it had never been sampled; a (sub)group without
variance gives exactly 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from aipo.core.types import Condition, Verdict

REWARD = {Verdict.CORRECT: 1.0, Verdict.INCORRECT: 0.0}
"""UNGRADED has no reward on purpose: looking it up is a `KeyError`."""

STD_EPSILON = 1e-6


class FeedbackAdvantage(StrEnum):
    """What a FEEDBACK token is credited with [ours, method.md section 4]."""

    SIGNED = "signed"
    """The rollout's own advantage A, of either sign."""
    POSITIVE = "positive"
    """max(0, A)."""
    OVER_SOLO = "over_solo"
    """max(0, R - mean R of the solo siblings): what help added over what the policy can do alone."""


@dataclass(frozen=True, slots=True)
class Member:
    """What a group's baseline needs to know of one rollout."""

    verdict: Verdict
    condition: Condition


@dataclass(frozen=True, slots=True)
class Advantage:
    """Advantages of one rollout: for its POLICY and for its FEEDBACK tokens."""

    policy: float
    feedback: float


def group_relative(rewards: Sequence[float], normalise_std: bool) -> list[float]:
    """Return (R - mean R), divided by the sample standard deviation if asked: GRPO, arXiv 2402.03300 eq. 3.

    Without the division this is Dr. GRPO's (arXiv 2503.20783). Degenerate cases: equal rewards, hence also
    a group of one, give exactly 0; no rewards give an empty list.

    >>> group_relative([1.0, 0.0], normalise_std=False)
    [0.5, -0.5]
    >>> group_relative([1.0, 1.0, 1.0], normalise_std=True)
    [0.0, 0.0, 0.0]
    """
    if not rewards or min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    mean = fmean(rewards)
    centred = [reward - mean for reward in rewards]
    if not normalise_std:
        return centred
    std = (sum(c * c for c in centred) / (len(centred) - 1)) ** 0.5
    return [c / (std + STD_EPSILON) for c in centred]


def group_advantages(
    group: Sequence[Member],
    *,
    normalise_std: bool = True,
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
    >>> for advantage in group_advantages(group, normalise_std=False):
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
        relative = group_relative([reward[i] for i in siblings], normalise_std)
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
    if rule is FeedbackAdvantage.SIGNED:
        return lambda _, advantage: advantage
    if rule is FeedbackAdvantage.POSITIVE:
        return lambda _, advantage: max(0.0, advantage)
    solo = [r for i, r in reward.items() if group[i].condition is Condition.SOLO]
    baseline = fmean(solo or reward.values()) if reward else 0.0
    return lambda i, _: max(0.0, reward[i] - baseline)
