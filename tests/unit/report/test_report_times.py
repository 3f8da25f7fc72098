"""The seconds of each consultation, as training writes them and the report reads them."""

from dataclasses import replace

from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import VERIFY, Condition, ConsultOutcome, Source, StopReason, Verdict
from aipo.grading import Grade
from aipo.rollout.episode import Consultation, Rollout
from aipo.rollout.group import Group, MemberRollout
from aipo.rollout.records import consultation_times
from aipo.tasks.base import Problem


def asked(*seconds: float) -> Rollout:
    stream = TokenStream((Segment(Source.PROMPT, (1,)), Segment(Source.POLICY, (2,), (-1.0,))))
    one = Consultation(
        agent=VERIFY,
        request="",
        outcome=ConsultOutcome.ANSWERED,
        reply="ok",
        reply_tokens=1,
        detail="",
        context="",
        latency_s=0.0,
    )
    consultations = tuple(replace(one, latency_s=s) for s in seconds)
    return Rollout(
        stream=stream,
        response="",
        policy_text="",
        stop=StopReason.END,
        consultations=consultations,
        consult_spans=(),
    )


def group(problem: str, *rollouts: Rollout | None) -> Group:
    grade = Grade(Verdict.CORRECT, "")
    members = [
        MemberRollout(id=f"{problem}#{i}", condition=Condition.CONSULTING, rollout=r, grade=grade)
        for i, r in enumerate(rollouts)
    ]
    return Group(problem=Problem(id=problem, text="", gold=""), members=tuple(members))


def test_each_rollout_has_its_own_in_the_order_of_asking() -> None:
    groups = [group("p", asked(0.5, 0.25), asked(), None), group("q", asked(1.0))]
    assert consultation_times(groups) == {"p#0": [0.5, 0.25], "q#0": [1.0]}


def test_a_problem_drawn_twice_in_a_step_has_none_rather_than_a_siblings() -> None:
    assert consultation_times([group("p", asked(0.5)), group("p", asked(0.1)), group("q", asked(1.0))]) == {
        "q#0": [1.0]
    }
