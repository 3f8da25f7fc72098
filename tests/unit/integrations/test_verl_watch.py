"""Too many failures stop a run on verl before anything is learnt, and its numbers are means over tokens."""

from dataclasses import replace

import pytest

from aipo.config.settings import TrainSettings
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Condition, ConsultOutcome, Source, StopReason, Verdict
from aipo.grading import Grade
from aipo.integrations.verl.about import member_of, table_of
from aipo.integrations.verl.watch import StepRefusedError, refuse_failing, token_metrics
from aipo.rollout.episode import Consultation, Rollout
from aipo.rollout.group import Group, MemberRollout
from aipo.rollout.reward import WeighedGrade
from aipo.tasks.base import Problem

STREAM = TokenStream((Segment(Source.PROMPT, (1,)), Segment(Source.POLICY, (2,), (-0.5,))))
ASKED = Consultation(
    agent="verify",
    request="?",
    outcome=ConsultOutcome.ANSWERED,
    reply="!",
    reply_tokens=5,
    detail="",
    context="c",
    latency_s=0.1,
)
WON = MemberRollout(
    id="p#0",
    condition=Condition.CONSULTING,
    rollout=Rollout(
        stream=STREAM,
        response="a",
        policy_text="a",
        stop=StopReason.END,
        consultations=(ASKED,),
        consult_spans=((1, 2),),
    ),
    grade=Grade(Verdict.CORRECT, ""),
)
LOST = replace(WON, condition=Condition.SOLO, grade=Grade(Verdict.INCORRECT, "wrong"))
UNGRADED = replace(WON, rollout=None, grade=Grade(Verdict.UNGRADED, "the server died"))
assert WON.rollout is not None
TIMEOUT = replace(ASKED, outcome=ConsultOutcome.TIMEOUT, detail="no answer")
FAILED = replace(WON, rollout=replace(WON.rollout, consultations=(TIMEOUT,)))
LIMITS = TrainSettings()


def groups(*members: MemberRollout) -> list[Group]:
    return [Group(problem=Problem(id="p", text="?", gold="!"), members=tuple(members))]


def test_too_many_ungraded_rollouts_stop_the_run_with_the_reason() -> None:
    refuse_failing(groups(*[LOST] * 19, UNGRADED), LIMITS, 1)
    with pytest.raises(StepRefusedError, match="step 1: 10% of the rollouts.*the server died"):
        refuse_failing(groups(*[LOST] * 18, *[UNGRADED] * 2), LIMITS, 1)


def test_too_many_failed_consultations_stop_the_run_unless_they_are_few() -> None:
    refuse_failing(groups(*[FAILED] * 19), LIMITS, 1)
    refuse_failing(groups(*[FAILED] * 10, *[WON] * 10), LIMITS, 1)
    with pytest.raises(StepRefusedError, match="(?s)11 of 20 consultations failed.*verify.*no answer"):
        refuse_failing(groups(*[FAILED] * 11, *[WON] * 9), LIMITS, 1)


def test_means_over_tokens_come_from_the_sums_of_all_microbatches() -> None:
    sums = {"policy_tokens": 8.0, "ratio": 8.4, "clipped": 2.0, "feedback_tokens": 0.0, "feedback_p": 0.0}
    assert token_metrics(sums) == {
        "aipo/ratio_mean": 1.05,
        "aipo/clip_fraction": 0.25,
        "aipo/policy_tokens": 8.0,
        "aipo/feedback_tokens": 0.0,
    }


def test_what_is_known_of_a_rollout_survives_its_table() -> None:
    weighed = replace(WON, grade=WeighedGrade(Verdict.CORRECT, "", 0.5, parts=(("brevity", 0.5),)))
    for member in (WON, LOST, UNGRADED, FAILED, weighed):
        assert member_of(table_of(member), "p#0", STREAM) == member
