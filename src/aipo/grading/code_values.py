"""What came out of a sandbox against what was expected: values as Python compares them, output as judges do.

Everything decoded here was written by an adversary: the time to decode and compare is bounded by the size of
the text and of the expected value, and no code of the program's runs, since what is compared are builtin
values made here.
"""

import json
import math
import re
from collections import Counter
from decimal import Decimal
from typing import Any

from aipo.grading.code_tests import Comparison, Expected

MAX_DEPTH = 64
MAX_UNORDERED = 5_000
"""Elements of a set or dictionary, or as many as the expected value has."""

MAX_EQUAL_HASHES = 64
"""Members of one set or dictionary whose hashes may be equal; honest ones have one or two."""

_NUMBER = re.compile(r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]{1,6})?")
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class MalformedValue(ValueError):
    """A line that the harness does not write: the program wrote it."""


def decode(tree: Any, expected: Any = None) -> Any:
    """Return the builtin value that a JSON tree of the harness stands for.

    Raises:
        MalformedValue: the tree is no value, or an unordered collection is larger than any that could be
        right.

    >>> decode({"t": [1, {"s": [2]}]})
    (1, {2})
    """
    return _decode(tree, max(MAX_UNORDERED, _size(expected)), MAX_DEPTH)


def _decode(tree: Any, most: int, depth: int) -> Any:
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if not depth:
        raise MalformedValue("nested too deeply")
    if isinstance(tree, list):
        return [_decode(item, most, depth - 1) for item in tree]
    if not isinstance(tree, dict) or len(tree) != 1:
        raise MalformedValue("not a value")
    ((tag, body),) = tree.items()
    if tag in ("i", "f", "b"):
        return _scalar(tag, body)
    if not isinstance(body, list):
        raise MalformedValue("not a list")
    if tag == "c" and len(body) == 2:
        return complex(_real(body[0]), _real(body[1]))
    if tag == "t":
        return tuple(_decode(item, most, depth - 1) for item in body)
    if tag in ("s", "z", "d"):
        if len(body) > most:
            raise MalformedValue("too many elements")
        return _unordered(tag, body, most, depth - 1)
    raise MalformedValue("unknown tag")


def _scalar(tag: str, body: Any) -> Any:
    if not isinstance(body, str):
        raise MalformedValue("not text")
    try:
        return int(body, 16) if tag == "i" else bytes.fromhex(body) if tag == "b" else _FLOATS[body]
    except (ValueError, KeyError) as error:
        raise MalformedValue(str(error)) from error


def _real(text: Any) -> float:
    try:
        return float(text) if isinstance(text, str) else 1 / 0
    except (ValueError, ZeroDivisionError) as error:
        raise MalformedValue("no part of a complex number") from error


def _unordered(tag: str, body: list[Any], most: int, depth: int) -> Any:
    try:
        if tag == "d":
            pairs = [(_decode(key, most, depth), _decode(item, most, depth)) for key, item in body]
            _check_hashes([key for key, _ in pairs])
            return dict(pairs)
        items = [_decode(item, most, depth) for item in body]
        _check_hashes(items)
        return frozenset(items) if tag == "z" else set(items)
    except (TypeError, ValueError) as error:  # not hashable, not a pair
        raise MalformedValue(str(error)) from error


def _check_hashes(items: list[Any]) -> None:
    """Refuse members that were chosen so that a set of them is slow. Raises `TypeError` for an unhashable."""
    if max(Counter(map(hash, items)).values(), default=0) > MAX_EQUAL_HASHES:
        raise MalformedValue("equal hashes")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, set | frozenset | dict) else 0


def parse_lines(text: bytes) -> list[tuple[str, Any]]:
    """Return the harness's lines as (`v`, tree) or (`e`, name).

    Raises:
        MalformedValue: a line is none.
    """
    lines = []
    for line in text.split(b"\n"):
        if not line:
            continue
        try:
            parsed = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MalformedValue("not JSON") from error
        if not isinstance(parsed, dict) or len(parsed) != 1 or not parsed.keys() <= {"v", "e"}:
            raise MalformedValue("not a line of the harness")
        ((tag, body),) = parsed.items()
        if tag == "e" and not (isinstance(body, str) and re.fullmatch(r"\w{1,40}", body)):
            raise MalformedValue("not the name of an error")
        lines.append((tag, body))
    return lines


def matches(value: Any, expected: Expected) -> bool:
    """Tell whether a decoded value is the expected one; builtin values only, so `==` is Python's own."""
    if expected.comparison is Comparison.TRUTH:
        return bool(value) is bool(expected.value)
    if expected.comparison is Comparison.CLOSE:
        if not isinstance(value, int | float):
            return False
        try:
            return math.isclose(value, expected.value, rel_tol=expected.rel_tol, abs_tol=expected.abs_tol)
        except (OverflowError, TypeError):  # an integer beyond any float
            return False
    if expected.comparison is Comparison.JSON and isinstance(value, tuple):
        value = list(value)
    try:
        return bool(value == expected.value)
    except RecursionError:
        return False


def same_output(printed: bytes, expected: str) -> bool:
    """Tell whether output is the expected one: line by line, and a line that differs number by number.

    Blanks at both ends of a line, and blank lines at both ends, do not count. Of a line that differs every
    token must be a number on both sides: LiveCodeBench's protocol.

    >>> same_output(b"1.0 2\\nyes\\n\\n", "1 2.00\\nyes"), same_output(b"a", "A"), same_output(b"1", "1 2")
    (True, False, False)
    """
    ours = expected.strip().split("\n")
    theirs = printed.decode("utf-8", "replace").strip().split("\n")
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def _same_line(expected: str, printed: str) -> bool:
    ours, theirs = expected.strip(), printed.strip()
    if ours == theirs:
        return True
    numbers, others = ours.split(), theirs.split()
    return len(numbers) == len(others) and all(map(_same_number, numbers, others))


def _same_number(expected: str, printed: str) -> bool:
    """Compare as decimals; only plain ASCII numbers, though Decimal would also read other alphabets and
    `nan`."""
    if not (_NUMBER.fullmatch(expected) and _NUMBER.fullmatch(printed)):
        return False
    return Decimal(expected) == Decimal(printed)
