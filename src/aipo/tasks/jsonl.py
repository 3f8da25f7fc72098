"""Problems from files of your own (JSON lines, a JSON list, Parquet, CSV), read by the names of two columns.

The splits are disjoint by problem text. A row that cannot be used stops the run, and the error names it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.extract import extract_answer, last_line
from aipo.grading.pool import MathPool, grade_math
from aipo.grading.text import exact_match, without_gold
from aipo.tasks.base import Problem, Split, TaskError
from aipo.tasks.files import rows, shown
from aipo.tasks.splits import HELD_OUT_SHARE, disjoint

_THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonlSource:
    """One file and its columns."""

    path: Path
    problem_field: str = "problem"
    answer_field: str = "answer"
    answer_after: str = ""
    """The gold is what stands after the last of these marks (GSM8K: `####`); '': the whole answer."""
    solution_field: str = "solution"
    """The column with an expert's whole solution; rows need not have one."""


class JsonlTask:
    """Problems from files, graded by normalised text (`exact`) or by math-verify (`math`).

    All files are read at once. Rows of the train and validation files whose text also stands in a file that
    is held out from them are dropped and counted in `dropped_overlaps`. Without a validation file, 5 % of
    the train file is held out by a hash of the problem's text, the same rows in every run.

    Raises:
        TaskError: a file or a row cannot be used; the message names file, line, field, value and fix.
    """

    name = "jsonl"

    def __init__(
        self,
        sources: Mapping[Split, JsonlSource],
        match: Literal["exact", "math"] = "math",
        grade_timeout_s: float = 2.0,
        grade_workers: int = 1,
    ) -> None:
        loaded = {split: load(source) for split, source in sources.items()}
        parts = disjoint(loaded, lambda problem: problem.text)
        self.dropped_overlaps, self._problems = parts.dropped, parts.rows
        self._sources = dict(sources)
        self._pool = MathPool(grade_workers, grade_timeout_s) if match == "math" else None

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return the problems of a split, in the order of its file.

        Raises:
            TaskError: no file was given for the split, or none of its rows is left.
        """
        if problems := self._problems[split]:
            return problems
        field = f"task.{split.value}_file"
        if source := self._sources.get(split):
            raise TaskError(
                f"{source.path}: {field}: every problem also stands in a held-out file; use other files"
            )
        if split is Split.VALIDATION and (source := self._sources.get(Split.TRAIN)):
            raise TaskError(f"{source.path}: too few problems to hold out {HELD_OUT_SHARE:.0%}; set {field}")
        raise TaskError(f"the task has no {split.value} problems; set {field}")

    async def grade(self, problem: Problem, response: str) -> Grade:
        """Grade the assistant's whole turn by its last box.

        With `exact`, a response without a box is graded by its last line.

        Raises:
            RuntimeError: the task is closed. Never for what the response contains.
        """
        if self._pool is not None:
            return await grade_math(response, problem.gold, self._pool)
        answer = extract_answer(response) or last_line(response)
        if not answer:
            return Grade(Verdict.INCORRECT, "no_answer")
        same = exact_match(problem.gold, answer)
        return Grade(Verdict.CORRECT, "exact") if same else Grade(Verdict.INCORRECT, "different")

    def without_answer(self, problem: Problem, text: str) -> str | None:
        """Hide the gold, as it is written, in an agent's words."""
        return without_gold(text, problem.gold)

    def close(self) -> None:
        """End the grader processes. Closing twice is harmless."""
        if self._pool is not None:
            self._pool.close()


def load(source: JsonlSource) -> list[Problem]:
    """Return the problems of one file, in its order.

    A row's id is its `id`, or the file's stem and the row's index.

    Raises:
        TaskError: the file is missing, empty or malformed, or a row lacks a usable problem, answer or id.
    """
    problems: list[Problem] = []
    line_of: dict[str, int] = {}
    for index, (line, row) in enumerate(rows(source.path)):
        place = f"{source.path}:{line}"
        problem = _problem(place, row, source, f"{source.path.stem}/{index}")
        if (first := line_of.setdefault(problem.id, line)) != line:
            raise TaskError(
                f"{place}: field 'id': {problem.id!r} also stands in line {first}; ids must differ"
            )
        problems.append(problem)
    if not problems:
        raise TaskError(f"{source.path}: the file has no rows; write one JSON object a line")
    return problems


def _problem(place: str, row: Any, source: JsonlSource, default_id: str) -> Problem:
    if not isinstance(row, dict):
        raise TaskError(
            f"{place}: {shown(row)} is not an object; write {{{source.problem_field!r}: ..., ...}}"
        )
    text = _field(place, row, source.problem_field, "task.problem_field")
    if not isinstance(text, str) or not text.strip():
        raise TaskError(
            f"{place}: field {source.problem_field!r}: {shown(text)}; must be a string with text in it"
        )
    identity = row.get("id", default_id)
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise TaskError(
            f"{place}: field 'id': {shown(identity)}; must be a string or an integer, or left out"
        )
    solution = row.get(source.solution_field) or None
    if not isinstance(solution, str | None):
        raise TaskError(
            f"{place}: field {source.solution_field!r}: {shown(solution)}; must be an expert's solution as a "
            "string; name the column in task.solution_field, '' for none"
        )
    return Problem(id=str(identity), text=text, gold=_gold(place, row, source), solution=solution)


def _gold(place: str, row: dict[str, Any], source: JsonlSource) -> str:
    value = _field(place, row, source.answer_field, "task.answer_field")
    where = f"{place}: field {source.answer_field!r}: {shown(value)}"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TaskError(f"{where}; must be a string or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise TaskError(f"{where}; must be a finite number")
    text, mark = str(value), source.answer_after
    if mark and mark not in text:
        raise TaskError(f"{where} has no mark {mark!r}; correct the row or task.answer_after")
    gold = (text.rpartition(mark)[2] if mark else text).strip()
    if not gold:
        raise TaskError(
            f"{where} {f'has nothing after {mark!r}' if mark else 'is empty'}; give the gold answer"
        )
    return gold.replace(",", "") if _THOUSANDS.fullmatch(gold) else gold


def _field(place: str, row: dict[str, Any], field: str, setting: str) -> Any:
    if field not in row:
        raise TaskError(
            f"{place}: no field {field!r}; the row has {', '.join(map(repr, row))}; set {setting}"
        )
    return row[field]
