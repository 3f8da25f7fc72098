"""Credit on verl's driver: who has no verdict changes nothing, and every row is in one mini-batch."""

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from aipo.core.types import Source
from aipo.grading import Grade
from aipo.rollout.group import Group
from support.verl_batches import LOST, UNGRADED, WON, Batch, batch_of, plugin_parts, recipe
from support.verl_batches import settings as algorithm

seeds = st.integers(0, 10_000)
names = st.sampled_from(["dapo", "grpo", "rloo", "reinforce_plus_plus"])


def numbers(of: Batch, name: str) -> dict[str, tuple[float, float, float]]:
    """Return weight and advantages of each stream."""
    parts, streams = plugin_parts(of, recipe(algorithm(name, "floored"), 1))
    return {
        streams[id(c.row.stream)]: (c.row.weight, c.row.advantage.policy, c.row.advantage.feedback)
        for part in parts
        for c in part
    }


def with_a_lost_one(group: Group) -> Group:
    lost = replace(group.members[0], id=f"{group.problem.id}#9", grade=Grade(UNGRADED, "lost"))
    assert lost.rollout is not None
    own_stream = replace(lost.rollout, stream=replace(lost.rollout.stream))
    return replace(group, members=(*group.members, replace(lost, rollout=own_stream)))


@given(seeds, names)
@settings(max_examples=60, deadline=None)
def test_rollouts_without_a_verdict_change_nothing_and_have_no_row(seed: int, name: str) -> None:
    of = batch_of(seed)
    assert numbers(Batch(seed, list(map(with_a_lost_one, of.groups))), name) == numbers(of, name)


@given(seeds, names, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_every_graded_rollout_is_in_one_minibatch_with_its_group(seed: int, name: str, number: int) -> None:
    of = batch_of(seed, verdicts=(WON, LOST, UNGRADED), experts=1)
    parts, streams = plugin_parts(of, recipe(algorithm(name, "floored"), number))
    found = [streams[id(c.row.stream)] for part in parts for c in part]
    graded = {m.id for g in of.groups for m in g.members if m.grade.verdict is not UNGRADED}
    assert len(found) == len(set(found)) and graded <= set(found)
    for part in parts:
        mine = {
            streams[id(c.row.stream)].removeprefix("copy of ").replace("/", "#").split("#")[0] for c in part
        }
        others = [c for other in parts if other is not part for c in other]
        rest = {
            streams[id(c.row.stream)].removeprefix("copy of ").replace("/", "#").split("#")[0] for c in others
        }
        assert mine.isdisjoint(rest)


@given(seeds, names)
@settings(max_examples=60, deadline=None)
def test_what_nobody_sampled_has_a_row_only_where_it_teaches(seed: int, name: str) -> None:
    of = batch_of(seed, experts=1)
    parts, _ = plugin_parts(of, recipe(algorithm(name, "floored"), 1))
    for credit in (c for part in parts for c in part):
        if not credit.row.stream.count(Source.POLICY):
            assert credit.row.advantage.feedback != 0 and credit.row.weight > 0
        if credit.is_copy:
            assert credit.reward == 0.0 and credit.baseline == "none"


@given(seeds, names)
@settings(max_examples=40, deadline=None)
def test_the_order_of_groups_changes_no_credit(seed: int, name: str) -> None:
    of = batch_of(seed)
    shuffled = list(of.groups)
    Random(seed).shuffle(shuffled)
    here, there = numbers(of, name), numbers(Batch(seed, shuffled), name)
    assert here.keys() == there.keys()
    for key, values in here.items():
        assert all(abs(a - b) < 1e-9 for a, b in zip(values, there[key], strict=True))
