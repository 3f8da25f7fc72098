"""Problems from files of your own (JSON lines, JSON, Parquet, CSV), read by the names of their columns.

The splits are disjoint by problem text. A row that cannot be used stops the run, and the error names it; or
it is left out and counted, where `task.on_bad_row` says so.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.extract import MAX_CHARS, extract_answer, last_line
from aipo.grading.pool import MathPool, grade_math
from aipo.grading.text import exact_match, without_gold
from aipo.tasks.base import Problem, Split, TaskError
from aipo.tasks.cells import found, golds_of, id_of, missing, names, turns_of, usable
from aipo.tasks.files import rows_or_errors, shown
from aipo.tasks.splits import HELD_OUT_SHARE, disjoint

OnBadRow = Literal["refuse", "drop"]
Golds = Literal["one", "all", "any"]
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_NAMED = 10
"""Rows that an error names; all are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonlSource:
    """One file and its columns; `a.b` names a field inside a column."""

    path: Path
    problem_field: str = "problem"
    """A text, or the messages of a conversation that ends with the user's."""
    answer_field: str = "answer"
    answer_after: str = ""
    """The gold is what stands after the last of these marks (GSM8K: `####`); '': the whole answer."""
    solution_field: str = "solution"
    """The column with an expert's whole solution; rows need not have one."""
    id_field: str = "id"
    """Rows need not have one: the file's stem and the row's index stand for an id that is not there."""
    stratum_field: str = "stratum"
    """The column with the part of the data that results are reported for; rows need not have one."""
    tools_field: str = ""
    """The column with the functions that a row's prompt offers; rows need not have one."""
    golds: Golds = "one"
    """What a list of golds means: an error, one answer that holds all of them, or that any one is right."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(slots=True)
class Loaded:
    """A file's problems, in its order, and the rows that cannot be used."""

    problems: list[Problem]
    bad: list[BadRow] = field(default_factory=list)


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
        on_bad_row: OnBadRow = "refuse",
    ) -> None:
        self._pool = MathPool(grade_workers, grade_timeout_s) if match == "math" else None
        try:
            loaded = {split: read(source, self._pool) for split, source in sources.items()}
            self.bad_rows = [bad for each in loaded.values() for bad in each.bad]
            if on_bad_row == "refuse" and self.bad_rows:
                raise TaskError(said(self.bad_rows))
            for split, each in loaded.items():
                if not each.problems:
                    raise TaskError(f"{sources[split].path}: no usable row; the first: {each.bad[0]}")
        except TaskError:
            self.close()
            raise
        parts = disjoint({split: each.problems for split, each in loaded.items()}, lambda p: p.text)
        self.dropped_overlaps, self._problems = parts.dropped, parts.rows
        self._sources = dict(sources)

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
        grades = [await self._grade(response, gold) for gold in (problem.gold, *problem.alternatives)]
        order = (Verdict.CORRECT, Verdict.UNGRADED, Verdict.INCORRECT)
        return min(grades, key=lambda grade: order.index(grade.verdict))

    async def _grade(self, response: str, gold: str) -> Grade:
        if self._pool is not None:
            return await grade_math(response, gold, self._pool)
        answer = extract_answer(response) or last_line(response)
        if not answer:
            return Grade(Verdict.INCORRECT, "no_answer")
        same = exact_match(gold, answer)
        return Grade(Verdict.CORRECT, "exact") if same else Grade(Verdict.INCORRECT, "different")

    def without_answer(self, problem: Problem, text: str) -> str | None:
        """Hide the gold, as it is written, in an agent's words."""
        hidden = None
        for gold in sorted((problem.gold, *problem.alternatives), key=len, reverse=True):
            hidden = without_gold(hidden or text, gold) or hidden
        return hidden

    def close(self) -> None:
        """End the grader processes. Closing twice is harmless."""
        if self._pool is not None:
            self._pool.close()


def load(source: JsonlSource) -> list[Problem]:
    """Return the problems of one file, in its order.

    A row's id is its `id`; where it has none, or another row has it too, the file's stem and the row's index.

    Raises:
        TaskError: the file is missing, empty or malformed, or a row cannot be used.
    """
    loaded = read(source)
    if loaded.bad:
        raise TaskError(said(loaded.bad))
    return loaded.problems


def read(source: JsonlSource, pool: MathPool | None = None) -> Loaded:
    """Return a file's usable problems and its other rows; with a `pool`, golds that it cannot read are bad.

    Raises:
        TaskError: the file as a whole cannot be read, or has no rows.
    """
    loaded, taken, count = Loaded([]), Counter[str](), 0
    for index, (line, row) in enumerate(rows_or_errors(source.path)):
        count, place, default = index + 1, f"{source.path}:{line}", f"{source.path.stem}/{index}"
        try:
            if isinstance(row, TaskError):
                raise ValueError(str(row).removeprefix(f"{place}: "))
            problem = _problem(row, source, default)
        except ValueError as error:
            loaded.bad.append(BadRow(place, str(error)))
            continue
        taken[problem.id] += 1
        if taken[problem.id] > 1:
            problem = replace(problem, id=f"{problem.id} ({default})")
        loaded.problems.append(replace(problem, place=place))
    if not count:
        raise TaskError(f"{source.path}: the file has no rows; write one JSON object a line")
    return _with_readable_golds(loaded, pool) if pool else loaded


