"""From the verdicts of one group, or graded rewards, to one POLICY and one FEEDBACK advantage per rollout.

An UNGRADED rollout changes nothing, as if it had never been sampled. A (sub)group without variance gives
exactly 0, but for the estimators that normalise over the batch, which move it by its mean. An estimator is
one entry of `ESTIMATORS`, a rule for FEEDBACK tokens one of `FEEDBACK_ADVANTAGES`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from aipo.core.registry import Registry
from aipo.core.rewards import reward_of
from aipo.core.types import Condition, Verdict

STD_EPSILON = 1e-6
WHITEN_EPSILON = 1e-8
ByIndex = Mapping[int, float]
"""A number of each graded member of a group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What a group's baseline needs to know of one rollout."""

    verdict: Verdict
    condition: Condition
    penalty: float = 0.0
    """Added to the reward, at most 0: see `overlong_penalty`. `over_solo` does not see it."""
    expert: bool = False
    """An expert trajectory: a sibling like any other (LUFFY), but nothing that the policy can do alone."""
    reward: float | None = None
    """A finite reward in the verdict's place; None: the verdict's, `REWARD`."""
    banned: bool = False
    """A solo rollout from which request tags were banned: a condition of its own."""


@dataclass(frozen=True, slots=True)
class Advantage:
    """Advantages of one rollout: for its POLICY and for its FEEDBACK tokens."""

    policy: float
    feedback: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """What a reward is compared with, and in which unit the difference is measured."""

    relative: Callable[[Sequence[float]], list[float]]
    """From the rewards of a group to the advantages; equal rewards give exactly 0."""
    about: str
    arxiv: str = ""
    over_batch: bool = False
    """Whether `whitened` has to follow, over the whole batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackAdvantage:
    """What a FEEDBACK token is credited with [ours, docs/method.md#feedback-advantage]."""

    credit: Callable[[Sequence[Member], ByIndex, ByIndex], ByIndex]
    """From the group, and its graded members' rewards and own advantages by index, to their credits."""
    about: str
    unit_below_zero: bool = False
    """Whether tokens with A < 0 take the weight p of `unit`: see `CoefficientSettings`."""


def group_relative(rewards: Sequence[float], estimator: str) -> list[float]:
    """Return each reward's advantage within its group; the batch's part, if any, is left to `whitened`.

    Degenerate cases: equal rewards, hence also a group of one, give exactly 0, but for `batch_normalised`,
    which has no baseline in the group and returns the rewards; no rewards give an empty list.

    >>> group_relative([1.0, 0.0], "group_centred"), group_relative([1.0, 1.0], "group_normalised")
    ([0.5, -0.5], [0.0, 0.0])
    """
    return ESTIMATORS[estimator].relative(rewards)


def _centred(rewards: Sequence[float]) -> list[float]:
    if not rewards or min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    mean = fmean(rewards)
    return [reward - mean for reward in rewards]


def _normalised(rewards: Sequence[float]) -> list[float]:
    centred = _centred(rewards)
    if not any(centred):
        return centred
    std = (sum(c * c for c in centred) / (len(centred) - 1)) ** 0.5
    return [c / (std + STD_EPSILON) for c in centred]


def _left_out(rewards: Sequence[float]) -> list[float]:
    centred = _centred(rewards)
    return [c * len(centred) / (len(centred) - 1) for c in centred] if any(centred) else centred


ESTIMATORS = Registry[Estimator]("algorithm.estimator", Estimator)
ESTIMATORS.register(
    "group_normalised",
    Estimator(relative=_normalised, about="(R - mean) / std of the group: GRPO", arxiv="2402.03300"),
)
ESTIMATORS.register(
    "group_centred", Estimator(relative=_centred, about="R - mean of the group: Dr. GRPO", arxiv="2503.20783")
)
ESTIMATORS.register(
    "leave_one_out",
    Estimator(relative=_left_out, about="R - mean of the group's others: RLOO", arxiv="2402.14740"),
)
_BATCH = "(R - mean) / std over all POLICY tokens of the batch: REINFORCE++"
ESTIMATORS.register(
    "batch_normalised", Estimator(relative=list, about=_BATCH, arxiv="2501.03262", over_batch=True)
)
_BOTH = "R - mean of the group, then normalised over the batch: REINFORCE++ with baseline"
ESTIMATORS.register(
    "group_centred_batch_normalised",
    Estimator(relative=_centred, about=_BOTH, arxiv="2501.03262", over_batch=True),
)


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
    estimator: str = "group_normalised",
    split_baselines: bool = True,
    feedback: str = "over_solo",
) -> list[Advantage | None]:
    """Return each rollout's advantages, None for UNGRADED ones, which must leave the batch.

    With `split_baselines` a rollout is compared with graded siblings of its own condition only, banned ones
    apart, so that solo failures do not push down what others show [ours]. `over_solo` falls back on the mean
    of all graded rollouts in a group without graded solo members.

    >>> won, lost = Verdict.CORRECT, Verdict.INCORRECT
    >>> with_help, solo = Condition.CONSULTING, Condition.SOLO
    >>> group = [Member(verdict=won, condition=with_help), Member(verdict=lost, condition=with_help),
    ...          Member(verdict=lost, condition=solo), Member(verdict=Verdict.UNGRADED, condition=solo)]
    >>> for advantage in group_advantages(group, estimator="group_centred"):
    ...     print(advantage)
    Advantage(policy=0.5, feedback=1.0)
    Advantage(policy=-0.5, feedback=0.0)
    Advantage(policy=0.0, feedback=0.0)
    None
    """
    graded = [i for i, member in enumerate(group) if member.verdict is not Verdict.UNGRADED]
    reward = {i: reward_of(group[i].verdict, group[i].reward) for i in graded}
    policy: dict[int, float] = {}
    for siblings in _baseline_sets(group, graded, split_baselines):
        relative = group_relative([reward[i] + group[i].penalty for i in siblings], estimator)
        policy.update(zip(siblings, relative, strict=True))
    credit = FEEDBACK_ADVANTAGES[feedback].credit(group, reward, policy)
    return [Advantage(policy[i], credit[i]) if i in reward else None for i in range(len(group))]


