"""Mathematical answers labelled by hand (`data/math_battery.jsonl`): 95 % as labelled, no cheat CORRECT, none
hangs.

Labels say what a careful teacher would say, not what the grader does. Known to differ: six digits count as
1/7, `s` is not known to mean seconds. `data/math_forms.jsonl` are forms that
people reported as misread (signs of Unicode, small numbers, times, unions, prose, costly answers): none of
its wrong answers is CORRECT, and none of its answers is UNGRADED.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.guards import decide
from aipo.grading.pool import MathPool, grade_math

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "math_battery.jsonl").read_text("utf-8").splitlines()
]
FORMS = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "math_forms.jsonl").read_text("utf-8").splitlines()
]
TIMEOUT_S = 4.0


@pytest.fixture(scope="module")
def graded() -> Iterator[list[tuple[dict[str, str], Grade, float]]]:
    async def one(row: dict[str, str], pool: MathPool) -> tuple[dict[str, str], Grade, float]:
        start = time.monotonic()
        grade = await pool.equal(row["gold"], row["answer"])
        return row, grade, time.monotonic() - start

    async def all_of_them() -> list[tuple[dict[str, str], Grade, float]]:
        pool = MathPool(timeout_s=TIMEOUT_S)
        try:
            return [await one(row, pool) for row in ROWS]
        finally:
            pool.close()

    yield asyncio.run(all_of_them())


def test_the_battery_is_large_and_has_both_verdicts_in_every_group() -> None:
    groups = {row["group"] for row in ROWS}
    assert len(ROWS) >= 150 and len({(row["gold"], row["answer"]) for row in ROWS}) == len(ROWS)
    assert Counter(row["group"] for row in ROWS)["hostile"] >= 40
    for group in groups - {"hostile"}:
        assert {row["verdict"] for row in ROWS if row["group"] == group} == {"correct", "incorrect"}


def test_at_least_95_percent_are_as_labelled(graded: list[tuple[dict[str, str], Grade, float]]) -> None:
    wrong = [(row, grade) for row, grade, _ in graded if grade.verdict.value != row["verdict"]]
    assert len(wrong) <= 0.05 * len(ROWS), wrong


def test_no_hostile_answer_is_correct(graded: list[tuple[dict[str, str], Grade, float]]) -> None:
    hostile = [(row, grade) for row, grade, _ in graded if row["group"] == "hostile"]
    assert [pair for pair in hostile if pair[1].verdict is Verdict.CORRECT] == []


@pytest.mark.parametrize(
    "answer", ["(10^9)!", "((((10!)!)!)!)!", "(2^{64})!", "9^{9^{9^{9}}}", "2^{99999999}"]
)
def test_towers_and_factorials_of_them_cost_nothing(answer: str) -> None:
    assert decide("5", answer) == Grade(Verdict.INCORRECT, "too_costly")


def test_harmless_factorials_are_still_computed() -> None:
    assert [decide("720", answer) for answer in ("6!", "(3!)(5!)", "(2+4)!", "3!^2")] == [None] * 4


@pytest.mark.parametrize(
    ("gold", "answer"), [(r"12\text{ cm}", r"12\text{ m}"), (r"4\text{ s}", r"4\text{ m}")]
)
def test_units_of_one_letter_are_told_apart(gold: str, answer: str) -> None:
    assert decide(gold, answer) == Grade(Verdict.INCORRECT, "unit")


def test_no_answer_takes_longer_than_its_deadline_and_one_start(
    graded: list[tuple[dict[str, str], Grade, float]],
) -> None:
    assert [row for row, _, seconds in graded if seconds > TIMEOUT_S + 30] == []


def test_a_hostile_answer_is_not_correct_inside_a_response_either() -> None:
    async def all_of_them() -> list[tuple[dict[str, str], Grade]]:
        pool = MathPool(timeout_s=TIMEOUT_S)
        rows = [row for row in ROWS if row["group"] == "hostile" and len(row["answer"]) < 30]
        try:
            return [
                (row, await grade_math(rf"So \boxed{{{row['answer']}}}.", row["gold"], pool)) for row in rows
            ]
        finally:
            pool.close()

    graded = asyncio.run(all_of_them())
    assert [(row, grade) for row, grade in graded if grade.verdict is Verdict.CORRECT] == []


def test_forms_that_are_often_misread_are_read_and_no_answer_leaves_the_batch() -> None:
    async def all_of_them() -> list[tuple[str, str, str, Verdict]]:
        pool = MathPool(timeout_s=1.0)
        try:
            return [
                (r["gold"], r["answer"], r["verdict"], (await pool.equal(r["gold"], r["answer"])).verdict)
                for r in FORMS
            ]
        finally:
            pool.close()

    graded = asyncio.run(all_of_them())
    assert len({(gold, answer) for gold, answer, _, _ in graded}) == len(FORMS) >= 300
    assert [row for row in graded if row[3] is Verdict.UNGRADED] == []
    false = [row for row in graded if row[2] == "incorrect" and row[3] is Verdict.CORRECT]
    assert false == []
    missed = [row for row in graded if row[2] == "correct" and row[3] is not Verdict.CORRECT]
    assert len(missed) <= 0.02 * len(FORMS), missed
