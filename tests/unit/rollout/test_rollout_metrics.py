"""A step's metrics from its rollouts: UNGRADED ones are counted apart, and no share is about them."""

import pytest

from aipo.core.types import Condition, Verdict
from aipo.grading import Grade
from aipo.rollout.group import Group, MemberRollout
from aipo.tasks.base import Problem
from aipo.training.metrics import rollout_metrics

WON, LOST, UNGRADED = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNGRADED


def group(*verdicts: Verdict) -> Group:
    members = tuple(
        MemberRollout(id=f"p#{i}", condition=Condition.SOLO, rollout=None, grade=Grade(verdict, ""))
        for i, verdict in enumerate(verdicts)
    )
    return Group(
        problem=Problem(id="p", text="1 + 1", gold="2", stratum="easy"),
        members=members,
        experts=(),
        solo_prompt_ids=(0,),
    )


@pytest.mark.parametrize(
    ("verdicts", "share"),
    [((WON, LOST), 0.0), ((WON, WON), 1.0), ((WON, WON, UNGRADED), 1.0), ((WON, LOST, UNGRADED), 0.0)],
)
def test_a_verdict_that_is_none_gives_a_group_no_variance(
    verdicts: tuple[Verdict, ...], share: float
) -> None:
    assert rollout_metrics([group(*verdicts)])["zero_variance_share"] == share


def test_rewards_are_over_graded_rollouts() -> None:
    metrics = rollout_metrics([group(WON, LOST, UNGRADED, UNGRADED)])
    assert metrics["reward_solo"] == 0.5 and metrics["ungraded_share"] == 0.5
