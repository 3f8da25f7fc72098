"""`task.name = "verifiers"`: an environment in a Python of its own, and the protocol with a stand-in."""

import asyncio
import stat
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from aipo.assembly.parts import build_task
from aipo.config.settings import TaskSettings
from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.tasks.base import Problem, Split, TaskError
from aipo.tasks.verifiers import VerifiersTask
from support.verifiers_python import ENVIRONMENTS, REAL, needs_verifiers


def environment(timeout_s: float = 20.0, **options: str | int | float | bool) -> VerifiersTask:
    given = {"environment": "small-sums", "interpreter": REAL, "module_path": str(ENVIRONMENTS)}
    settings = TaskSettings(name="verifiers", options={**given, **options}, reward_timeout_s=timeout_s)
    task = build_task(settings)
    assert isinstance(task, VerifiersTask)
    return task


def grade(task: VerifiersTask, problem: Problem, response: str) -> Grade:
    return asyncio.run(task.grade(problem, response))


@pytest.fixture(scope="module")
def sums() -> Iterator[VerifiersTask]:
    with closing(environment()) as task:
        yield task


@needs_verifiers
def test_rows_are_problems_with_the_environments_own_prompt(sums: VerifiersTask) -> None:
    train, validation, test = (sums.problems(split) for split in Split)
    assert len(test) == 5 and len(train) + len(validation) == 245 and 2 <= len(validation) <= 30
    assert not {p.text for p in train} & {p.text for p in (*validation, *test)}
    first = test[0]
    assert first.turns == (("system", "Be short."), ("user", "What is 1 + 1?"))
    assert first.gold == "2" and first.row["info"] == {"most": 20}
    assert sums.without_answer(first, "It is 2.") == "It is …."


@needs_verifiers
def test_the_rubrics_weighted_sum_is_the_reward(sums: VerifiersTask) -> None:
    first = sums.problems(Split.TEST)[0]
    short, long = grade(sums, first, "2"), grade(sums, first, "After some thought it is 2")
    assert (short.reward, long.reward) == (1.5, 1.0)
    assert (
        short.verdict is long.verdict is Verdict.CORRECT
        and long.reason == "rubric: right 1, short 0, num_turns 1"
    )
    assert grade(sums, first, "3") == Grade(Verdict.INCORRECT, "rubric: right 0, short 1, num_turns 1", 0.5)
    with closing(environment(right_from=1.5, kind="group", evaluated=False)) as strict:
        with pytest.raises(TaskError, match="has no test rows; take another split"):
            strict.problems(Split.TEST)
        first = strict.problems(Split.TRAIN)[0]
        assert grade(strict, first, first.gold).verdict is Verdict.CORRECT
        assert grade(strict, first, f"After some thought it is {first.gold}").verdict is Verdict.INCORRECT


@needs_verifiers
def test_a_reward_function_that_raises_hangs_or_leaves_is_ungraded_and_the_next_is_scored(
    sums: VerifiersTask,
) -> None:
    first = sums.problems(Split.TEST)[0]
    raised = grade(sums, first, "boom")
    assert raised == Grade(Verdict.UNGRADED, "rubric: right: ValueError: no such sum")
    left = grade(sums, first, "leave")
    assert left.verdict is Verdict.UNGRADED and "exit code 3" in left.reason
    with closing(environment(timeout_s=2.0)) as hasty:
        first = hasty.problems(Split.TEST)[0]
        assert grade(hasty, first, "hang").reason == "rubric: no reply within 2 s"
        assert grade(hasty, first, "2").reward == 1.5  # in a new process, whose start is not its time


@needs_verifiers
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kind": "tools"}, "it is a ToolEnv: .*only a SingleTurnEnv is read"),
        ({"kind": "together"}, "scores several rollouts together"),
        ({"environment": "no-such"}, "Could not import 'no-such'"),
        ({"no_such": 1}, "unexpected keyword argument 'no_such'"),
    ],
)
def test_what_cannot_be_read_is_one_error(options: dict[str, str | int], reason: str) -> None:
    with pytest.raises(TaskError, match=f"task.options.environment = .* cannot be loaded: .*{reason}"):
        environment(**options).problems(Split.TRAIN)


@pytest.mark.parametrize("interpreter", ["", "/no/such/python", "/bin/false"])
def test_without_the_library_the_error_says_how_to_install_it(interpreter: str) -> None:
    with pytest.raises(TaskError, match=r"pip install 'verifiers<0.2'"):
        environment(interpreter=interpreter).problems(Split.TRAIN)
    with pytest.raises(TaskError, match=r"needs the name of an environment"):
        environment(environment="")


STAND_IN = """#!{python}
import json, sys
print(json.dumps({{"ready": {{}}}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "rows":
        rows = {test_rows}
        if asked["split"] == "train":
            rows = [{{"prompt": [{{"role": "user", "content": f"{{n}}?"}}], "answer": n}} for n in range(230)]
        said = {{"rows": rows[asked["start"]:asked["start"] + asked["count"]], "total": len(rows)}}
        print(json.dumps(said), flush=True)
    else:
        print({replies}[asked["completion"]], flush=True)
"""


def stand_in(folder: Path, test_rows: str = "[]") -> VerifiersTask:
    """A process that speaks the protocol and nothing else."""
    replies = {
        "fine": '{"reward": 0.25, "metrics": {"a": 1}}',
        "nan": '{"reward": NaN, "metrics": {}}',
        "none": '{"reward": null, "metrics": {}}',
        "text": "Traceback (most recent call last):",
        "list": "[1]",
        "endless": "[" * 200_000,
    }
    path = folder / "python"
    path.write_text(STAND_IN.format(python=sys.executable, replies=repr(replies), test_rows=test_rows))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return environment(interpreter=str(path))


def test_the_protocol_carries_rows_in_parts_and_bad_replies_are_ungraded(tmp_path: Path) -> None:
    with closing(stand_in(tmp_path)) as task:
        problems = [*task.problems(Split.TRAIN), *task.problems(Split.VALIDATION)]
        assert sorted(int(p.gold) for p in problems) == list(range(230))
        assert grade(task, problems[0], "fine") == Grade(Verdict.INCORRECT, "rubric: a 1", 0.25)
        for said, reason in {"nan": "nan is no reward", "none": "None is no reward", "text": "is no reply",
                             "list": "is no reply", "endless": "is no reply"}.items():  # fmt: skip
            found = grade(task, problems[0], said)
            assert found.verdict is Verdict.UNGRADED and reason in found.reason, found
            assert len(found.reason) <= 300
        assert grade(task, problems[0], "fine").reward == 0.25


def test_a_prompt_that_is_no_conversation_of_text_names_the_row(tmp_path: Path) -> None:
    row = '[{"prompt": [{"role": "assistant", "content": "hm"}], "answer": ""}]'
    with (
        closing(stand_in(tmp_path, row)) as task,
        pytest.raises(TaskError, match="eval row 0: .*must be the user's"),
    ):
        task.problems(Split.TRAIN)
