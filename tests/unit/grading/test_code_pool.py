"""Programs and their tests with sandboxes that are not there: what enters one, and what its outcomes mean."""

import asyncio
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.code import CodePool, grade_program
from aipo.grading.code_check import check
from aipo.grading.code_tests import CodeTests, assert_tests, function_tests, stdin_tests
from aipo.grading.sandbox.base import Backend, Limits, Outcome, Program, Run, Sandbox, SandboxError
from aipo.grading.sandbox.detect import open_sandbox

RIGHT, WRONG, UNKNOWN = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNGRADED
PASSED = Grade(RIGHT, "passed")


def grade(pool: CodePool, program: str, tests: CodeTests) -> Grade:
    return asyncio.run(grade_program(program, tests, pool))


@dataclass
class Scripted:
    """A sandbox that answers as told and remembers what entered it."""

    answers: list[Run]
    seen: list[Program] = field(default_factory=list)
    backend: Backend = Backend.LANDLOCK
    description: str = "scripted"

    def run(self, program: Program, limits: Limits) -> Run:
        self.seen.append(program)
        return self.answers[min(len(self.seen), len(self.answers)) - 1]


def test_expected_values_never_enter_the_sandbox() -> None:
    cases = [{"input": "7", "output": '"gold-1"'}]
    for tests in (
        assert_tests(["assert f(7) == 'gold-1'", "assert f(8) == 'gold-1'"]),
        assert_tests(["assert math.isclose(f(7), 31415926, rel_tol=0.1)"]),
        function_tests(cases, "f"),
        stdin_tests([{"input": "7", "output": "gold-1"}]),
    ):
        sandbox = Scripted([Run(outcome=Outcome.EXITED)])
        check("def f(n): pass", tests, Limits(), sandbox.run)
        assert sandbox.seen
        assert not any(
            "gold-1" in part or "31415926" in part for p in sandbox.seen for part in (p.source, p.stdin)
        )


def test_an_expected_expression_never_meets_the_program() -> None:
    tests = assert_tests(["assert f(7) == sys.getsizeof(7)"])
    sandbox = Scripted([Run(outcome=Outcome.EXITED, stdout=b'{"v": 28}\n')])
    assert check("PROGRAM = 1", tests, Limits(), sandbox.run) == PASSED
    first, second = sandbox.seen
    assert "PROGRAM" in first.source and "getsizeof" not in first.source
    assert "PROGRAM" not in second.source and "getsizeof" in second.source


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (Run(outcome=Outcome.SANDBOX_ERROR, detail="gone"), Grade(UNKNOWN, "sandbox: gone")),
        (Run(outcome=Outcome.SIGNALLED, status=9), Grade(WRONG, "crashed: signal 9")),
        (Run(outcome=Outcome.WALL_LIMIT), Grade(WRONG, "timeout: wall clock")),
        (Run(outcome=Outcome.WALL_LIMIT, kept_waiting_s=99.0), Grade(WRONG, "timeout: wall clock")),
        (Run(outcome=Outcome.CPU_LIMIT), Grade(WRONG, "timeout: CPU")),
        (Run(outcome=Outcome.OUTPUT_LIMIT), Grade(WRONG, "too_much_output")),
        (Run(outcome=Outcome.EXITED), Grade(WRONG, "left_early: 0 of 1 results, exit code 0")),
        (
            Run(outcome=Outcome.EXITED, stdout=b'{"v": 1}\n{"v": 1}\n'),
            Grade(WRONG, "forged_output: too many lines"),
        ),
        (Run(outcome=Outcome.EXITED, stdout=b'{"v": 1}\n'), PASSED),
    ],
)
def test_what_an_outcome_means(run: Run, expected: Grade) -> None:
    sandbox = Scripted([run])
    given = CodePool(sandbox=sandbox)
    assert grade(given, "", assert_tests(["assert f(1) == 1"])) == expected
    starved = run.outcome is Outcome.WALL_LIMIT and run.kept_waiting_s > 0
    repeated = run.outcome in (Outcome.SANDBOX_ERROR, Outcome.SIGNALLED) or starved
    assert len(sandbox.seen) == 1 + repeated == 1 + given.repeated_runs
    given.close()


