"""The verdict on a response whose answer is a Python program: run in a sandbox, compared outside of it.

A failure of the sandbox is UNGRADED; a program that is wrong, slow or greedy is INCORRECT.

Usage:
    pool = CodePool(open_sandbox(), workers=2)       # raises SandboxError where no sandbox works
    tests = assert_tests(row["test_list"], row["test_imports"])   # aipo.grading.code_tests
    grade = await grade_code(response, tests, pool)
    pool.close()
"""

import re

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.code_pool import CodePool
from aipo.grading.code_tests import CodeTests
from aipo.grading.extract import after_thinking

__all__ = ["CodePool", "extract_code", "grade_code", "grade_program"]

MAX_PROGRAM_CHARS = 100_000
_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[ \t]*([^\n`]*)$", re.MULTILINE)


async def grade_code(response: str, tests: CodeTests, pool: CodePool) -> Grade:
    """Grade the assistant's whole turn: its last fenced block is the program.

    Returns:
        CORRECT `passed`; INCORRECT `no_answer`, or the first test that failed and why; UNGRADED `sandbox:
        ...`.

    Raises:
        RuntimeError: the pool is closed. Never for what the response contains.
    """
    program = extract_code(response)
    if program is None:
        return Grade(Verdict.INCORRECT, "no_answer")
    return await grade_program(program, tests, pool)


async def grade_program(program: str, tests: CodeTests, pool: CodePool) -> Grade:
    """Grade a program that needs no extraction, such as a reference solution."""
    if len(program) > MAX_PROGRAM_CHARS:
        return Grade(Verdict.INCORRECT, "too_large")
    return await pool.grade(program, tests)


def extract_code(response: str) -> str | None:
    r"""Return the last closed fenced block after the thinking, or None when there is none or it is blank.

    The language tag is not looked at. A block that is never closed is no answer, nor is an earlier one then.

    >>> extract_code("First\n```python\nx = 1\n```\nbetter:\n```\nx = 2\n```\n")
    'x = 2\n'
    """
    text = after_thinking(response)
    block: str | None = None
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened, block = fence, None
        elif fence[1].startswith(opened[1]) and not fence[2].strip():
            block = text[opened.end() + 1 : fence.start()]
            opened = None
    return block if block and block.strip() else None
