"""What a program is tested by: calls with expected values, or input with expected output.

What enters a sandbox (`expression`, `arguments`, `stdin`) and what is expected stand in separate fields.

An assert is cut in two: `assert f(2) == [1, 4]` is the expression `f(2)`, evaluated beside the program, and
the expected value `[1, 4]`, which stays here. Forms that are understood, L being an expression and R one that
no program can influence:
    assert L == R            assert R == L (R literal)     assert set(L) == set(R), sorted(...) likewise
    assert math.isclose(L, R, rel_tol=..., abs_tol=...)    assert f(...)    assert not f(...)
R is a literal, set/frozenset/tuple/list/sorted of one, or (`Expected.expression`) something else that calls
only modules of `imports`, such as sys.getsizeof((1, 2)): that is evaluated in a sandbox where the program
never is. Everything else (`!=`, `<`, `in`, several statements) cannot be graded from outside and is a
`TestsError`: such a row is to be excluded by name, not graded otherwise.
"""

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any, ClassVar


class TestsError(ValueError):
    """A row's tests cannot be graded; the message says which and why."""

    __test__ = False  # the name is not for pytest


class Comparison(Enum):
    """How a value that came out is compared with the expected one."""

    EQUAL = "equal"
    """As `==` on builtin types."""
    CLOSE = "close"
    """As math.isclose."""
    TRUTH = "truth"
    """Both true or both false."""
    JSON = "json"
    """As `==`, after a tuple that was returned became a list (LiveCodeBench's protocol)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a call must give. Never enters the sandbox in which the program runs."""

    value: Any = None
    comparison: Comparison = Comparison.EQUAL
    rel_tol: float = 1e-9
    abs_tol: float = 0.0
    expression: str = ""
    """Where not empty, `value` is not known yet: this is evaluated, without the program, to get it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: an expression to evaluate, or a callable expression and its arguments as one JSON list."""

    expression: str
    expected: Expected
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class CallTests:
    """A program that defines functions, and calls of them. All run in one process, in this order."""

    calls: tuple[Call, ...]
    prelude: str = ""
    """Executed in the program's namespace before it: imports."""
    cpu_factor: ClassVar[int] = 1
    """How many times the limit of CPU time a call may take."""


class SlowCallTests(CallTests):
    """Tests whose reference solution takes more than half of the default limit: five times the limit."""

    __slots__ = ()
    cpu_factor: ClassVar[int] = 5


