"""Advantages against a short numpy reference, and the laws that they obey.

Shifts, scales, ties, groups of one; UNGRADED is the same as absent; no variance is exactly 0; each condition
has its own baseline; what each rule credits FEEDBACK tokens with.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aipo.core.advantages import (
    ESTIMATORS,
    FEEDBACK_ADVANTAGES,
    STD_EPSILON,
    Advantage,
    Member,
    group_advantages,
    group_relative,
)
from aipo.core.rewards import REWARD
from aipo.core.types import Condition, Verdict

GRADED = [Verdict.CORRECT, Verdict.INCORRECT]
KINDS = [(Condition.CONSULTING, False), (Condition.SOLO, False), (Condition.SOLO, True)]
MEMBERS = st.builds(
    lambda verdict, kind: Member(verdict=verdict, condition=kind[0], banned=kind[1]),
    st.sampled_from(Verdict),
    st.sampled_from(KINDS),
)
GROUPS = st.lists(MEMBERS, max_size=10)
REWARDS = st.lists(st.integers(-40, 40).map(lambda eighths: eighths / 8), max_size=10)
RULES = st.sampled_from(list(FEEDBACK_ADVANTAGES))
ESTIMATOR_NAMES = st.sampled_from(list(ESTIMATORS))
BASELINES = st.sampled_from([each for each in ESTIMATORS if each != "batch_normalised"])
"""Those that compare within the group."""
CENTRED, NORMALISED = "group_centred", "group_normalised"
quiet = settings(deadline=None)


def compared(rewards: Sequence[float], estimator: str) -> Callable[[float], float]:
    """The reference for one baseline: the papers' formulas in numpy, as a function of a member's reward."""
    values = np.array(rewards)
    if estimator == "batch_normalised":
        return lambda reward: reward
    if values.size == 0 or np.ptp(values) == 0:
        return lambda _: 0.0
    if estimator == "leave_one_out":
        return lambda reward: float(reward - (np.sum(values) - reward) / (values.size - 1))
    scale = np.std(values, ddof=1) + 1e-6 if estimator is NORMALISED else 1.0
    return lambda reward: float((reward - np.mean(values)) / scale)


def kind_of(member: Member) -> tuple[Condition, bool]:
    """Whose siblings a member's reward is compared with."""
    return member.condition, member.banned


def reference(
    group: Sequence[Member], estimator: str, split: bool, rule: str
) -> list[tuple[float, float] | None]:
    """The whole of `group_advantages`, member by member."""
    graded = [m for m in group if m.verdict in GRADED]
    solo = [m for m in graded if m.condition is Condition.SOLO and not m.expert] or graded
    result: list[tuple[float, float] | None] = []
    for member in group:
        if member.verdict not in GRADED:
            result.append(None)
            continue
        reward = float(member.verdict is Verdict.CORRECT)
        siblings = [m for m in graded if not split or kind_of(m) == kind_of(member)]
        policy = compared([float(m.verdict is Verdict.CORRECT) for m in siblings], estimator)(reward)
        helped = reward - float(np.mean([m.verdict is Verdict.CORRECT for m in solo]))
        banned = [m for m in graded if m.banned] or solo
        needed = reward - float(np.mean([m.verdict is Verdict.CORRECT for m in banned]))
        feedback = {
            "signed": policy,
            "signed_unit": policy,
            "positive": max(policy, 0.0),
            "over_solo": max(helped, 0.0),
            "over_banned": max(needed, 0.0),
            "always": 1.0,
        }[rule]
        result.append((policy, feedback))
    return result


@quiet
@given(GROUPS, ESTIMATOR_NAMES, st.booleans(), RULES)
def test_a_reward_equal_to_the_verdict_changes_nothing(
    group: list[Member], estimator: str, split: bool, rule: str
) -> None:
    same = [replace(m, reward=REWARD.get(m.verdict)) for m in group]
    how: dict[str, Any] = {"estimator": estimator, "split_baselines": split, "feedback": rule}
    assert group_advantages(same, **how) == group_advantages(group, **how)


