"""What changes over a run does so with the step's number, from the first value to the last."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aipo.config.loader import load_settings
from aipo.training.schedule import algorithm_at, linear, shape_at


@given(st.floats(0, 1), st.floats(0, 1), st.integers(2, 500))
def test_a_line_begins_and_ends_where_it_should_and_never_turns(start: float, end: float, steps: int) -> None:
    values = [linear(start, end, step, steps) for step in range(1, steps + 1)]
    assert values[0] == start and values[-1] == pytest.approx(end)
    assert values in (sorted(values), sorted(values, reverse=True))


def test_the_floor_and_lambda_move_and_everything_else_stays() -> None:
    settings = load_settings(
        None, ["train.steps=3", "algorithm.floor_end=0.3", "algorithm.feedback_weight_end=0.0"]
    )
    first, middle, last = (algorithm_at(settings, step) for step in (1, 2, 3))
    assert first == settings.algorithm
    assert (middle.floor, last.floor) == pytest.approx((0.2, 0.3))
    assert (middle.feedback_weight, last.feedback_weight) == (0.5, 0.0)
    assert last.model_copy(update={"floor": 0.1, "feedback_weight": 1.0}) == settings.algorithm


def test_the_solo_share_of_a_group_grows() -> None:
    settings = load_settings(
        None, ["train.steps=5", "rollout.solo_fraction=0.25", "rollout.solo_fraction_end=1"]
    )
    shapes = [shape_at(settings, step) for step in range(1, 6)]
    assert [shape.solo for shape in shapes] == [2, 4, 5, 6, 8]
    assert {shape.solo + shape.consulting for shape in shapes} == {8}


def test_without_agents_every_rollout_is_solo() -> None:
    settings = load_settings(None, ["agents.enabled=[]", "rollout.solo_fraction=0.25"])
    assert (shape_at(settings, 1).solo, shape_at(settings, 1).consulting) == (8, 0)


def test_a_share_of_the_solo_rollouts_is_banned_from_asking() -> None:
    settings = load_settings(None, ["rollout.solo_fraction=0.5", "rollout.banned_fraction=0.5"])
    assert (shape_at(settings, 1).solo, shape_at(settings, 1).banned) == (4, 2)
    assert shape_at(load_settings(None, []), 1).banned == 0