def test_a_run_that_this_machine_starved_is_repeated_and_counts_as_repeated() -> None:
    sandbox = Scripted(
        [
            Run(outcome=Outcome.WALL_LIMIT, kept_waiting_s=60.0),
            Run(outcome=Outcome.EXITED, stdout=b'{"v": 1}\n'),
        ]
    )
    given = CodePool(sandbox=sandbox)
    assert grade(given, "", assert_tests(["assert f(1) == 1"])) == PASSED
    given.close()


def test_an_expected_expression_that_fails_is_ungraded() -> None:
    sandbox = Scripted(
        [
            Run(outcome=Outcome.EXITED, stdout=b'{"v": 28}\n'),
            Run(outcome=Outcome.EXITED, stdout=b'{"e": "NameError"}\n'),
        ]
    )
    given = check("", assert_tests(["assert f(7) == sys.nothing(7)"]), Limits(), sandbox.run)
    assert (given.verdict, given.reason.split(":")[0]) == (UNKNOWN, "gold")


def test_repetitions_run_alone_and_no_more_programs_run_than_workers() -> None:
    lock, running, most, alone = threading.Lock(), 0, 0, []

    class Busy(Scripted):
        def run(self, program: Program, limits: Limits) -> Run:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
                again = program in self.seen
                self.seen.append(program)
            time.sleep(0.02)
            with lock:
                if again:
                    alone.append(running)
                running -= 1
            return Run(outcome=Outcome.WALL_LIMIT, kept_waiting_s=60.0)

    given = CodePool(workers=3, sandbox=Busy([]))

    async def several() -> list[Grade]:
        tests = assert_tests(["assert f(1) == 1"])
        return list(await asyncio.gather(*(grade_program(f"x = {k}", tests, given) for k in range(9))))

    assert {item.verdict for item in asyncio.run(several())} == {WRONG}
    assert most == 3 and alone == [1] * 9
    given.close()


def test_a_closed_pool_refuses_and_an_empty_one_cannot_be_made() -> None:
    given = CodePool(sandbox=Scripted([]))
    given.close()
    given.close()
    with pytest.raises(RuntimeError, match="closed"):
        grade(given, "", assert_tests(["assert f(1) == 1"]))
    with pytest.raises(ValueError, match="workers = 0"):
        CodePool(workers=0, sandbox=Scripted([]))


def test_a_pool_serves_a_library_that_was_allowed() -> None:
    import numpy

    folder = str(Path(numpy.__file__).parents[1])
    try:
        sandbox: Sandbox = open_sandbox(library_paths=(folder,))
    except SandboxError as error:
        assert "not isolated" not in str(error)  # that is no reason to skip
        print(reason := f"skipped: {error}")
        pytest.skip(reason)
    given = CodePool(sandbox, limits=Limits(memory_mb=4096))
    tests = assert_tests(["assert f(3) == [0, 1, 2]"])
    assert grade(given, "import numpy\nf = lambda n: numpy.arange(n).tolist()", tests) == PASSED
    given.close()


def test_the_sleep_of_all_runs_of_a_program_counts_together() -> None:
    seen: list[float] = []

    def run(program: Program, limits: Limits) -> Run:
        seen.append(limits.wall_s)
        return Run(outcome=Outcome.EXITED, stdout=b"1", slept_s=3.0 if len(seen) < 3 else 0.1)

    tests = stdin_tests([{"input": "", "output": "1"}] * 5)
    assert check("print(1)", tests, Limits(wall_s=10.0), run) == PASSED
    assert seen == [10.0, 7.0, 4.0, 4.0, 4.0]