@quiet
@given(st.lists(st.tuples(MEMBERS, st.integers(-16, 16)), max_size=10), ESTIMATOR_NAMES)
def test_graded_rewards_take_the_place_of_verdicts(group: list[tuple[Member, int]], estimator: str) -> None:
    rewarded = [replace(member, reward=eighths / 8) for member, eighths in group]
    found = group_advantages(rewarded, estimator=estimator, split_baselines=False, feedback="signed")
    graded = [float(m.reward or 0) for m in rewarded if m.verdict in GRADED]
    expected = compared(graded, estimator)
    for member, advantage in zip(rewarded, found, strict=True):
        if member.verdict not in GRADED:
            assert advantage is None  # a reward beside UNGRADED counts for nothing
        else:
            assert advantage is not None
            assert advantage.policy == pytest.approx(expected(float(member.reward or 0)), abs=1e-9)


def members(letters: str) -> list[Member]:
    """C, I, U: consulting and correct, incorrect, ungraded; lower case: solo."""
    verdict = dict(zip("ciu", Verdict, strict=True))
    condition = {True: Condition.CONSULTING, False: Condition.SOLO}
    return [
        Member(verdict=verdict[letter.lower()], condition=condition[letter.isupper()]) for letter in letters
    ]


def policy(group: Sequence[Member], split: bool = True, estimator: str = NORMALISED) -> list[float | None]:
    result = group_advantages(group, split_baselines=split, estimator=estimator)
    return [None if advantage is None else advantage.policy for advantage in result]


@quiet
@given(GROUPS, ESTIMATOR_NAMES, st.booleans(), RULES)
def test_agrees_with_numpy(group: list[Member], estimator: str, split: bool, rule: str) -> None:
    result = group_advantages(group, estimator=estimator, split_baselines=split, feedback=rule)
    expected = reference(group, estimator, split, rule)
    assert len(result) == len(group)
    for got, wanted in zip(result, expected, strict=True):
        if wanted is None:
            assert got is None
        else:
            assert got is not None
            assert (got.policy, got.feedback) == pytest.approx(wanted, abs=1e-12)


@quiet
@given(REWARDS, ESTIMATOR_NAMES)
def test_any_rewards_agree_with_numpy(rewards: list[float], estimator: str) -> None:
    formula = compared(rewards, estimator)
    wanted = [formula(reward) for reward in rewards]
    assert group_relative(rewards, estimator) == pytest.approx(wanted, abs=1e-12)


@quiet
@given(REWARDS, st.integers(-80, 80), BASELINES)
def test_a_reward_added_to_all_changes_nothing(rewards: list[float], eighths: int, estimator: str) -> None:
    shifted = [reward + eighths / 8 for reward in rewards]
    assert group_relative(shifted, estimator) == pytest.approx(group_relative(rewards, estimator), abs=1e-9)


@quiet
@given(REWARDS, st.floats(0.1, 50.0), st.booleans(), ESTIMATOR_NAMES)
def test_a_factor_on_all_rewards_is_a_factor_without_the_std_and_nothing_with_it(
    rewards: list[float], factor: float, negative: bool, estimator: str
) -> None:
    sign = -1.0 if negative else 1.0
    scaled = group_relative([sign * factor * reward for reward in rewards], estimator)
    if estimator is NORMALISED:  # 1e-6 is added to standard deviations of at least 0.1 * 0.125 / sqrt(10)
        same = [sign * a for a in group_relative(rewards, estimator)]
        assert scaled == pytest.approx(same, rel=1e-3, abs=1e-9)
    else:
        plain = [sign * factor * a for a in group_relative(rewards, estimator)]
        assert scaled == pytest.approx(plain, rel=1e-9, abs=1e-9)


@quiet
@given(REWARDS, BASELINES)
def test_advantages_sum_to_zero_and_normalised_ones_have_unit_sample_deviation(
    rewards: list[float], estimator: str
) -> None:
    assume(len(set(rewards)) > 1)
    relative = group_relative(rewards, estimator)
    assert sum(relative) == pytest.approx(0.0, abs=1e-9)
    if estimator is NORMALISED:
        assert np.std(relative, ddof=1) == pytest.approx(1.0, abs=1e-4)


@quiet
@given(REWARDS, ESTIMATOR_NAMES)
def test_ties_stay_ties_and_more_reward_is_more_advantage(rewards: list[float], estimator: str) -> None:
    relative = group_relative(rewards, estimator)
    for first, a in zip(rewards, relative, strict=True):
        for second, b in zip(rewards, relative, strict=True):
            assert (a == b) if first == second else (a < b) == (first < second)


@quiet
@given(st.floats(-1e6, 1e6), st.integers(0, 8), BASELINES)
def test_equal_rewards_and_a_group_of_one_give_exactly_zero(reward: float, more: int, estimator: str) -> None:
    assert group_relative([reward] * more, estimator) == [0.0] * more
    assert group_relative([reward], estimator) == [0.0]
    assert group_relative([reward], "batch_normalised") == [reward]


