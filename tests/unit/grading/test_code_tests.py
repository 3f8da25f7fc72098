"""A benchmark's rows as tests, the program in a response, and how values and output compare: no sandbox
needed."""

import json
import math
from typing import Any

import pytest

from aipo.grading.code import extract_code
from aipo.grading.code_tests import (
    Comparison,
    Expected,
    TestsError,
    assert_tests,
    function_tests,
    stdin_tests,
)
from aipo.grading.code_values import MalformedValue, decode, matches, parse_lines, same_output

# --- tests from rows -------------------------


@pytest.mark.parametrize(
    ("text", "expression", "expected"),
    [
        ("assert f(2) == [1, 4]", "f(2)", Expected(value=[1, 4])),
        ("assert f(2)==(-1)", "f(2)", Expected(value=-1)),
        ("assert [1] == f(2)", "f(2)", Expected(value=[1])),
        ("assert set(f(1, 2)) == set((4, 5))", "set(f(1, 2))", Expected(value={4, 5})),
        ("assert sorted(f(1)) == sorted([2, 1])", "sorted(f(1))", Expected(value=[1, 2])),
        ("assert f(1)", "f(1)", Expected(value=True, comparison=Comparison.TRUTH)),
        ("assert not f(14*14)", "f(14 * 14)", Expected(value=False, comparison=Comparison.TRUTH)),
        (
            "assert math.isclose(f(1), 2.5, rel_tol=0.001)",
            "f(1)",
            Expected(value=2.5, comparison=Comparison.CLOSE, rel_tol=0.001),
        ),
        (
            "assert f((1,)) == sys.getsizeof((1,))",
            "f((1,))",
            Expected(expression="sys.getsizeof((1,))"),
        ),
    ],
)
def test_an_assert_is_cut_into_a_call_and_what_is_expected(
    text: str, expression: str, expected: Expected
) -> None:
    (call,) = assert_tests([text], ["import math"]).calls
    assert (call.expression, call.expected) == (expression, expected)


@pytest.mark.parametrize(
    "text",
    [
        "assert f(1) != 2",
        "assert f(1) < 2",
        "assert 1 < f(1) < 3",
        "assert f(1) in (1, 2)",
        "assert f(1) == g(1)",
        "assert f(1) == other.g(1)",
        "assert f(1) == f(2)",
        "assert f(1) == x",
        "assert f(1) == 1 and f(2) == 2",
        "assert f.g(1)",
        "assert True",
        "assert math.isclose(f(1), g(2))",
        "assert f(1) == set(5)",
        "x = f(1)",
        "assert f(1) == 1; assert f(2) == 2",
        "assert (",
        "",
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(text: str) -> None:
    with pytest.raises(TestsError, match="exclude the row"):
        assert_tests([text])


def test_rows_without_usable_cases_are_refused() -> None:
    for make in (
        lambda: assert_tests([]),
        lambda: stdin_tests([]),
        lambda: stdin_tests([{"input": "1"}]),
        lambda: function_tests([], "f"),
        lambda: function_tests([{"input": "1", "output": "1"}], "os.system"),
        lambda: function_tests([{"input": "[", "output": "1"}], "f"),
    ):
        with pytest.raises(TestsError):
            make()


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("a\n```py\nx = 1\n```\nb\n```\nx = 2\n```\nc", "x = 2\n"),
        ("~~~~\nx = '```'\n~~~~\n", "x = '```'\n"),
        ("<think>```\nx = 1\n```</think>```\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\n```python\nx = 2", None),
        ("x = 1", None),
        ("```\n   \n```", None),
        ("", None),
        ("```" * 50_000, None),
    ],
)
def test_the_last_closed_block_is_the_program(response: str, program: str | None) -> None:
    assert extract_code(response) == program


# --- values and output -------------------------


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('{"t": [1, {"t": []}]}', (1, ())),
        ('{"s": [1, {"z": [2]}]}', {1, frozenset({2})}),
        ('{"d": [[1, [2]], [null, true]]}', {1: [2], None: True}),
        ('{"i": "0x100000000000000000"}', 1 << 68),
        ('{"f": "-inf"}', -math.inf),
        ('{"c": ["1.0", "-2.0"]}', 1 - 2j),
        ('{"b": "00ff"}', b"\x00\xff"),
    ],
)
def test_typed_lines_are_decoded(line: str, value: Any) -> None:
    decoded = decode(json.loads(line))
    assert decoded == value and type(decoded) is type(value)


@pytest.mark.parametrize(
    "tree",
    [
        {"x": 1},
        {},
        {"t": [], "s": []},
        {"i": "7z"},
        {"i": 7},
        {"f": "1"},
        {"b": "0"},
        {"c": ["1"]},
        {"c": [1, 2]},
        {"t": 5},
        {"s": [[1]]},
        {"d": [[1]]},
        {"d": [5]},
        {"d": [[[1], 2]]},
        {"s": list(range(6000))},
        {"t": [{"t": [{"x": 1}]}]},
    ],
)
def test_what_the_harness_does_not_write_is_refused(tree: Any) -> None:
    with pytest.raises(MalformedValue):
        decode(tree)