def said(bad: Sequence[BadRow]) -> str:
    """Return one message about rows that cannot be used."""
    if len(bad) == 1:
        return str(bad[0])
    listed = "".join(f"\n  {each}" for each in bad[:_NAMED])
    more = f"\n  and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return (
        f"{bad[0].place}: {len(bad)} rows cannot be used; mend them, or leave them out with "
        f"task.on_bad_row = 'drop':{listed}{more}"
    )


def _with_readable_golds(loaded: Loaded, pool: MathPool) -> Loaded:
    """Move the problems whose gold no grader can read to the bad rows."""
    unreadable = pool.unreadable(g for p in loaded.problems for g in (p.gold, *p.alternatives))
    kept, bad = [], list(loaded.bad)
    for problem in loaded.problems:
        golds = (problem.gold, *problem.alternatives)
        if long := next((gold for gold in golds if len(gold) > MAX_CHARS), None):
            fix = "give the column with the final answer, or set task.answer_after"
            reason = (
                f"gold {shown(long)}: more than the {MAX_CHARS} characters that an answer may have; {fix}"
            )
        elif gold := next((gold for gold in golds if gold in unreadable), None):
            reason = f"gold {shown(gold)} cannot be graded ({unreadable[gold]}); write it as LaTeX"
        else:
            kept.append(problem)
            continue
        bad.append(BadRow(problem.place, f"{reason}, or compare texts with task.match = 'exact'"))
    return Loaded(kept, bad)


def _problem(row: Any, source: JsonlSource, default_id: str) -> Problem:
    if not isinstance(row, dict):
        raise ValueError(f"{shown(row)} is not an object; write {{{source.problem_field!r}: ..., ...}}")
    turns = turns_of(row, source.problem_field, "task.problem_field")
    golds = golds_of(row, source.answer_field, source.answer_after, "task.answer_field")
    golds = tuple(_answer_of(gold, source.answer_field) for gold in golds)
    if len(golds) > 1 and source.golds == "one":
        raise ValueError(
            f"field {source.answer_field!r}: {shown(list(golds))}: {len(golds)} golds; say with task.golds "
            "whether an answer has to state 'all' of them, or 'any' one"
        )
    if source.golds == "all":
        golds = (",".join(golds),)
    solution = _optional(row, source.solution_field)
    if not isinstance(solution, str | None):
        raise ValueError(
            f"field {source.solution_field!r}: {shown(solution)}; must be an expert's solution as a "
            "string; name the column in task.solution_field, '' for none"
        )
    stratum = _optional(row, source.stratum_field)
    return Problem(
        id=_id(row, source, default_id),
        text=_text(turns),
        gold=golds[0],
        alternatives=golds[1:],
        solution=usable(solution, source.solution_field) if solution else None,
        stratum="all" if stratum is None else usable(str(stratum), source.stratum_field),
        turns=turns if len(turns) > 1 else (),
        tools=_tools(row, source.tools_field),
        row=row,
    )


def _text(turns: Sequence[tuple[str, str]]) -> str:
    """Return the problem in one text: the user's only message, or the conversation without its system."""
    spoken = [turn for turn in turns if turn[0] != "system"]
    if len(spoken) == 1:
        return spoken[0][1]
    return "\n\n".join(f"{role.capitalize()}: {words}" for role, words in spoken)


def _answer_of(gold: str, column: str) -> str:
    """Return the answer in a gold that holds a box. Raises `ValueError` for several."""
    if not _BOX.search(gold):
        return gold
    boxes = {extract_answer(part) for part in _from_each_box(gold)}
    if len(boxes) == 1 and (box := boxes.pop()):
        return box
    raise ValueError(
        f"field {column!r}: {shown(gold)}: a solution with {len(boxes)} boxes; give the column with the "
        "final answer, or set task.answer_after"
    )


def _from_each_box(text: str) -> Iterable[str]:
    starts = [match.start() for match in _BOX.finditer(text)]
    return (text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True))


def _id(row: Mapping[str, Any], source: JsonlSource, default: str) -> str:
    name = source.id_field
    if not name:
        return default
    try:
        return id_of({name: found(row, name)}, default, name)
    except ValueError:  # an id of another form identifies nothing here; the row's number does
        return default


def _optional(row: Mapping[str, Any], name: str) -> Any:
    """Return a cell of a column that rows need not have; None where it is empty."""
    if not name or (name not in row and name not in names(row)):
        return None
    value = found(row, name)
    return None if missing(value) or value == "" else value


def _tools(row: Mapping[str, Any], name: str) -> str:
    value = _optional(row, name)
    if not value:
        return ""
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        tools = None
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError(
            f"field {name!r}: {shown(value)}; must be a list of functions, as in JSON schema; name the "
            "column in task.tools_field, '' for none"
        )
    return json.dumps(tools, ensure_ascii=False) if tools else ""
