"""A step's numbers on verl are means over graded rollouts, and too many failures stop the run."""

from dataclasses import replace

import pytest

from aipo.core.types import Condition, ConsultOutcome, Verdict
from aipo.integrations.verl.about import About
from aipo.integrations.verl.plan import Plan
from aipo.integrations.verl.watch import StepRefusedError, refuse_failing, rollout_metrics, token_metrics

WON = About(
    verdict=Verdict.CORRECT,
    condition=Condition.CONSULTING,
    outcomes=(ConsultOutcome.ANSWERED,),
    reply_tokens=5,
)
LOST = About(verdict=Verdict.INCORRECT, condition=Condition.SOLO)
UNGRADED = About(verdict=Verdict.UNGRADED, condition=Condition.SOLO, reason="the server died")
FAILED = replace(WON, outcomes=(ConsultOutcome.TIMEOUT,), failures=("verify: no answer",))


def test_an_ungraded_rollout_is_in_no_mean() -> None:
    metrics = rollout_metrics([WON, LOST, UNGRADED])
    assert metrics["aipo/reward_solo"] == 0.0 and metrics["aipo/reward_consulting"] == 1.0
    assert metrics["aipo/ungraded_share"] == pytest.approx(1 / 3)
    assert "aipo/reward_solo" not in rollout_metrics([WON, UNGRADED])
    assert rollout_metrics([]) == {"aipo/rollouts": 0.0}


def test_too_many_ungraded_rollouts_stop_the_run_with_the_reason() -> None:
    refuse_failing([LOST] * 19 + [UNGRADED], Plan(), 1)
    with pytest.raises(StepRefusedError, match="2 of 20 rollouts are UNGRADED.*the server died"):
        refuse_failing([LOST] * 18 + [UNGRADED] * 2, Plan(), 1)


def test_too_many_failed_consultations_stop_the_run_unless_they_are_few() -> None:
    few = Plan(min_consultations_to_stop=20)
    refuse_failing([FAILED] * 19, few, 1)
    refuse_failing([FAILED] * 10 + [WON] * 10, few, 1)
    with pytest.raises(StepRefusedError, match="11 of 20 consultations failed.*verify: no answer"):
        refuse_failing([FAILED] * 11 + [WON] * 9, few, 1)


def test_means_over_tokens_come_from_the_sums_of_all_microbatches() -> None:
    sums = {"policy_tokens": 8.0, "ratio": 8.4, "clipped": 2.0, "feedback_tokens": 0.0, "feedback_p": 0.0}
    assert token_metrics(sums) == {"aipo/ratio_mean": 1.05, "aipo/clip_fraction": 0.25}


def test_what_is_known_of_a_rollout_survives_its_table() -> None:
    for about in (WON, LOST, UNGRADED, FAILED):
        assert About.from_table(about.table()) == about
