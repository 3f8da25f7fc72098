"""The programmatic expert of the CPU task: the words of the three agents.

It sees what an agent sees (problem, rollout, request) and never states the total by itself. The running sum
of the last line equals the total all the same: a leak that this task has by construction.
"""

from collections.abc import Sequence

from aipo.core.types import KNOWLEDGE, REASONING, VERIFY
from aipo.tasks.base import Ask, Problem, Wording
from aipo.tasks.cpu.leg_counting.notation import (
    LABELS,
    LEGS,
    LINE_END,
    OK,
    WRONG,
    lines,
    parse_problem,
)
from aipo.tasks.cpu.worked import Reader


class LegCountingOracle:
    """`aipo.tasks.base.Oracle`: exact, deterministic."""

    def __init__(self, wording: Wording) -> None:
        self._reader = Reader(wording)

    def feedback(self, agent: str, problem: str, rollout: str, request: str) -> str:
        """Return Knowledge's fact, Reasoning's next line or Verify's verdict; '' when there is nothing to
        say."""
        if agent == KNOWLEDGE:
            return _fact(problem, request)
        expected = lines(parse_problem(problem))
        written = self._reader.words(rollout)
        if agent == REASONING:
            return _next_words(expected, written)
        if agent == VERIFY:
            return _check(expected, written)
        raise KeyError(agent)


def _fact(problem: str, request: str) -> str:
    items = dict(zip(LABELS, parse_problem(problem), strict=False))
    item = items.get(request.strip())
    return str(LEGS[item.animal]) if item and item.animal in LEGS else ""


def _split_lines(words: list[str]) -> tuple[list[list[str]], list[str]]:
    """Return whole lines (a line marked WRONG replaces the one that it corrects) and the unfinished rest."""
    whole: list[list[str]] = []
    rest: list[str] = []
    for word in words:
        if word == OK:
            continue
        rest.append(word)
        if word != LINE_END:
            continue
        if rest[0] == WRONG:
            corrected = rest[1:]
            position = LABELS.index(corrected[0]) if corrected[0] in LABELS else len(whole)
            whole[position : position + 1] = [corrected]
        else:
            whole.append(rest)
        rest = []
    return whole, rest


def _next_words(expected: list[list[str]], written: list[str]) -> str:
    whole, rest = _split_lines(written)
    if len(whole) >= len(expected):
        return ""
    return " ".join(expected[len(whole)][len(rest) :])


def _check(expected: list[list[str]], written: list[str]) -> str:
    whole, _ = _split_lines(written)
    for stated, right in zip(whole, expected, strict=False):
        if stated != right:
            return " ".join([WRONG, *right])
    return OK if whole else ""


def asking(problem: Problem, agent: str) -> Sequence[str | Ask]:
    """Return the first line up to where the agent is asked: Knowledge for the legs, Verify at its end.

    >>> problem = Problem(id="", text="a 3 dog", gold="")
    >>> asking(problem, "knowledge"), asking(problem, "verify")
    (['a ', Ask(agent='knowledge', request='a')], ['a 4 2 1 2 1 0 ; ', Ask(agent='verify', request='')])
    """
    first = lines(parse_problem(problem.text))[0]
    if agent == KNOWLEDGE:
        return [f"{first[0]} ", Ask(agent, first[0])]
    if agent == VERIFY:
        return [" ".join(first) + " ", Ask(agent, "")]
    return [Ask(agent, "")] if agent == REASONING else []
