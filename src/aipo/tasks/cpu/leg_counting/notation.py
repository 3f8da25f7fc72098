"""How a leg-counting problem and its solution are written: the one place that knows the notation.

`parse_problem(problem_text(items)) == items`, and `answer(solution(items)) == total(items)`.

A problem lists labelled items, `a 3 dog b 2 spider`. A solution has a line for each item (label, legs of one
animal, legs of all of them, running sum) and the total. Numbers that are computed are written least
significant digit first, so that carries move forward; a fact is one word:

    a 4 2 1 2 1 0 ;       3 dogs of 4 legs: 12, so far 012
    b 8 6 1 8 2 0 ;       2 spiders of 8 legs: 16, so far 028
    total 8 2 0
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reasoning_gym.arithmetic.leg_counting import ANIMALS

LABELS = ("a", "b", "c", "d", "e", "f")
MAX_INSTANCES = 5
LINE_END = ";"
TOTAL = "total"
OK = "ok"
WRONG = "wrong"
SUM_DIGITS = 3
PRODUCT_DIGITS = 2

LEGS: Mapping[str, int] = {name.replace(" ", "-"): legs for name, legs in ANIMALS.items()}
"""Legs of each of reasoning-gym's 37 animals; each name is one word here."""

KNOWN = frozenset(name for name, legs in LEGS.items() if legs in (0, 2, 4))
"""The 19 animals whose legs the warm start teaches. The other 18 never appear in it."""

FICTIONAL = tuple(f"{first}{second}" for first in ("blo", "dra", "fen", "gli", "mur", "pli", "ska", "tro")
                  for second in ("bit", "dun", "fex", "gum", "nak"))  # fmt: skip
"""Forty animals that do not exist; their legs differ from problem to problem, so they must be asked for."""


@dataclass(frozen=True, slots=True)
class Item:
    """Some instances of one animal."""

    count: int
    animal: str


def problem_text(items: Sequence[Item]) -> str:
    """Return the problem in words.

    >>> problem_text([Item(3, "dog"), Item(2, "spider")])
    'a 3 dog b 2 spider'
    """
    return " ".join(f"{label} {i.count} {i.animal}" for label, i in zip(LABELS, items, strict=False))


def parse_problem(text: str) -> list[Item]:
    """Return the items of a problem's text. Raises `ValueError` if it is not in this notation."""
    words = text.split()
    if not words or len(words) % 3 or tuple(words[::3]) != LABELS[: len(words) // 3]:
        raise ValueError(f"not a leg-counting problem: {text!r}")
    return [Item(int(count), animal) for count, animal in zip(words[1::3], words[2::3], strict=True)]


def digits(number: int, width: int) -> list[str]:
    """Return `number` as `width` words, least significant digit first.

    >>> digits(28, 3)
    ['8', '2', '0']
    """
    return list(f"{number:0{width}d}"[::-1])


def line(index: int, count: int, legs: int, sum_before: int) -> list[str]:
    """Return the words of one worked line.

    >>> " ".join(line(1, 2, 8, sum_before=12))
    'b 8 6 1 8 2 0 ;'
    """
    product = count * legs
    return [
        LABELS[index],
        str(legs),
        *digits(product, PRODUCT_DIGITS),
        *digits(sum_before + product, SUM_DIGITS),
        LINE_END,
    ]


def lines(items: Sequence[Item], legs: Mapping[str, int] = LEGS) -> list[list[str]]:
    """Return all worked lines of a solution."""
    total, result = 0, []
    for index, item in enumerate(items):
        result.append(line(index, item.count, legs[item.animal], total))
        total += item.count * legs[item.animal]
    return result


def final_line(items: Sequence[Item], legs: Mapping[str, int] = LEGS) -> list[str]:
    """Return the words that state the total."""
    return [TOTAL, *digits(sum(item.count * legs[item.animal] for item in items), SUM_DIGITS)]


def solution(items: Sequence[Item]) -> str:
    """Return a whole worked solution.

    >>> solution([Item(3, "dog")])
    'a 4 2 1 2 1 0 ; total 2 1 0'
    """
    return " ".join(word for row in [*lines(items), final_line(items)] for word in row)


def answer(response: str) -> int | None:
    """Return the total that a response ends with, or None.

    >>> answer("a 4 2 1 2 1 0 ; total 2 1 0"), answer("total 2 1 0 ;"), answer("")
    (12, None, None)
    """
    words = response.split()[-SUM_DIGITS - 1 :]
    stated = words[1:]
    if (
        len(stated) < SUM_DIGITS
        or words[0] != TOTAL
        or not all(len(w) == 1 and w in "0123456789" for w in stated)
    ):
        return None
    return int("".join(reversed(stated)))


def without_total(text: str, total: int) -> str | None:
    """Return the words before the first running sum or final line that states `total`; None if none does.

    >>> without_total("b 8 6 1 8 2 0 ;", 28), without_total("8", 8), without_total("total 8 2 0", 28)
    ('b 8 6 1', None, 'total')
    """
    words, stated = text.split(), digits(total, SUM_DIGITS)
    for end in range(SUM_DIGITS, len(words) + 1):
        start = end - SUM_DIGITS
        closes = words[end : end + 1] == [LINE_END] or words[start - 1 : start] == [TOTAL]
        if words[start:end] == stated and closes:
            return " ".join(words[:start])
    return None


def vocabulary(items: int) -> list[str]:
    """Return every word of problems of up to so many items, solutions and feedback, in a fixed order."""
    numbers = [str(number) for number in range(max(LEGS.values()) + 1)]
    return [*LABELS[:items], LINE_END, TOTAL, OK, WRONG, *numbers, *sorted(LEGS), *FICTIONAL]