def _baseline_sets(group: Sequence[Member], graded: list[int], split: bool) -> list[list[int]]:
    if not split:
        return [graded]
    kinds = [(condition, banned) for condition in Condition for banned in (False, True)]
    return [[i for i in graded if (group[i].condition, group[i].banned) == kind] for kind in kinds]


def _own(group: Sequence[Member], rewards: ByIndex, own: ByIndex) -> ByIndex:
    return dict(own)


def _positive(group: Sequence[Member], rewards: ByIndex, own: ByIndex) -> ByIndex:
    return {i: max(0.0, advantage) for i, advantage in own.items()}


def _over_solo(group: Sequence[Member], rewards: ByIndex, own: ByIndex, banned: bool = False) -> ByIndex:
    solo = [i for i in rewards if group[i].condition is Condition.SOLO and not group[i].expert]
    chosen = [i for i in solo if group[i].banned] if banned else []
    baseline = fmean(rewards[i] for i in chosen or solo or rewards) if rewards else 0.0
    return {i: max(0.0, r - baseline) for i, r in rewards.items()}


def _always(group: Sequence[Member], rewards: ByIndex, own: ByIndex) -> ByIndex:
    return dict.fromkeys(rewards, 1.0)


FEEDBACK_ADVANTAGES = Registry[FeedbackAdvantage]("algorithm.feedback_advantage", FeedbackAdvantage)
_SIGNED = "the rollout's own advantage A in its group, of either sign, before any batch normalisation"
FEEDBACK_ADVANTAGES.register("signed", FeedbackAdvantage(credit=_own, about=_SIGNED))
_UNIT = "the same A; tokens with A < 0 take the weight p of `unit`"
FEEDBACK_ADVANTAGES.register("signed_unit", FeedbackAdvantage(credit=_own, about=_UNIT, unit_below_zero=True))
FEEDBACK_ADVANTAGES.register("positive", FeedbackAdvantage(credit=_positive, about="max(0, A)"))
_HELP = "max(0, R - mean R of the solo siblings): what help added over what the policy can do alone"
FEEDBACK_ADVANTAGES.register("over_solo", FeedbackAdvantage(credit=_over_solo, about=_HELP))
_ALONE = "max(0, R - mean R of the solo siblings that were banned from requests); without any, `over_solo`"
_OVER_BANNED = FeedbackAdvantage(credit=partial(_over_solo, banned=True), about=_ALONE)
FEEDBACK_ADVANTAGES.register("over_banned", _OVER_BANNED)
_ECHO = "1, whatever the reward; with `likelihood` the cross-entropy on the agents' words of ECHO"
FEEDBACK_ADVANTAGES.register("always", FeedbackAdvantage(credit=_always, about=_ECHO))
