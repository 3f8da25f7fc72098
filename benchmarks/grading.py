"""Measure the code grader on MBPP: `python benchmarks/grading.py [--workers 2] [--backend bubblewrap]
[--sample 0]`.

Every reference solution must be CORRECT and every `pass` body INCORRECT; prints one table row for each. Reads
../shared/data/mbpp_sanitized.json, or the file given; exit status 1 where a verdict is not as it should be.
"""

import argparse
import ast
import asyncio
import contextlib
import ctypes
import json
import os
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.code import CodePool, grade_program
from aipo.grading.code_tests import assert_tests
from aipo.grading.sandbox.base import Backend
from aipo.grading.sandbox.detect import open_sandbox

DATA = Path(__file__).parents[2] / "shared" / "data" / "mbpp_sanitized.json"


def without_bodies(code: str) -> str:
    """Return a program in which every function does nothing."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Pass()]
    return ast.unparse(tree)


async def grade_all(rows: list[dict[str, Any]], pool: CodePool, empty: bool) -> list[Grade]:
    """Return the grade of each row's reference solution, or of one whose functions do nothing."""

    async def one(row: dict[str, Any]) -> Grade:
        code = without_bodies(row["code"]) if empty else row["code"]
        return await grade_program(code, assert_tests(row["test_list"], row["test_imports"]), pool)

    return list(await asyncio.gather(*map(one, rows)))


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent left: bwrap does not wait for what it ran."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def reap_orphans() -> None:
    """Wait for them, so that their CPU time is counted as this process's children's."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def measure(rows: list[dict[str, Any]], pool: CodePool, empty: bool) -> bool:
    """Print one row of the table; return whether every verdict is as it should be."""
    wanted = Verdict.INCORRECT if empty else Verdict.CORRECT
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    own = time.process_time()
    grades = asyncio.run(grade_all(rows, pool, empty))
    wall_s = time.monotonic() - start
    reap_orphans()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime + time.process_time() - own
    wrong = [
        (row["task_id"], grade)
        for row, grade in zip(rows, grades, strict=True)
        if grade.verdict is not wanted
    ]
    name = "functions without a body" if empty else "reference solutions"
    counts = Counter(grade.verdict.value for grade in grades)
    print(
        f"| {pool.sandbox.backend.value} | {name} | {len(rows)} | {dict(counts)} | {len(rows) / wall_s:.1f} |"
        f" {1000 * cpu_s / len(rows):.0f} | {pool.repeated_runs} | {os.getloadavg()[0]:.1f} |",
        flush=True,
    )
    for task, grade in wrong:
        print(f"  task {task}: {grade.verdict.value} {grade.reason}")
    return not wrong


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=DATA)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--backend", choices=["auto", *Backend], default="auto")
    parser.add_argument(
        "--sample", type=int, default=0, help="every n-th row only, so that about this many are left"
    )
    arguments = parser.parse_args()
    adopt_orphans()
    rows = json.loads(arguments.file.read_text(encoding="utf-8"))
    if arguments.sample:
        rows = rows[:: max(1, len(rows) // arguments.sample)]
    pool = CodePool(open_sandbox(arguments.backend), arguments.workers)
    print(f"{pool.description}; {arguments.workers} workers, {os.cpu_count()} cores\n")
    print("| back end | programs | rows | verdicts | solutions/s | CPU ms each | repeated | load |")
    print("|---|---|--:|---|--:|--:|--:|--:|")
    fine = [measure(rows, pool, empty) for empty in (False, True)]
    pool.close()
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
