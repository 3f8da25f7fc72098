"""Programs and their tests: what is asked, what comes out, what it means; honest ones in each sandbox."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.code import CodePool, grade_code, grade_program
from aipo.grading.code_tests import (
    CodeTests,
    assert_tests,
    function_tests,
    stdin_tests,
)
from aipo.grading.sandbox.base import (
    Backend,
    Limits,
    SandboxError,
)
from aipo.grading.sandbox.detect import open_sandbox

SHARED = Path(__file__).parents[3].parent / "shared" / "data" / "mbpp_sanitized.json"
RIGHT, WRONG, UNKNOWN = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNGRADED
PASSED = Grade(RIGHT, "passed")


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def pool(request: pytest.FixtureRequest) -> Iterator[CodePool]:
    try:
        made = CodePool(open_sandbox(request.param), workers=2, limits=Limits(cpu_s=2.0))
    except SandboxError as error:
        assert "not isolated" not in str(error)  # that is no reason to skip
        print(reason := f"skipped: {error}")
        pytest.skip(reason)
    yield made
    made.close()


def grade(pool: CodePool, program: str, tests: CodeTests) -> Grade:
    return asyncio.run(grade_program(program, tests, pool))


# --- honest programs -------------------------

HONEST = [
    (
        "def f(n):\n    return [n, (n, {n}), {'a': n}, None, 1.5, b'x']",
        "[2, (2, {2}), {'a': 2}, None, 1.5, b'x']",
    ),
    ("from collections import Counter\nf = lambda n: Counter('aab')", "{'a': 2, 'b': 1}"),
    ("from collections import namedtuple\nP = namedtuple('P', 'x y')\nf = lambda n: P(n, 1)", "(2, 1)"),
    ("f = lambda n: {1: 2}.keys()", "{1}"),
    ("f = lambda n: 1 << 200", str(1 << 200)),
    ("f = lambda n: float('inf')", "1e999"),
    ("import sys\nprint('noise'); sys.stderr.write('noise')\nf = lambda n: n", "2"),
    (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass P:\n    x: int\n"
        "f = lambda n: P(n).x",
        "2",
    ),
    (
        "import functools, itertools, heapq, bisect, re, math, string, random, datetime, decimal, operator"
        "\nf = lambda n: n",
        "2",
    ),
    (
        "import sys\nsys.setrecursionlimit(10**6)\ng = lambda k: k and 1 + g(k - 1)\nf = lambda n: g(20_000)",
        "20000",
    ),
    (
        "import threading, sys\nthreading.stack_size(1 << 26)\nout = []\n"
        "t = threading.Thread(target=out.append, args=(7,))\n"
        "t.start(); t.join()\nf = lambda n: out[0]",
        "7",
    ),
    ("if __name__ == '__main__':\n    input()\nf = lambda n: n", "2"),
    ("f = lambda n: '\\ud800é'", "'\\ud800é'"),
    ("import signal\nsignal.alarm(100)\nf = lambda n: n", "2"),
    (
        "import asyncio\nasync def g(n):\n    await asyncio.sleep(0)\n    return n\n"
        "f = lambda n: asyncio.run(g(n))",
        "2",
    ),
    ("import asyncio\nf = lambda n: asyncio.run(asyncio.to_thread(abs, -n))", "2"),
    (
        "import sys, functools\nsys.setrecursionlimit(10**6)\n@functools.lru_cache(None)\n"
        "def g(k): return k and 1 + g(k - 1)\nf = lambda n: g(30_000)",
        "30000",
    ),
    ("f = lambda n: len(str(10 ** 40_000))", "40001"),
    (
        "import tempfile\ndef f(n):\n    with tempfile.TemporaryFile() as t:\n        return t.write(b'xy')",
        "2",
    ),
    (
        "import tempfile\ndef f(n):\n    with tempfile.NamedTemporaryFile('w+') as t:\n"
        "        t.write('xy'); t.flush()\n        return len(open(t.name).read())",
        "2",
    ),
    (
        "import tempfile, os, shutil\ndef f(n):\n    with tempfile.TemporaryDirectory() as t:\n"
        "        p = os.path.join(t, 'a', 'b')\n        os.makedirs(p)\n"
        "        open(os.path.join(p, 'c'), 'w').write('xyz')\n        os.rename(p + '/c', p + '/d')\n"
        "        return os.listdir(p)",
        "['d']",
    ),
    ("def f(n):\n    open('out.txt', 'w').write('xy')\n    return len(open('out.txt').read())", "2"),
]
LOCK = "import multiprocessing\nlock = multiprocessing.Lock()\ndef f(n):\n    with lock: return n"


@pytest.mark.parametrize(("program", "value"), HONEST)
def test_an_honest_function_is_correct(pool: CodePool, program: str, value: str) -> None:
    assert grade(pool, program, assert_tests([f"assert f(2) == {value}"])) == PASSED


def test_a_lock_between_processes_is_correct_where_there_is_shared_memory(pool: CodePool) -> None:
    """Landlock keeps /dev/shm closed, which belongs to the whole machine; docs/grading.md says so."""
    given = grade(pool, LOCK, assert_tests(["assert f(2) == 2"]))
    assert (given == PASSED) is (pool.sandbox.backend is Backend.BUBBLEWRAP)


def test_a_value_of_the_programs_own_class_is_incorrect(pool: CodePool) -> None:
    given = grade(pool, "class A: pass\nf = lambda n: A()", assert_tests(["assert f(2) == 1"]))
    assert given == Grade(WRONG, "error: TypeError, test 0")
    assert grade(pool, "f = lambda n: iter([1])", assert_tests(["assert f(2) == [1]"])).verdict is WRONG


def test_a_match_object_is_true(pool: CodePool) -> None:
    tests = assert_tests(["assert f('a')", "assert not f('b')"])
    assert grade(pool, "import re\nf = lambda s: re.match('a', s)", tests) == PASSED
    assert grade(pool, "f = lambda s: True", tests) == Grade(WRONG, "wrong_value: test 1")


def test_an_expected_expression_is_evaluated_in_the_same_python(pool: CodePool) -> None:
    tests = assert_tests(["assert f((1, 2)) == sys.getsizeof((1, 2))"], ["import sys"])
    assert grade(pool, "import sys\nf = lambda t: sys.getsizeof(t)", tests) == PASSED
    assert grade(pool, "import sys\nsys.getsizeof = lambda t: 5\nf = sys.getsizeof", tests).verdict is WRONG


SUMS = [{"input": "1 2\n", "output": "3\n"}, {"input": "2 2\n", "output": "4.0\n"}]


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("print(sum(map(int, input().split())))", PASSED),
        ("import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))\nsys.exit(0)", PASSED),
        ("print(sum(map(int, open(0).read().split())))\nexit()", PASSED),
        ("if __name__ == '__main__':\n    print(sum(map(int, input().split())))", PASSED),
        ("h = []\nheappush(h, 1)\nx: List[int] = list(map(int, input().split()))\nprint(sum(x))", PASSED),
        ("from __future__ import annotations\nprint(sum(map(int, input().split())))", PASSED),
        (
            "k = bisect.bisect_left([1], 1) + random.randint(0, 0)\n"
            "print(k + sum(map(int, stdin.read().split())))",
            PASSED,
        ),
        ("print(sum(map(int, open('/dev/stdin').read().split())))", PASSED),
        ("print(sum(map(int, input().split())))\nimport sys\nsys.exit(1)", PASSED),
        ("print(sum(map(int, input().split())))\nraise SystemExit('done')", PASSED),
        (
            "print(sum(map(int, input().split())))\nimport os\nos._exit(1)",
            Grade(WRONG, "crashed: exit code 1, test 0"),
        ),
        ("print(3)", Grade(WRONG, "wrong_output: test 1")),
        ("print(3)\n1/0", Grade(WRONG, "crashed: exit code 1, test 0")),
        ("print((", Grade(WRONG, "crashed: exit code 1, test 0")),
        ("\0", Grade(WRONG, "crashed: exit code 1, test 0")),
        ("\ud800", Grade(WRONG, "not_text")),
        ("while True: pass", Grade(WRONG, "timeout: CPU, test 0")),
        ("x = bytearray(1 << 31)", Grade(WRONG, "crashed: exit code 1, test 0")),
    ],
)
def test_programs_that_read_and_print(pool: CodePool, program: str, expected: Grade) -> None:
    assert grade(pool, program, stdin_tests(SUMS)) == expected


def test_functions_with_json_arguments(pool: CodePool) -> None:
    tests = function_tests([{"input": "[1, 2]\n3", "output": "[1, 2, 3]"}], "extend")
    method = "class Solution:\n    def extend(self, xs: List[int], x: int) -> List[int]:\n        return "
    assert grade(pool, method + "(*xs, x)", tests) == PASSED
    assert grade(pool, "def extend(xs, x): return xs + [x]", tests) == PASSED
    assert grade(pool, method + "xs", tests) == Grade(WRONG, "wrong_value: test 0")
    assert grade(pool, "def other(xs, x): return xs", tests) == Grade(WRONG, "error: KeyError, test 0")


def test_integers_of_any_length_are_read_and_printed(pool: CodePool) -> None:
    long = "9" * 5_000
    printed = [{"input": long, "output": "1" + "0" * 5_000}]
    assert grade(pool, "print(int(input()) + 1)", stdin_tests(printed)) == PASSED
    assert grade(pool, "print(int(input()) + 2)", stdin_tests(printed)).verdict is WRONG
    called = function_tests([{"input": f"[{long}]\n1", "output": "1" + "0" * 5_000}], "f")
    assert grade(pool, "f = lambda xs, n: xs[0] + n", called) == PASSED
    assert grade(pool, "f = lambda xs, n: xs[0]", called).verdict is WRONG


def test_all_calls_share_one_solution_as_in_the_reference_runner(pool: CodePool) -> None:
    tests = function_tests([{"input": "1", "output": "1"}, {"input": "1", "output": "2"}], "count")
    method = (
        "class Solution:\n    def __init__(self): self.n = 0\n    def count(self, k):\n        self.n += k"
    )
    assert grade(pool, f"{method}\n        return self.n", tests) == PASSED


def test_a_response_is_graded_by_its_last_block(pool: CodePool) -> None:
    tests = assert_tests(["assert f(2) == 4"])
    response = "No:\n```python\ndef f(n): return 5\n```\nBut:\n```python\ndef f(n): return 2 * n\n```"
    assert asyncio.run(grade_code(response, tests, pool)) == PASSED
    assert asyncio.run(grade_code("f(n) = 2n", tests, pool)) == Grade(WRONG, "no_answer")
    assert asyncio.run(grade_code("```\n" + "x" * 200_000 + "\n```", tests, pool)) == Grade(
        WRONG, "too_large"
    )


def test_real_rows_are_correct_by_their_reference_and_incorrect_without_a_body(pool: CodePool) -> None:
    """A sample; `benchmarks/grading.py` takes all 427."""
    if not SHARED.exists():
        print(reason := f"skipped: no real data in {SHARED}")
        pytest.skip(reason)
    rows = json.loads(SHARED.read_text(encoding="utf-8"))
    assert all(assert_tests(row["test_list"], row["test_imports"]).calls for row in rows)
    odd = {82, 596, 737, 787}  # isclose, getsizeof, bare calls, a match object

    async def all_of_them() -> list[tuple[int, Grade, Grade]]:
        async def one(row: dict[str, Any]) -> tuple[int, Grade, Grade]:
            tests = assert_tests(row["test_list"], row["test_imports"])
            name = tests.calls[0].expression.replace("set(", "").partition("(")[0]
            empty = f"def {name}(*a, **k): pass"
            right, wrong = await asyncio.gather(
                grade_program(row["code"], tests, pool), grade_program(empty, tests, pool)
            )
            return row["task_id"], right, wrong

        chosen = [row for k, row in enumerate(rows) if k % 25 == 0 or row["task_id"] in odd]
        return list(await asyncio.gather(*map(one, chosen)))

    graded = asyncio.run(all_of_them())
    assert [item for item in graded if item[1] != PASSED or item[2].verdict is not WRONG] == []
    assert len(graded) > 15


# --- programs that wait -------------------------

SLEEPER = "import time\ndef f(n):\n    time.sleep(99)"


def test_a_sleeper_holds_a_worker_once_for_the_limit_and_not_for_each_call(pool: CodePool) -> None:
    """Scaled down from 20 s: it was `wall_s` for each call, and all of it twice."""
    given = CodePool(pool.sandbox, limits=Limits(cpu_s=1.0, wall_s=1.5))
    tests = assert_tests([f"assert f({k}) == {k}" for k in range(12)])
    start = time.monotonic()
    assert grade(given, SLEEPER, tests) == Grade(WRONG, "timeout: wall clock")
    naps = "import time\ndef f(n):\n    time.sleep(1.0)\n    return n"
    assert grade(given, naps, tests) == Grade(WRONG, "timeout: wall clock")
    assert time.monotonic() - start < 12 and given.repeated_runs == 0  # 18 s and more would be once per call
    given.close()


def test_a_busy_machine_does_not_make_a_program_late(pool: CodePool) -> None:
    """More programs than processors, each computing for longer than all may sleep."""
    given = CodePool(pool.sandbox, workers=4, limits=Limits(cpu_s=4.0, wall_s=0.7))
    busy = "import time\ndef f(n):\n    while time.process_time() < 0.8: pass\n    return n"

    async def together() -> list[Grade]:
        tests = assert_tests(["assert f(1) == 1"])
        return list(await asyncio.gather(*(grade_program(f"{busy}\n#{k}", tests, given) for k in range(4))))

    assert asyncio.run(together()) == [PASSED] * 4
    given.close()


def test_reasons_are_bounded(pool: CodePool) -> None:
    forged = """
import os
line = b'{"v": {"f": "' + b"x" * 900_000 + b'"}}\\n'
for fd in range(3, 64):
    try: os.write(fd, line)
    except OSError: pass
os._exit(0)
"""
    given = grade(pool, forged, assert_tests(["assert f(1) == 1"]))
    assert given.verdict is WRONG and len(given.reason) <= 200
