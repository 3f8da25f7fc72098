"""Does a benchmark's grading work on its own rows? Golds are right, other rows' golds and silence are not.

Every row is checked; a row that cannot be checked is counted, never skipped silently.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.text import exact_match
from aipo.tasks.benchmarks.benchmark import Row
from aipo.tasks.benchmarks.schemas import without_degrees
from aipo.tasks.benchmarks.task import Graders, gold_response


class Check(StrEnum):
    """What is put to the grader for each row."""

    GOLD = "gold"
    """The row's own gold: must be CORRECT."""
    OTHER = "another row's gold"
    """The gold of another row that differs: must be INCORRECT."""
    EMPTY = "empty answer"
    """Nothing: must be INCORRECT."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One verdict that is not as it must be."""

    row: str
    check: Check
    grade: Grade


@dataclass(slots=True, kw_only=True)
class Validation:
    """Counts of a whole file."""

    rows: int
    as_expected: dict[Check, int] = field(default_factory=lambda: dict.fromkeys(Check, 0))
    not_checked: dict[Check, int] = field(default_factory=lambda: dict.fromkeys(Check, 0))
    """Rows without a gold that can be put to the grader, or without a row that differs."""
    violations: list[Violation] = field(default_factory=list)


async def validate(rows: Sequence[Row], graders: Graders) -> Validation:
    """Put each row's gold, another row's and an empty response to the graders.

    The other row is the next one of the stratum, cyclically, whose gold is another answer (`same_answer`).
    """
    result = Validation(rows=len(rows))
    for index, row in enumerate(rows):
        other = _other(rows, index)
        responses = {
            Check.GOLD: gold_response(row),
            Check.OTHER: gold_response(other) if other else None,
            Check.EMPTY: "",
        }
        for check, response in responses.items():
            if response is None:
                result.not_checked[check] += 1
                continue
            grade = await graders.grade(row, response)
            expected = Verdict.CORRECT if check is Check.GOLD else Verdict.INCORRECT
            if grade.verdict is expected:
                result.as_expected[check] += 1
            else:
                result.violations.append(Violation(row.id, check, grade))
    return result


def _other(rows: Sequence[Row], index: int) -> Row | None:
    row = rows[index]
    for step in range(1, len(rows)):
        other = rows[(index + step) % len(rows)]
        if other.stratum == row.stratum and not same_answer(row.gold, other.gold):
            return other
    return None


def same_answer(one: str, other: str) -> bool:
    r"""Tell whether two golds are one answer: `x =` before it and a degree sign after it do not count.

    >>> same_answer("x=5", "5"), same_answer("36", r"36^\circ"), same_answer("5", "6")
    (True, True, False)
    """
    return exact_match(_bare(one), _bare(other))


def _bare(gold: str) -> str:
    return without_degrees(gold.rpartition("=")[2])