@quiet
@given(GROUPS, ESTIMATOR_NAMES, st.booleans(), RULES)
def test_an_ungraded_rollout_is_as_if_it_had_never_been_sampled(
    group: list[Member], estimator: str, split: bool, rule: str
) -> None:
    def result(of: list[Member]) -> list[Advantage | None]:
        return group_advantages(of, estimator=estimator, split_baselines=split, feedback=rule)

    graded = [member for member in group if member.verdict is not Verdict.UNGRADED]
    assert [a for a in result(group) if a is not None] == result(graded)
    assert [a is None for a in result(group)] == [m.verdict is Verdict.UNGRADED for m in group]


def test_an_ungraded_rollout_has_no_reward() -> None:
    with pytest.raises(KeyError):
        REWARD[Verdict.UNGRADED]
    assert group_advantages(members("UuU")) == [None] * 3
    assert group_advantages([]) == []


@quiet
@given(GROUPS, BASELINES)
def test_a_condition_without_variance_gets_exactly_zero(group: list[Member], estimator: str) -> None:
    for kind in KINDS:
        own = [m.verdict for m in group if kind_of(m) == kind and m.verdict is not Verdict.UNGRADED]
        if len(set(own)) < 2:
            given_to = zip(group, policy(group, estimator=estimator), strict=True)
            assert all(a in (None, 0.0) for m, a in given_to if kind_of(m) == kind)
    graded = {m.verdict for m in group} - {Verdict.UNGRADED}
    if len(graded) < 2:
        assert all(a in (None, 0.0) for a in policy(group, split=False, estimator=estimator))


@quiet
@given(GROUPS, GROUPS, ESTIMATOR_NAMES)
def test_with_split_baselines_the_other_condition_does_not_matter(
    group: list[Member], others: list[Member], estimator: str
) -> None:
    for kind in KINDS:
        own = [m for m in group if kind_of(m) == kind]
        other = [m for m in others if kind_of(m) != kind]
        assert policy(own + other, estimator=estimator)[: len(own)] == policy(
            own, split=False, estimator=estimator
        )


def test_without_the_split_solo_failures_count_and_with_it_they_do_not() -> None:
    assert policy(members("CIii"), split=False, estimator=CENTRED) == [0.75, -0.25, -0.25, -0.25]
    assert policy(members("CIii"), split=True, estimator=CENTRED) == [0.5, -0.5, 0.0, 0.0]


def test_the_defaults_split_normalise_and_credit_what_help_added() -> None:
    half = 0.5 / (0.5**0.5 + STD_EPSILON)
    assert group_advantages(members("CIUic")) == [
        Advantage(half, 0.5),
        Advantage(-half, 0.0),
        None,
        Advantage(-half, 0.0),
        Advantage(half, 0.5),
    ]


@quiet
@given(GROUPS, ESTIMATOR_NAMES, st.booleans())
def test_signed_is_the_advantage_and_positive_is_its_positive_part(
    group: list[Member], estimator: str, split: bool
) -> None:
    for rule in ("signed", "signed_unit", "positive"):
        for a in group_advantages(group, estimator=estimator, split_baselines=split, feedback=rule):
            if a is not None:
                positive = rule == "positive"
                assert a.feedback == (max(0.0, a.policy) if positive else a.policy)


@quiet
@given(GROUPS, ESTIMATOR_NAMES, st.booleans())
def test_over_solo_is_what_help_added_and_never_negative(
    group: list[Member], estimator: str, split: bool
) -> None:
    result = group_advantages(group, estimator=estimator, split_baselines=split)
    solo = [m.verdict for m in group if m.condition is Condition.SOLO and m.verdict is not Verdict.UNGRADED]
    for member, a in zip(group, result, strict=True):
        if a is None:
            continue
        if member.verdict is Verdict.INCORRECT:
            assert a.feedback == 0.0
        elif solo:
            assert a.feedback == pytest.approx(solo.count(Verdict.INCORRECT) / len(solo), abs=1e-12)


@pytest.mark.parametrize("group", ["CIII", "CIIIuu"])
def test_over_solo_falls_back_on_all_graded_rollouts_without_graded_solo_members(group: str) -> None:
    result = group_advantages(members(group))
    assert [a.feedback for a in result if a is not None] == [0.75, 0.0, 0.0, 0.0]