@dataclass(frozen=True, slots=True)
class StdinCase:
    """One input and the output that is expected."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class StdinTests:
    """A whole program that reads its input and prints; one process for each case."""

    cases: tuple[StdinCase, ...]
    prelude: str = ""


CodeTests = CallTests | StdinTests

# What LiveCodeBench's own runner has in scope, in its order; solutions rely on it ("List" in a signature, a
# bare "heappush"). Modules come after their contents: `bisect`, `copy`, `datetime` and `random` mean the
# modules.
_SCOPE = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing"),
)
JUDGE_PRELUDE = "".join(
    [*(f"from {name} import *\n" for name in _SCOPE), *(f"import {name}\n" for name in _SCOPE)]
)
JUDGE_PRELUDE += "sys.setrecursionlimit(50_000)\nsys.set_int_max_str_digits(50_000)\n"
_INT_DIGITS = 4_000


def assert_tests(asserts: Sequence[str], imports: Sequence[str] = ()) -> CallTests:
    """Return the tests of an MBPP row from its `test_list` and `test_imports`.

    Raises:
        TestsError: there are none, or one has a form that cannot be cut in two.

    >>> assert_tests(["assert f(2) == [1, 4]"]).calls[0].expected.value
    [1, 4]
    """
    if not asserts:
        raise TestsError("the row has no asserts; exclude it")
    modules = {alias for line in imports for alias in _imported(line)} | {"sys", "math"}
    calls = tuple(_call(text, modules) for text in asserts)
    return CallTests(calls, "".join(f"{line}\n" for line in imports))


def function_tests(
    cases: Sequence[Mapping[str, str]], function: str, prelude: str = JUDGE_PRELUDE
) -> CallTests:
    """Return the tests of a LiveCodeBench row with `testtype` "functional".

    A case's `input` holds one JSON value a line, each an argument; its `output` one JSON value. The function
    is a method of `Solution` where the program defines such a class.

    Raises:
        TestsError: there are no cases, or one is not JSON.
    """
    if not cases or not function.isidentifier():
        raise TestsError(f"{len(cases)} cases for function {function!r}; exclude the row")
    calls = []
    for index, case in enumerate(cases):
        try:
            # The arguments go in as they are: only the sandbox need read integers of any length.
            lines = [line for line in case["input"].split("\n") if line.strip()]
            for line in lines:
                json.loads(line, parse_int=_integer)
            expected = json.loads(case["output"], parse_int=_integer)
        except (ValueError, KeyError, RecursionError) as error:
            raise TestsError(f"test case {index}: {error}; exclude the row") from error
        calls.append(
            Call(function, Expected(value=expected, comparison=Comparison.JSON), f"[{', '.join(lines)}]")
        )
    return CallTests(tuple(calls), prelude)


def _integer(digits: str) -> int:
    """Return an integer of any length; `int` refuses more than 4,300 digits."""
    return int(digits) if len(digits) <= _INT_DIGITS else int(Decimal(digits))


def stdin_tests(cases: Sequence[Mapping[str, str]], prelude: str = JUDGE_PRELUDE) -> StdinTests:
    """Return the tests of a LiveCodeBench row with `testtype` "stdin", from its cases' `input` and `output`.

    Raises:
        TestsError: there are no cases, or one has no `input` or `output`.
    """
    try:
        made = tuple(StdinCase(case["input"], case["output"]) for case in cases)
    except KeyError as error:
        raise TestsError(f"a test case has no {error}; exclude the row") from error
    if not made:
        raise TestsError("the row has no test cases; exclude it")
    return StdinTests(made, prelude)


def _imported(line: str) -> list[str]:
    return [
        alias.asname or alias.name
        for node in ast.walk(_parse(line))
        if isinstance(node, ast.Import)
        for alias in node.names
    ]


def _parse(text: str) -> ast.Module:
    try:
        return ast.parse(text.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TestsError(f"{text[:80]!r}: {error}; exclude the row") from error


def _call(text: str, modules: set[str]) -> Call:
    body = _parse(text).body
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        raise TestsError(f"{text[:80]!r} is not one assert; exclude the row")
    test = body[0].test
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        left, right = test.left, test.comparators[0]
        if _expected(right, modules) is None:
            left, right = right, left
        if (expected := _expected(right, modules)) is not None:
            return Call(ast.unparse(left), expected)
    elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) and _is_program_call(test.operand):
        return Call(ast.unparse(test.operand), Expected(value=False, comparison=Comparison.TRUTH))
    elif isinstance(test, ast.Call) and ast.unparse(test.func) in ("math.isclose", "isclose"):
        if close := _close(test, modules):
            return close
    elif _is_program_call(test):
        return Call(ast.unparse(test), Expected(value=True, comparison=Comparison.TRUTH))
    raise TestsError(f"{text[:80]!r} cannot be cut into a call and an expected value; exclude the row")


def _is_program_call(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def _close(test: ast.Call, modules: set[str]) -> Call | None:
    tolerances = {word.arg: _literal(word.value) for word in test.keywords}
    numbers = all(isinstance(value, int | float) for value in tolerances.values())
    if len(test.args) != 2 or not tolerances.keys() <= {"rel_tol", "abs_tol"} or not numbers:
        return None
    expected = _expected(test.args[1], modules)
    if expected is None or expected.expression:
        return None
    return Call(
        ast.unparse(test.args[0]),
        Expected(
            value=expected.value,
            comparison=Comparison.CLOSE,
            rel_tol=tolerances.get("rel_tol", 1e-9),
            abs_tol=tolerances.get("abs_tol", 0.0),
        ),
    )


_FOLDS: dict[str, Callable[[Any], Any]] = {
    "set": set,
    "frozenset": frozenset,
    "tuple": tuple,
    "list": list,
    "sorted": sorted,
}
_NOTHING = object()


def _expected(node: ast.expr, modules: set[str]) -> Expected | None:
    """Return the expected side of an assert, or None where a program could influence it."""
    if (value := _literal(node)) is not _NOTHING:
        return Expected(value=value)
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    calls_module = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    return Expected(expression=ast.unparse(node)) if calls_module and names and names <= modules else None


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FOLDS:
        if len(node.args) > 1 or node.keywords:
            return _NOTHING
        inner = [_literal(argument) for argument in node.args]
        return _NOTHING if _NOTHING in inner else _fold(node.func.id, inner)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return _NOTHING


def _fold(name: str, arguments: list[Any]) -> Any:
    try:
        return _FOLDS[name](*arguments)
    except TypeError:  # set(5): the assert could never have passed
        return _NOTHING
