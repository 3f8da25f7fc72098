"""The programmatic expert of the products task: the words of the three agents.

It sees what an agent sees (problem, rollout, request) and never states the answer by itself. The value of
the last line equals the answer all the same: a leak that this task has by construction.
"""

from collections.abc import Sequence

from aipo.core.types import KNOWLEDGE, REASONING, VERIFY
from aipo.tasks.base import Ask, Problem, Wording
from aipo.tasks.cpu.products.notation import (
    EQUALS,
    MARKS,
    OK,
    SUM_DIGITS,
    WRONG,
    digits,
    is_one_line,
    lines,
    operation_words,
    parse_operation,
    plan,
)
from aipo.tasks.cpu.worked import Reader


class ProductsOracle:
    """`aipo.tasks.base.Oracle`: exact, deterministic."""

    def __init__(self, wording: Wording) -> None:
        self._reader = Reader(wording)

    def feedback(self, agent: str, problem: str, rollout: str, request: str) -> str:
        """Return Knowledge's value, Reasoning's next line or Verify's verdict; '' when there is nothing to
        say."""
        if agent == KNOWLEDGE:
            return _value(request)
        expected = lines(plan(parse_operation(problem)))
        whole, rest = _split_lines(self._reader.words(rollout), expected)
        if agent == REASONING:
            return _next_words(expected, whole, rest)
        if agent == VERIFY:
            return _check(expected, whole)
        raise KeyError(agent)


def _value(request: str) -> str:
    try:
        operation = parse_operation(request)
    except ValueError:
        return ""
    return " ".join(digits(operation.value, SUM_DIGITS)) if is_one_line(operation) else ""


def _split_lines(
    words: Sequence[str], expected: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[str]]:
    """Return whole lines and the unfinished rest. A line marked WRONG replaces the first wrong one."""
    whole: list[list[str]] = []
    rest: list[str] = []
    for word in words:
        if word == OK:
            continue
        rest.append(word)
        if word not in MARKS:
            continue
        if rest[0] == WRONG:
            place = _first_wrong(expected, whole)
            whole[place : place + 1] = [rest[1:]]
        else:
            whole.append(rest)
        rest = []
    return whole, rest


def _first_wrong(expected: Sequence[Sequence[str]], whole: Sequence[Sequence[str]]) -> int:
    """Return the place of the first wrong line; behind the last line if all are right."""
    return next((i for i, row in enumerate(whole) if i >= len(expected) or row != expected[i]), len(whole))


def _next_words(
    expected: Sequence[Sequence[str]], whole: Sequence[Sequence[str]], rest: Sequence[str]
) -> str:
    """Return what completes the next line; nothing if it was begun otherwise: no rest makes it right."""
    if len(whole) >= len(expected):
        return ""
    following = expected[len(whole)]
    return " ".join(following[len(rest) :]) if list(rest) == list(following[: len(rest)]) else ""


def _check(expected: Sequence[Sequence[str]], whole: Sequence[Sequence[str]]) -> str:
    place = _first_wrong(expected, whole)
    if place < min(len(whole), len(expected)):
        return " ".join([WRONG, *expected[place]])
    return OK if whole else ""


def asking(problem: Problem, agent: str) -> Sequence[str | Ask]:
    """Return the first line up to where the agent is asked: Knowledge for its value, Verify at its end.

    >>> problem = Problem(id="", text="7 4 * 6 0", gold="")
    >>> asking(problem, "knowledge")
    ['7 4 * 6 0 = ', Ask(agent='knowledge', request='7 4 * 6 0')]
    >>> asking(problem, "reasoning"), asking(problem, "verify")
    ([Ask(agent='reasoning', request='')], ['7 4 * 6 0 = 2 8 2 0 done ', Ask(agent='verify', request='')])
    """
    steps = plan(parse_operation(problem.text))
    first = lines(steps)[0]
    if agent == KNOWLEDGE:
        begun = first[: first.index(EQUALS) + 1]
        return [" ".join(begun) + " ", Ask(agent, " ".join(operation_words(steps[0])))]
    if agent == VERIFY:
        return [" ".join(first) + " ", Ask(agent, "")]
    return [Ask(agent, "")] if agent == REASONING else []
