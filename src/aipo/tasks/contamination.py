"""Does a training file hold questions of an evaluation file? Exact matches and shared runs of 13 words.

An evaluation question that the training file contains in full, up to case, space and punctuation, is always
found.

13-gram overlap is the rule of the GPT-3 report, https://arxiv.org/abs/2005.14165, appendix C. Simplification:
one shared run is enough to count a question, so common phrases of 13 words count; a paraphrase is not found.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from aipo.tasks.base import TaskError
from aipo.tasks.files import rows, shown

RUN_WORDS = 13
QUESTION_COLUMNS = (
    "problem",
    "Problem",
    "question",
    "Question",
    "question_content",
    "prompt",
    "text",
)
"""Where a question stands, when no column is named: the first of these that a row has."""

# A word, a number, a LaTeX command, or one sign that carries meaning in mathematics.
_WORD = re.compile(r"\\?\w+|[-+*/=<>^]")


class Match(StrEnum):
    """How an evaluation question was found."""

    EXACT = "exact"
    """The whole question, normalised."""
    RUN = "13-gram"
    """At least one run of 13 words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """One evaluation question that the training file has, and the first training row that shows it."""

    evaluation_row: int
    training_row: int
    match: Match
    words: str
    """The question, or its first shared run, as it was compared: shows whether it is a common phrase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contamination:
    """Counts of rows, and the overlaps in the order of the evaluation file."""

    training_rows: int
    evaluation_rows: int
    too_short: int
    """Evaluation questions of fewer than 13 words: only an exact match can find them."""
    overlaps: tuple[Overlap, ...]

    def count(self, match: Match) -> int:
        """Return how many evaluation questions were found in one way; each counts once, exact first."""
        return sum(overlap.match is match for overlap in self.overlaps)


def words(text: str) -> list[str]:
    r"""Return a question's words as they are compared: case folded, no space, no punctuation.

    >>> words("What is $2 + 3$,  Ann?"), words(r"\frac{1}{2}")
    (['what', 'is', '2', '+', '3', 'ann'], ['\\frac', '1', '2'])
    """
    return _WORD.findall(text.casefold())


def contamination(training: Iterable[str], evaluation: Iterable[str]) -> Contamination:
    """Look for each evaluation question in the training questions. Rows are numbered from 1.

    Memory grows with the evaluation questions alone; training questions are read once.
    """
    wanted = [words(question) for question in evaluation]
    exact: dict[str, list[int]] = {}
    runs: dict[str, list[int]] = {}
    for row, question in enumerate(wanted, start=1):
        exact.setdefault(" ".join(question), []).append(row)
        for run in _runs(question):
            runs.setdefault(run, []).append(row)
    found_exact: dict[int, int] = {}
    found_run: dict[int, tuple[int, str]] = {}
    count = 0
    for number, text in enumerate(training, start=1):
        count = number
        question = words(text)
        for row in exact.get(" ".join(question), ()) if question else ():
            found_exact.setdefault(row, number)
        for run in _runs(question):
            for row in runs.get(run, ()):
                found_run.setdefault(row, (number, run))
    overlaps = [
        Overlap(evaluation_row=r, training_row=n, match=Match.EXACT, words=" ".join(wanted[r - 1]))
        for r, n in found_exact.items()
    ]
    overlaps += [
        Overlap(evaluation_row=r, training_row=n, match=Match.RUN, words=run)
        for r, (n, run) in found_run.items()
        if r not in found_exact
    ]
    overlaps.sort(key=lambda overlap: overlap.evaluation_row)
    short = sum(len(question) < RUN_WORDS for question in wanted)
    return Contamination(
        training_rows=count, evaluation_rows=len(wanted), too_short=short, overlaps=tuple(overlaps)
    )


def questions(path: Path, column: str = "") -> Iterator[str]:
    """Yield a file's questions: of `column`, or of the first of `QUESTION_COLUMNS` that a row has.

    Messages count as their last user's text.

    Raises:
        TaskError: the file cannot be read, or a row has no such column or no text in it.
    """
    for line, row in rows(path):
        yield _question(f"{path}:{line}", row, column)


def _question(place: str, row: Any, column: str) -> str:
    if not isinstance(row, Mapping):
        raise TaskError(f"{place}: {shown(row)} is not an object; write one JSON object for each row")
    name = column or next((name for name in QUESTION_COLUMNS if name in row), "")
    if name not in row:
        raise TaskError(
            f"{place}: no field {name or QUESTION_COLUMNS!r}; the row has {', '.join(map(repr, row))}; name "
            "the column with --train-column or --eval-column"
        )
    value = row[name]
    if isinstance(value, list):
        users = [m.get("content") for m in value if isinstance(m, Mapping) and m.get("role") == "user"]
        value = users[-1] if users else None
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{place}: field {name!r}: {shown(row[name])}; must be a string with text in it")
    return value


def _runs(question: list[str]) -> Iterator[str]:
    for start in range(len(question) - RUN_WORDS + 1):
        yield " ".join(question[start : start + RUN_WORDS])
