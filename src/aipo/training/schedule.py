"""What changes over a run: the learning rate, the floor, lambda, the solo share.

A value depends on the step's number only, so a resumed run has the values of an uninterrupted one; without an
`_end` it never changes. What the learning rate does after its warm-up is one entry of `RATE_SCHEDULES`.
"""

import math
from collections.abc import Callable

from aipo.config.settings import AlgorithmSettings, Settings, TrainSettings
from aipo.core.registry import Registry
from aipo.engines.base import Sampling
from aipo.rollout.group import GroupShape

RATE_SCHEDULES: Registry[Callable[[float], float]] = Registry("train.learning_rate_schedule", callable)
"""From the share of the steps after the warm-up that are done, 0 to below 1, to the share of the rate."""

RATE_SCHEDULES.register("constant", lambda done: 1.0)
RATE_SCHEDULES.register("linear", lambda done: 1.0 - done)
RATE_SCHEDULES.register("cosine", lambda done: (1.0 + math.cos(math.pi * done)) / 2.0)


def linear(start: float, end: float | None, step: int, steps: int) -> float:
    """Return the value at `step`, counted from 1, of a line from `start` (first) to `end` (last step).

    >>> [linear(1.0, 0.0, step, 3) for step in (1, 2, 3)], linear(1.0, None, 3, 3), linear(1.0, 0.0, 1, 1)
    ([1.0, 0.5, 0.0], 1.0, 0.0)
    """
    if end is None:
        return start
    return start + (end - start) * (step - 1) / (steps - 1) if steps > 1 else end


def rate_at(settings: TrainSettings, updates: int) -> float:
    """Return the share of `train.learning_rate` after a number of steps: a line, then the schedule.

    Beyond `train.steps` the schedule stays where it ended, below 1 of its way.
    """
    warm = (updates + 1) / (settings.warmup_steps + 1)
    if warm < 1.0:
        return warm
    whole = max(1, settings.steps - settings.warmup_steps)
    done = min(updates - settings.warmup_steps, whole - 1) / whole
    return RATE_SCHEDULES[settings.learning_rate_schedule](done)


def algorithm_at(settings: Settings, step: int) -> AlgorithmSettings:
    """Return the objective's settings of one step."""
    a, steps = settings.algorithm, settings.train.steps
    return a.model_copy(
        update={
            "floor": linear(a.floor, a.floor_end, step, steps),
            "feedback_weight": linear(a.feedback_weight, a.feedback_weight_end, step, steps),
        }
    )


def shape_at(settings: Settings, step: int) -> GroupShape:
    """Return a training group's shape: without agents every rollout is solo, hence plain RLVR.

    Raises `ValueError` for groups of nothing.
    """
    r = settings.rollout
    if not r.rollouts_per_prompt + r.experts_per_prompt:
        raise ValueError(
            "rollout.rollouts_per_prompt = 0 and rollout.experts_per_prompt = 0 leave nothing to learn from; "
            "make one of them at least 1"
        )
    share = linear(r.solo_fraction, r.solo_fraction_end, step, settings.train.steps)
    solo = round(r.rollouts_per_prompt * share) if settings.agents.enabled else r.rollouts_per_prompt
    return GroupShape(
        consulting=r.rollouts_per_prompt - solo,
        solo=solo,
        experts=r.experts_per_prompt,
        banned=round(solo * r.banned_fraction),
        sampling=Sampling(temperature=r.temperature),
    )
