"""`task.reward`: what functions see, how their numbers add up, and that their failures are UNGRADED."""

import asyncio
import threading
import time

import pytest

from aipo.config.settings import TaskSettings
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Condition, ConsultOutcome, Source, StopReason, Verdict
from aipo.grading import Grade
from aipo.rollout.episode import Consultation, Rollout
from aipo.rollout.reward import LARGEST, RewardError, RewardRule, finite, parts_of, reward_rule
from aipo.tasks.base import Problem
from support import outside_rewards

OURS = "support.outside_rewards:"
RIGHT = Grade(Verdict.CORRECT, "exact")
PROBLEM = Problem(id="p", text="1 + 1?", gold="2", row={"question": "1 + 1?", "level": 3})
ASKED = Consultation(
    agent="verify", request="so?", outcome=ConsultOutcome.ANSWERED, reply="yes", reply_tokens=1, detail="",
    context="", latency_s=0.0,
)  # fmt: skip
STREAM = TokenStream(
    (
        Segment(Source.PROMPT, (1, 2)),
        Segment(Source.POLICY, (3, 4, 5), (-0.1, -0.1, -0.1)),
        Segment(Source.FEEDBACK, (6, 7)),
        Segment(Source.POLICY, (8,), (-0.1,)),
    )
)
MADE = Rollout(
    stream=STREAM, response="a yes b", policy_text="a b", stop=StopReason.END, consultations=(ASKED,),
    consult_spans=(),
)  # fmt: skip


def rule(*names: str, timeout_s: float = 5.0, threshold: float | None = None, **weights: float) -> RewardRule:
    table = {OURS + name: weights.get(name, 1.0) if name in weights else 1.0 for name in names}
    table |= {name: weight for name, weight in weights.items() if name == "verdict"}
    made = reward_rule(TaskSettings(reward=table, reward_timeout_s=timeout_s, reward_threshold=threshold))
    assert made is not None
    return made


def graded(made: RewardRule, grade: Grade = RIGHT) -> Grade:
    return asyncio.run(made.grade(PROBLEM, MADE, Condition.CONSULTING, grade))


def test_a_reward_sees_the_response_the_row_and_the_rollout() -> None:
    outside_rewards.SEEN.clear()
    graded(rule("spread"))
    ((response, row, rollout),) = outside_rewards.SEEN
    assert response == "a b" and rollout.response == "a yes b"
    assert row["level"] == 3 and row["answer"] == "2" and row["problem"] == "1 + 1?"
    assert (rollout.tokens, rollout.policy_tokens, rollout.feedback_tokens) == (6, 4, 2)
    assert rollout.consultations == (ASKED,) and rollout.verdict is Verdict.CORRECT
    assert rollout.condition is Condition.CONSULTING and rollout.stop is StopReason.END


def test_several_are_weighed_and_added_up_and_the_verdict_stays() -> None:
    grade = graded(rule("brevity", "half", half=2.0, verdict=-1.0))
    assert grade.verdict is Verdict.CORRECT and grade.reason == "exact"
    assert grade.reward == pytest.approx((1 - 0.04 - 1) + 2 * 0.5 - 1)
    assert [name for name, _ in parts_of(grade)] == [OURS + "brevity", OURS + "half", "verdict"]


def test_the_built_in_reward_is_the_verdict() -> None:
    for verdict, reward in ((Verdict.CORRECT, 1.0), (Verdict.INCORRECT, 0.0)):
        assert graded(rule(verdict=1.0), Grade(verdict, "")).reward == reward
    lost = Grade(Verdict.UNGRADED, "timeout")
    assert graded(rule(verdict=1.0), lost) == graded(rule("half"), lost) == lost


@pytest.mark.parametrize(("threshold", "verdict"), [(0.5, Verdict.CORRECT), (0.51, Verdict.INCORRECT)])
def test_a_threshold_makes_the_verdict_also_where_the_task_has_none(
    threshold: float, verdict: Verdict
) -> None:
    grade = graded(rule("half", threshold=threshold), Grade(Verdict.UNGRADED, "no gold"))
    assert grade.verdict is verdict and grade.reward == 0.5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none", "it returned None"),
        ("raises", "KeyError('no such column')"),
        ("leaves", "SystemExit(3)"),
        ("nan", "nan is no reward"),
        ("words", "'0.5' is no number"),
        ("cancelled", "CancelledError"),
        ("sleeps", "no number within 0.2 s"),
        ("spins", "no number within 0.2 s"),
        ("waits", "no number within 0.2 s"),
    ],
)
def test_what_is_no_reward_is_ungraded_with_a_reason(name: str, reason: str) -> None:
    begun = time.monotonic()
    grade = graded(rule(name, timeout_s=0.2))
    assert grade.verdict is Verdict.UNGRADED and grade.reward is None
    assert grade.reason.startswith(f"reward: {OURS}{name}: ") and reason in grade.reason
    assert time.monotonic() - begun < 2


def test_a_call_that_hangs_holds_no_other_and_its_thread_ends() -> None:
    before, made = set(threading.enumerate()), rule("spins", timeout_s=0.2)

    async def many() -> list[Grade]:
        return await asyncio.gather(
            *(made.grade(PROBLEM, MADE, Condition.SOLO, RIGHT) for _ in range(4)),
        )

    assert {grade.verdict for grade in asyncio.run(many())} == {Verdict.UNGRADED}
    deadline = time.monotonic() + 5
    while len({thread for thread in threading.enumerate() if thread.name == "reward"} - before) > 1:
        assert time.monotonic() < deadline  # one is left, which waits for the next call
        time.sleep(0.05)


def test_functions_that_are_no_coroutines_run_one_at_a_time() -> None:
    running, most = 0, 0

    def counted(response: str, row: object, rollout: object) -> float:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1
        return 1.0

    made = RewardRule(functions={"counted": counted}, weights={"counted": 1.0}, threshold=None, timeout_s=0.1)

    async def many() -> list[Grade]:
        return await asyncio.gather(
            *(made.grade(PROBLEM, MADE, Condition.SOLO, RIGHT) for _ in range(20)),
        )

    # All of them together take longer than the deadline, which is that of one call.
    assert {grade.reward for grade in asyncio.run(many())} == {1.0} and most == 1
    assert graded(made).reward == 1.0  # from another event loop


@pytest.mark.parametrize("value", [float("inf"), 2 * LARGEST, -2 * LARGEST, [1.0], b"1", None])
def test_numbers_that_no_update_could_use_are_refused(value: object) -> None:
    with pytest.raises(RewardError):
        finite(value)


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    import numpy as np
    import torch

    assert finite(np.float32(0.5)) == finite(torch.tensor(0.5)) == finite(True) - 0.5 == 0.5
