"""GPQA: four choices whose order is fixed for each record and says nothing about the answer.

The order depends on the record's id alone: not on the file's order, the run or other rows.

A loader that seeds its shuffle anew for each row puts the gold at A in all 198 rows, and a policy that always
answers A then scores 100 %; hence `check_letters`. The permutation is of this project, so letters differ from
those of other frameworks.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aipo.tasks.benchmarks.benchmark import Kind, Row
from aipo.tasks.cells import id_of, text_of

LETTERS = "ABCD"
COLUMNS = (
    "Question",
    "Correct Answer",
    "Incorrect Answer 1",
    "Incorrect Answer 2",
    "Incorrect Answer 3",
)
MAX_SIGMAS = 4.0
"""How far a letter's count may be from a quarter of the rows, in standard deviations."""


def gpqa_row(default: str, row: Mapping[str, Any]) -> Row:
    """Read a record; without a "Record ID" the question's text seeds the order."""
    question, *choices = (text_of(row, column) for column in COLUMNS)
    identity = id_of(row, default, "Record ID")
    seed = identity if "Record ID" in row else question
    order = permutation(seed)
    lines = [f"({letter}) {choices[place]}" for letter, place in zip(LETTERS, order, strict=True)]
    letter = LETTERS[order.index(0)]
    problem = "\n\n".join([question, "\n".join(lines)])
    return Row(
        id=identity,
        problem=problem,
        gold=letter,
        kind=Kind.CHOICE,
        material=tuple(order),
        secrets=(letter, choices[0]),
    )


def permutation(record: str) -> list[int]:
    """Return the order of a record's four choices; 0 is the right one.

    >>> permutation("recA") == permutation("recA"), sorted(permutation("recB"))
    (True, [0, 1, 2, 3])
    """

    def rank(place: int) -> bytes:
        return hashlib.sha256(f"aipo gpqa {record} {place}".encode(errors="surrogatepass")).digest()

    return sorted(range(len(LETTERS)), key=rank)


def check_letters(rows: tuple[Row, ...]) -> None:
    """Raise `ValueError` when one letter is the gold far more or less often than a fair shuffle makes it."""
    counts = Counter(row.gold for row in rows)
    expected = len(rows) / len(LETTERS)
    allowed = MAX_SIGMAS * (len(rows) * 0.25 * 0.75) ** 0.5
    if any(abs(counts[letter] - expected) > allowed for letter in LETTERS):
        found = ", ".join(f"{letter} {counts[letter]}" for letter in LETTERS)
        raise ValueError(
            f"the gold letters are {found} of {len(rows)}; a fair shuffle has {expected:.0f} ± "
            f"{allowed:.0f} of each: the record ids are not distinct, give the original file"
        )