def test_hostile_lines_are_refused() -> None:
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(MalformedValue):
        decode(deep)
    for line in (b"[" * 100_000, b'{"v": 1, "e": 2}', b"1", b'{"e": "a b"}', b'{"e": 5}', b"\xff"):
        with pytest.raises(MalformedValue):
            parse_lines(line)


@pytest.mark.parametrize(
    "tree",
    [
        {"s": [{"i": hex(k * (2**61 - 1))} for k in range(1, 200)]},
        {"d": [[{"i": hex(k * (2**61 - 1))}, 1] for k in range(1, 200)]},
        {"s": [{"t": [{"i": hex(k * (2**61 - 1))}]} for k in range(1, 200)]},
        {"s": [1] * 200},
    ],
)
def test_sets_whose_members_were_chosen_to_be_slow_are_refused(tree: Any) -> None:
    with pytest.raises(MalformedValue, match="equal hashes"):
        decode(tree)
    with pytest.raises(MalformedValue, match="equal hashes"):
        decode([tree], [set(range(6000))])


FENCES = [
    ("1. Read:\n   ```python\n   n = 1\n   print(n)\n   ```\n", "n = 1\nprint(n)\n"),
    ("10. Read:\n    ```python\n    if 1:\n        x = 1\n    ```", "if 1:\n    x = 1\n"),
    ("- Read:\n  ```\n  x = 1\n  ```", "x = 1\n"),
    ("- ```python\n  x = 1\n  ```", "x = 1\n"),
    ("1. - ```python\n     x = 1\n     ```", "x = 1\n"),
    ("\t```\n\tif 1:\n\t\tx = 1\n\t```", "if 1:\n\tx = 1\n"),
    ("  ```\n  x = 1\n\n  y = 2\n  ```", "x = 1\n\ny = 2\n"),
    ("   ```\nx = 1\n   ```", "x = 1\n"),
    ("```\n  x = 1\n```", "  x = 1\n"),
    # nested
    (
        '```python\ndef f():\n    """\n    ```\n    f()\n    ```\n    """\n```',
        'def f():\n    """\n    ```\n    f()\n    ```\n    """\n',
    ),
    ("````markdown\n```python\nx = 1\n```\n````", "```python\nx = 1\n```\n"),
    ("~~~\n```\nx = 1\n```\n~~~", "```\nx = 1\n```\n"),
    ("```` python\nx = '```'\n````", "x = '```'\n"),
    ("```python\nx = 1\n`````", "x = 1\n"),
    ("```python\nx = 1\n~~~", None),
    ("```python\nx = 1\n```\n```python\ny = 2", None),
    ("the ``` sign\n```\nx = 1\n```", "x = 1\n"),
    ("```inline``` code\n```\nx = 1\n```", "x = 1\n"),
    ("<think>\n```\nx = 1\n```", None),
]


@pytest.mark.parametrize(("response", "program"), FENCES)
def test_fences_are_read_as_in_commonmark(response: str, program: str | None) -> None:
    assert extract_code(response) == program


def test_an_expected_set_may_be_larger_than_the_cap() -> None:
    assert decode({"s": list(range(6000))}, set(range(6000))) == set(range(6000))


@pytest.mark.parametrize(
    ("value", "expected", "same"),
    [
        (1, Expected(value=1.0), True),
        (True, Expected(value=1), True),
        ((1, 2), Expected(value=[1, 2]), False),
        ((1, 2), Expected(value=[1, 2], comparison=Comparison.JSON), True),
        ([(1, 2)], Expected(value=[[1, 2]], comparison=Comparison.JSON), False),
        (math.nan, Expected(value=math.nan), False),
        ("1", Expected(value=1), False),
        (2.5001, Expected(value=2.5, comparison=Comparison.CLOSE, rel_tol=0.001), True),
        (2.6, Expected(value=2.5, comparison=Comparison.CLOSE, rel_tol=0.001), False),
        ("2.5", Expected(value=2.5, comparison=Comparison.CLOSE), False),
        (10**400, Expected(value=2.5, comparison=Comparison.CLOSE), False),
        ([], Expected(value=False, comparison=Comparison.TRUTH), True),
        ("x", Expected(value=True, comparison=Comparison.TRUTH), True),
    ],
)
def test_values_compare_as_python_does(value: Any, expected: Expected, same: bool) -> None:
    assert matches(value, expected) is same


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("3\n", "3", True),
        ("3 ", "3\n", True),
        ("\n\n3\n\n", "3", True),
        ("  a  \nb", "a\n b ", True),
        ("a  b", "a b", False),
        ("1  2", "1 2", True),
        ("1.50", "1.5", True),
        ("1e2", "100", True),
        ("0.1", "0.10000001", False),
        ("1\n2", "1 2", False),
        ("1", "1\n2", False),
        ("a", "A", False),
        ("1 a", "1.0 a", False),
        ("nan", "1", False),
        ("sNaN", "1", False),
        ("１", "1", False),
        ("1_0", "10", False),
        ("", "0", False),
        ("1e999999999", "1", False),
    ],
)
def test_output_is_compared_by_lines_and_then_by_numbers(printed: str, expected: str, same: bool) -> None:
    assert same_output(printed.encode(), expected) is same
