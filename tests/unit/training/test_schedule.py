"""What changes over a run does so with the step's number, from the first value to the last."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from aipo.config.loader import load_settings
from aipo.training.schedule import algorithm_at, linear, rate_at, shape_at


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


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.8536, 0.5, 0.1464]),
    ],
)
def test_the_learning_rate_warms_up_and_then_follows_its_schedule(schedule: str, rates: list[float]) -> None:
    train = load_settings(
        None, ["train.steps=6", "train.warmup_steps=2", f"train.learning_rate_schedule={schedule}"]
    ).train
    assert [rate_at(train, updates) for updates in range(6)] == pytest.approx(rates, abs=1e-4)
    assert rate_at(train, 9) == rate_at(train, 5)


def test_transformers_has_the_same_schedules() -> None:
    train = load_settings(None, ["train.steps=40", "train.warmup_steps=0"]).train
    for schedule in ("linear", "cosine"):
        parameter = torch.nn.Parameter(torch.zeros(1))
        theirs = get_scheduler(schedule, torch.optim.SGD([parameter], lr=1.0), 0, 40)
        ours = train.model_copy(update={"learning_rate_schedule": schedule})
        for updates in range(40):
            assert rate_at(ours, updates) == pytest.approx(theirs.get_last_lr()[0])
            theirs.optimizer.step()
            theirs.step()


def test_an_unknown_schedule_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"learning_rate_schedule` = 'cosin' .*did you mean 'cosine'"):
        load_settings(None, ["train.learning_rate_schedule=cosin"])
