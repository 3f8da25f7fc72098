"""Credit on verl's driver: UNGRADED and padding rows change nothing, however rows are ordered and cut."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from aipo.core.advantages import ESTIMATORS, FEEDBACK_ADVANTAGES, Member, group_advantages
from aipo.core.batch import AGGREGATIONS
from aipo.core.types import Condition, Verdict
from aipo.integrations.verl.credit import RowFacts, credits_of, minibatches_of
from aipo.integrations.verl.estimators import advantages
from aipo.integrations.verl.plan import Plan

row = st.builds(
    RowFacts,
    group=st.sampled_from("abc"),
    verdict=st.sampled_from(Verdict),
    condition=st.sampled_from(Condition),
    policy_tokens=st.integers(1, 9),
    feedback_tokens=st.integers(0, 5),
    response_tokens=st.integers(9, 20),
)
rows = st.lists(row, min_size=1, max_size=16)
plans = st.builds(
    Plan,
    estimator=st.sampled_from(list(ESTIMATORS)),
    aggregation=st.sampled_from(list(AGGREGATIONS)),
    feedback_advantage=st.sampled_from(list(FEEDBACK_ADVANTAGES)),
    split_baselines=st.booleans(),
    max_response_tokens=st.just(20),
    overlong_buffer_tokens=st.sampled_from([0, 8]),
)


def one_step(found: Sequence[RowFacts]) -> list[list[int]]:
    return [list(range(len(found)))]


@given(rows, plans)
@settings(max_examples=150, deadline=None)
def test_rows_that_do_not_count_change_nothing(found: list[RowFacts], plan: Plan) -> None:
    counted = [each for each in found if each.counts]
    padded = [*found, replace(found[0], padding=True)]
    with_all = credits_of(padded, one_step(padded), plan)
    alone = credits_of(counted, one_step(counted), plan)
    assert [c for c, each in zip(with_all, padded, strict=True) if each.counts] == alone
    for credit, each in zip(with_all, padded, strict=True):
        if not each.counts:
            assert (credit.weight, credit.feedback, credit.siblings) == (0.0, 0.0, 0)


@given(rows, plans)
@settings(max_examples=150, deadline=None)
def test_policy_advantages_through_verls_registry_are_those_of_core(
    found: list[RowFacts], plan: Plan
) -> None:
    """The estimators see names and masks; `core` sees verdicts and conditions."""
    if ESTIMATORS[plan.estimator].over_batch:
        return
    credits = credits_of(found, one_step(found), plan)
    rewards = [
        float(each.verdict is Verdict.CORRECT) + c.penalty for each, c in zip(found, credits, strict=True)
    ]
    tokens = [each.policy_tokens if each.counts else 0 for each in found]
    given_ = advantages(rewards, tokens, [c.baseline for c in credits], plan.estimator)
    for name in "abc":
        at = [i for i, each in enumerate(found) if each.group == name]
        members = [
            Member(verdict=found[i].verdict, condition=found[i].condition, penalty=credits[i].penalty)
            for i in at
        ]
        wanted = group_advantages(
            members,
            estimator=plan.estimator,
            split_baselines=plan.split_baselines,
            feedback=plan.feedback_advantage,
        )
        for index, advantage in zip(at, wanted, strict=True):
            assert given_[index] == (advantage.policy if advantage else 0.0)
            assert credits[index].feedback == (advantage.feedback if advantage else 0.0)


@given(rows, plans, st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_the_order_of_rows_changes_no_credit(found: list[RowFacts], plan: Plan, seed: int) -> None:
    order = list(range(len(found)))
    Random(seed).shuffle(order)
    shuffled = [found[i] for i in order]
    here, there = credits_of(found, one_step(found), plan), credits_of(shuffled, one_step(found), plan)
    for place, index in enumerate(order):
        a, b = here[index], there[place]
        assert abs(a.weight - b.weight) < 1e-12 and abs(a.feedback - b.feedback) < 1e-9
        assert a.siblings == b.siblings and a.penalty == b.penalty


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_every_row_is_in_exactly_one_step(ranks: int, of_rank: int, steps: int) -> None:
    size = ranks * of_rank
    parts = minibatches_of(size * steps, size, ranks)
    assert sorted(i for part in parts for i in part) == list(range(size * steps))
    assert {len(part) for part in parts} == {size}
