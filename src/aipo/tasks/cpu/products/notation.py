"""How a product, a sum and their solutions are written: the one place that knows the notation.

`parse_operation(problem_text(operation)) == operation`, and `answer(solution) == operation.value`.

Numbers are written least significant digit first, so that carries move forward, and have fixed widths, so
that slots line up: a factor is two words, a term of a sum and every result four. A line repeats an operation,
states its value and marks whether more lines follow:

    7 4 * 6 3                               47 x 36
    7 4 * 6 0 = 2 8 2 0 more                47 x 6 = 282
    7 4 * 0 3 = 0 1 4 1 more                47 x 30 = 1410
    2 8 2 0 + 0 1 4 1 = 2 9 6 1 done        282 + 1410 = 1692
    answer 2 9 6 1
"""

from collections.abc import Sequence
from dataclasses import dataclass

TIMES, PLUS, EQUALS = "*", "+", "="
MORE, DONE = "more", "done"
ANSWER = "answer"
OK, WRONG = "ok", "wrong"
MARKS = (MORE, DONE)
FACTOR_DIGITS, SUM_DIGITS = 2, 4
LARGEST = 10**SUM_DIGITS - 1
DIGITS = tuple("0123456789")
MAX_LINES = 3

FICTIONAL = tuple(f"{first}{second}" for first in ("blo", "dra", "fen", "gli", "mur", "pli", "ska", "tro")
                  for second in ("bam", "dil", "kor"))  # fmt: skip
"""Operators that do not exist; what they mean differs from problem to problem, so it must be asked for."""


@dataclass(frozen=True, slots=True)
class Operation:
    """Two numbers and what is to be done with them."""

    left: int
    operator: str
    right: int

    @property
    def value(self) -> int:
        """The result. Raises `ValueError` for a fictional operator, which has none of its own."""
        if self.operator == TIMES:
            return self.left * self.right
        if self.operator == PLUS:
            return self.left + self.right
        raise ValueError(f"{self.operator!r} means nothing by itself")


def digits(number: int, width: int) -> list[str]:
    """Return `number` as `width` words, least significant digit first.

    >>> digits(30, 2)
    ['0', '3']
    """
    return list(f"{number:0{width}d}"[::-1])


def number_of(words: Sequence[str]) -> int:
    """Return the number that digits stand for. Raises `ValueError` if one of them is none.

    >>> number_of(["0", "3"])
    30
    """
    if not words or not set(words) <= set(DIGITS):
        raise ValueError(f"not a number in this notation: {' '.join(words)!r}")
    return int("".join(reversed(words)))


def operation_words(operation: Operation) -> list[str]:
    """Return an operation as words; only the terms of a sum are four words wide.

    >>> " ".join(operation_words(Operation(282, "+", 1410)))
    '2 8 2 0 + 0 1 4 1'
    """
    width = SUM_DIGITS if operation.operator == PLUS else FACTOR_DIGITS
    return [*digits(operation.left, width), operation.operator, *digits(operation.right, width)]


def problem_text(operation: Operation) -> str:
    """Return the problem in words.

    >>> problem_text(Operation(47, "*", 36))
    '7 4 * 6 3'
    """
    return " ".join(operation_words(operation))


def parse_operation(text: str) -> Operation:
    """Return the operation that a text states. Raises `ValueError` if it is not in this notation.

    >>> parse_operation("6 0 * 0 3")
    Operation(left=6, operator='*', right=30)
    """
    words = text.split()
    at = next((i for i, word in enumerate(words) if word not in DIGITS), 0)
    if not at or words[at] not in (TIMES, PLUS, *FICTIONAL):
        raise ValueError(f"not a problem of products: {text!r}")
    operation = Operation(number_of(words[:at]), words[at], number_of(words[at + 1 :]))
    if operation_words(operation) != words:
        raise ValueError(f"not a problem of products: {text!r}: wrong number of digits")
    return operation


def is_one_line(operation: Operation) -> bool:
    """Return whether one line states its value: a sum, or a product whose second factor has one digit.

    >>> [is_one_line(Operation(47, "*", n)) for n in (6, 30, 36)]
    [True, True, False]
    """
    if operation.operator == PLUS:
        return operation.value <= LARGEST
    return operation.operator == TIMES and 0 in divmod(operation.right, 10)


def plan(operation: Operation) -> list[Operation]:
    """Return the operations of the lines of a solution.

    >>> [problem_text(step) for step in plan(Operation(47, "*", 36))]
    ['7 4 * 6 0', '7 4 * 0 3', '2 8 2 0 + 0 1 4 1']
    """
    if is_one_line(operation):
        return [operation]
    if operation.operator != TIMES:
        raise ValueError(f"no plan for {problem_text(operation)!r}")
    ones = Operation(operation.left, TIMES, operation.right % 10)
    tens = Operation(operation.left, TIMES, operation.right - operation.right % 10)
    return [ones, tens, Operation(ones.value, PLUS, tens.value)]


def line(operation: Operation, mark: str) -> list[str]:
    """Return the words of one worked line.

    >>> " ".join(line(Operation(47, "*", 6), MORE))
    '7 4 * 6 0 = 2 8 2 0 more'
    """
    return [*operation_words(operation), EQUALS, *digits(operation.value, SUM_DIGITS), mark]


def lines(operations: Sequence[Operation]) -> list[list[str]]:
    """Return all worked lines of a plan."""
    last = len(operations) - 1
    return [line(step, DONE if i == last else MORE) for i, step in enumerate(operations)]


def final_line(value: int) -> list[str]:
    """Return the words that state the answer."""
    return [ANSWER, *digits(value, SUM_DIGITS)]


def solution(operation: Operation) -> str:
    """Return a whole worked solution.

    >>> solution(Operation(47, "*", 6))
    '7 4 * 6 0 = 2 8 2 0 done answer 2 8 2 0'
    """
    return " ".join(word for row in [*lines(plan(operation)), final_line(operation.value)] for word in row)


def answer(response: str) -> int | None:
    """Return the number that a response ends with, or None.

    >>> answer("7 4 * 6 0 = 2 8 2 0 done answer 2 8 2 0"), answer("answer 2 8 2"), answer("2 8 2 0")
    (282, None, None)
    """
    words = response.split()[-SUM_DIGITS - 1 :]
    if len(words) <= SUM_DIGITS or words[0] != ANSWER or not set(words[1:]) <= set(DIGITS):
        return None
    return number_of(words[1:])


def without_value(text: str, value: int) -> str | None:
    """Return the words before the first place where a line, or a reply by itself, states `value`; None if
    none does. The terms of a sum state nothing.

    >>> without_value("6 0 * 7 0 = 2 4 0 0 done", 42), without_value("2 4 0 0", 42)
    ('6 0 * 7 0 =', '')
    >>> without_value("2 4 0 0 + 1 0 0 0 = 3 4 0 0 done", 42) is None
    True
    """
    words, stated = text.split(), digits(value, SUM_DIGITS)
    for start in range(len(words) - SUM_DIGITS + 1):
        end = start + SUM_DIGITS
        opens = start == 0 or words[start - 1] in (EQUALS, ANSWER)
        closes = end == len(words) or words[end] in MARKS
        if words[start:end] == stated and opens and closes:
            return " ".join(words[:start])
    return None


def vocabulary() -> list[str]:
    """Return every word of problems, solutions and feedback, in a fixed order."""
    return [*DIGITS, TIMES, PLUS, EQUALS, *MARKS, ANSWER, OK, WRONG, *FICTIONAL]
