"""The verdict on a response whose answer is a Python program: run in a sandbox, compared outside of it.

A failure of the sandbox is UNGRADED; a program that is wrong, slow or greedy is INCORRECT.

Usage:
    pool = CodePool(open_sandbox(), workers=2)       # raises SandboxError where no sandbox works
    tests = assert_tests(row["test_list"], row["test_imports"])   # aipo.grading.code_tests
    grade = await grade_code(response, tests, pool)
    pool.close()

A deadline that passed while this machine kept the program waiting may be this machine's fault: such a run is
repeated once, alone. The same holds for one that was killed from outside. A program that sleeps has itself to
blame.
"""

import asyncio
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.code_check import check
from aipo.grading.code_tests import CodeTests
from aipo.grading.extract import end_of_thinking
from aipo.grading.sandbox.base import Limits, Outcome, Program, Run, Sandbox

MAX_PROGRAM_CHARS = 100_000
# What stands before a fence: blanks, and the marks of the lists and quotations that it stands in.
_QUOTED = re.compile(r"^[ \t]{0,3}+>[ \t]?+", re.MULTILINE)
_FENCE = re.compile(r"^([ \t]*+(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]++)*+)(`{3,}+|~{3,}+)([^\n]*+)$", re.MULTILINE)
_TAB = 4
STARVED_SHARE = 0.5
"""A run that met its wall deadline and was kept waiting by this machine for this share of it is repeated."""


class CodePool:
    """Grades programs in at most `workers` sandboxes at a time. Close it when done.

    Raises:
        ValueError: `workers` is not positive.
    """

    def __init__(self, sandbox: Sandbox, workers: int = 1, limits: Limits | None = None) -> None:
        if workers < 1:
            raise ValueError(f"workers = {workers}: must be positive")
        self.sandbox = sandbox
        self.limits = limits or Limits()
        self.repeated_runs = 0
        self._workers = workers
        self._permits = threading.Semaphore(workers)
        self._alone = threading.Lock()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="code-pool")
        self._closed = False

    @property
    def description(self) -> str:
        """Return the line that belongs into every report: which sandbox it is."""
        return self.sandbox.description

    async def grade(self, text: str, tests: CodeTests, in_response: bool = False) -> Grade:
        """Grade a program by its tests, which run one after the other up to the first that fails.

        Of a text that is a response, the program in it, which is looked for off the event loop.

        Raises:
            RuntimeError: the pool is closed. Never for what the text contains or the program does.
        """
        if self._closed:
            raise RuntimeError("this CodePool is closed")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._grade, text, tests, in_response)

    def _grade(self, text: str, tests: CodeTests, in_response: bool) -> Grade:
        if self._closed:
            return Grade(Verdict.UNGRADED, "sandbox: the pool was closed")
        program = extract_code(text) if in_response else text
        if program is None:
            return Grade(Verdict.INCORRECT, "no_answer")
        if len(program) > MAX_PROGRAM_CHARS:
            return Grade(Verdict.INCORRECT, "too_large")
        return check(program, tests, self.limits, self._run)

    def _run(self, program: Program, limits: Limits) -> Run:
        with self._permit():
            run = self.sandbox.run(program, limits)
        if _may_be_ours(run, limits) and not self._closed:
            self.repeated_runs += 1
            with self._every_permit():
                run = self.sandbox.run(program, limits)
        return run

    @contextmanager
    def _permit(self) -> Iterator[None]:
        with self._permits:
            yield

    @contextmanager
    def _every_permit(self) -> Iterator[None]:
        with self._alone:
            for _ in range(self._workers):
                self._permits.acquire()
            try:
                yield
            finally:
                self._permits.release(self._workers)

    def close(self) -> None:
        """Let runs under way end, start no other. Closing twice is harmless."""
        self._closed = True
        self._threads.shutdown(wait=True)


def _may_be_ours(run: Run, limits: Limits) -> bool:
    starved = run.outcome is Outcome.WALL_LIMIT and run.kept_waiting_s >= STARVED_SHARE * limits.wall_s
    killed = run.outcome is Outcome.SIGNALLED and run.status == 9
    return starved or killed or run.outcome is Outcome.SANDBOX_ERROR


async def grade_code(response: str, tests: CodeTests, pool: CodePool) -> Grade:
    """Grade the assistant's whole turn: its last fenced block is the program.

    Returns:
        CORRECT `passed`; INCORRECT `no_answer`, or the first test that failed and why; UNGRADED `sandbox:
        ...`.

    Raises:
        RuntimeError: the pool is closed. Never for what the response contains.
    """
    return await pool.grade(response, tests, in_response=True)


async def grade_program(program: str, tests: CodeTests, pool: CodePool) -> Grade:
    """Grade a program that needs no extraction, such as a reference solution."""
    return await pool.grade(program, tests)


def extract_code(response: str) -> str | None:
    r"""Return the last closed fenced block after the thinking, or None when there is none or it is blank.

    The language tag is not looked at. A block that is never closed is no answer, nor is an earlier one then.
    As in CommonMark, a fence may stand in a list: its indentation is taken off each line, and a fence that is
    indented by four more, or shorter, or of the other sign, closes nothing.

    >>> extract_code("First\n```python\nx = 1\n```\nbetter:\n```\nx = 2\n```\n")
    'x = 2\n'
    >>> extract_code("> ```\n> x = 3\n> ```")  # quoted, and nothing stands outside the quotation
    'x = 3\n'
    """
    text = response[end_of_thinking(response) :]
    if not _FENCE.search(text):
        text = _QUOTED.sub("", text)
    block: str | None = None
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        width = len(fence[1].expandtabs(_TAB))
        if opened is None:
            if fence[2][0] != "`" or "`" not in fence[3]:
                opened, block = fence, None
            continue
        indentation = len(opened[1].expandtabs(_TAB))
        bare = not fence[1].strip() and not fence[3].strip()
        if bare and fence[2].startswith(opened[2]) and width < indentation + _TAB:
            block = _unindented(text[opened.end() + 1 : fence.start()], indentation)
            opened = None
    return block if block and block.strip() else None


def _unindented(block: str, columns: int) -> str:
    """Return a block with up to so many columns of blanks taken off each line."""
    return "\n".join(_without_columns(line, columns) for line in block.split("\n")) if columns else block


def _without_columns(line: str, columns: int) -> str:
    at = column = 0
    while at < len(line) and column < columns and line[at] in " \t":
        column += 1 if line[at] == " " else _TAB - column % _TAB
        at += 1
    return " " * (column - columns) + line[at:]
