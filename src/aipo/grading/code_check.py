"""Tests against a program: what enters the sandbox, what came out, and what that means.

An expected value never enters the sandbox in which the program runs, and only a run whose end is the
program's own doing can be INCORRECT.
"""

import json
import marshal
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.code_tests import Call, CallTests, CodeTests, Comparison, Expected, StdinTests
from aipo.grading.code_values import MalformedValue, decode, matches, parse_lines, same_output
from aipo.grading.sandbox.base import Limits, Outcome, Program, Run

MAX_TOTAL_FACTOR = 10
"""All calls of one process together may take this many times the CPU time of one call."""
SHORT_SLEEP_S = 0.5
"""What a run waits for files and its turn; longer waits of all runs of a program count together."""

_HARNESS = Path(__file__).with_name("harness.py").read_text(encoding="utf-8")
_OUTPUT_SLACK = 1 << 16

Runner = Callable[[Program, Limits], Run]


def check(program: str, tests: CodeTests, limits: Limits, run: Runner) -> Grade:
    """Return the verdict on a program. Never raises for what the program does."""
    try:
        program.encode()
    except UnicodeEncodeError:
        return Grade(Verdict.INCORRECT, "not_text")
    if isinstance(tests, StdinTests):
        return _check_stdin(program, tests, limits, run)
    return _check_calls(program, tests, limits, run)


def _check_stdin(program: str, tests: StdinTests, limits: Limits, run: Runner) -> Grade:
    source, sleep_s = _with_prelude(tests.prelude, program), limits.wall_s
    for index, case in enumerate(tests.cases):
        room = max(limits.output_bytes, 2 * len(case.stdout.encode()) + _OUTPUT_SLACK)
        ended = run(
            Program(source, case.stdin),
            replace(limits, output_bytes=room, wall_s=max(sleep_s, SHORT_SLEEP_S)),
        )
        sleep_s -= ended.slept_s if ended.slept_s > SHORT_SLEEP_S else 0.0
        if (failed := _failure(ended)) is not None:
            return failed if failed.verdict is Verdict.UNGRADED else _at(failed, index)
        if ended.status:
            return Grade(Verdict.INCORRECT, f"crashed: exit code {ended.status}, test {index}")
        if not same_output(ended.stdout, case.stdout):
            return Grade(Verdict.INCORRECT, f"wrong_output: test {index}")
    return Grade(Verdict.CORRECT, "passed")


def _with_prelude(prelude: str, program: str) -> str:
    # exec keeps the program's own line numbers and its `from __future__` imports.
    # As in LiveCodeBench's runner, what a program printed counts, not the code that it asked to leave with.
    return (
        f"exec({prelude!r})\ntry: exec(compile({program!r}, 'program.py', 'exec', dont_inherit=True))\n"
        "except SystemExit: pass\n"
    )


def _check_calls(program: str, tests: CallTests, limits: Limits, run: Runner) -> Grade:
    ended, most = _run_calls(program, tests, limits, run)
    if (failed := _failure(ended)) is not None:
        return failed
    try:
        lines = parse_lines(ended.stdout)
    except MalformedValue as error:
        return Grade(Verdict.INCORRECT, f"forged_output: {error}")
    if len(lines) > most:
        return Grade(Verdict.INCORRECT, "forged_output: too many lines")
    for index, (call, (tag, body)) in enumerate(zip(tests.calls, lines, strict=False)):
        if tag == "e":
            return Grade(Verdict.INCORRECT, f"error: {body}, test {index}")
        expected = call.expected
        if expected.expression:
            known = _evaluate(expected, tests.prelude, limits, run)
            if isinstance(known, Grade):
                return known
            expected = known
        try:
            if not matches(decode(body, expected.value), expected):
                return Grade(Verdict.INCORRECT, f"wrong_value: test {index}")
        except MalformedValue as error:
            return Grade(Verdict.INCORRECT, f"forged_output: {error}, test {index}")
    if len(lines) < len(tests.calls):
        left = f"{len(lines)} of {len(tests.calls)} results, exit code {ended.status}"
        return Grade(Verdict.INCORRECT, f"left_early: {left}")
    return Grade(Verdict.CORRECT, "passed")


def _run_calls(program: str, tests: CallTests, limits: Limits, run: Runner) -> tuple[Run, int]:
    """Run the program and all calls in one process; return how it ended and how many lines are honest at
    most."""
    job = {
        "prelude": tests.prelude,
        "program": program,
        "calls": [
            {
                "expression": call.expression,
                "arguments": call.arguments,
                # A match object is as true as True: what is asked for is its truth, which any object may
                # claim.
                "truth": call.expected.comparison is Comparison.TRUTH,
            }
            for call in tests.calls
        ],
        "cpu_s": limits.cpu_s * tests.cpu_factor,
    }
    factor = min(len(tests.calls) + 1, MAX_TOTAL_FACTOR) * tests.cpu_factor
    # marshal, and not repr, which refuses integers of more than 4,300 digits
    room = 8 * sum(len(marshal.dumps(call.expected.value, 2)) for call in tests.calls) + _OUTPUT_SLACK
    total = replace(
        limits,
        cpu_s=limits.cpu_s * factor,
        output_bytes=max(limits.output_bytes, room),
    )
    return run(Program(f"{_HARNESS}\nserve({json.dumps(job)!r})\n"), total), len(tests.calls)


def _evaluate(expected: Expected, prelude: str, limits: Limits, run: Runner) -> Expected | Grade:
    """Evaluate an expected expression in a sandbox of its own, where the program never was."""
    alone = CallTests((Call(expected.expression, Expected()),), f"import sys, math\n{prelude}")
    ended, _ = _run_calls("", alone, limits, run)
    try:
        lines: list[tuple[str, Any]] = parse_lines(ended.stdout) if ended.outcome is Outcome.EXITED else []
        if len(lines) == 1 and lines[0][0] == "v":
            return replace(expected, value=decode(lines[0][1]), expression="")
    except MalformedValue:
        pass
    return Grade(Verdict.UNGRADED, f"gold: {expected.expression[:80]!r} cannot be evaluated")


_BY_SIGNAL = {signal.SIGXCPU: "timeout", signal.SIGPROF: "timeout", signal.SIGALRM: "timeout"}


def _failure(ended: Run) -> Grade | None:
    """Return the grade of a run that did not end by itself, None for one whose output is to be looked at."""
    match ended.outcome:
        case Outcome.EXITED:
            return None
        case Outcome.SANDBOX_ERROR:
            return Grade(Verdict.UNGRADED, f"sandbox: {ended.detail}")
        case Outcome.SIGNALLED:
            default = f"crashed: signal {ended.status}"
            by_signal = {int(number): reason for number, reason in _BY_SIGNAL.items()}
            return Grade(Verdict.INCORRECT, by_signal.get(ended.status, default))
        case Outcome.CPU_LIMIT:
            return Grade(Verdict.INCORRECT, "timeout: CPU")
        case Outcome.WALL_LIMIT:
            return Grade(Verdict.INCORRECT, "timeout: wall clock")
        case Outcome.OUTPUT_LIMIT:
            return Grade(Verdict.INCORRECT, "too_much_output")


def _at(grade: Grade, index: int) -> Grade:
    return Grade(grade.verdict, f"{grade.reason}, test {index}")
