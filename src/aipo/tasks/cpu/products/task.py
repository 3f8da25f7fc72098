"""The products task: problems drawn from reasoning-gym, split at the boundary, and their verdict.

No two splits share a hard product (whatever the order of its factors) or a sum.

Strata: `one_by_one` (7 x 4), `two_by_one` (47 x 3), `two_by_tens` (47 x 30), `sum` (two terms of two to four
digits, total of four digits at most), all of one line; `hard`: both factors have two non-zero digits, three
lines. Simplification: there are only 81, 810 and 810 products of one line, so these occur in every split and
in the warm start: on them an evaluation measures what is retained, not what generalises. Factors drawn of two
digits with a zero in a hard product's place (40 x 36) are left out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from types import MappingProxyType

from aipo.core.types import Verdict
from aipo.tasks.base import Grade, Problem, Split
from aipo.tasks.cpu.products.notation import (
    LARGEST,
    PLUS,
    TIMES,
    Operation,
    answer,
    problem_text,
    solution,
    without_value,
)

ONE_BY_ONE, TWO_BY_ONE, TWO_BY_TENS, SUM, HARD = "one_by_one", "two_by_one", "two_by_tens", "sum", "hard"
EASY_STRATA = (ONE_BY_ONE, TWO_BY_ONE, TWO_BY_TENS, SUM)

# Item i of reasoning-gym uses seed + i, so splits are far apart; and questions are compared besides.
_SEEDS: Mapping[Split, int] = MappingProxyType(
    {Split.TEST: 200_000_000, Split.VALIDATION: 100_000_000, Split.TRAIN: 0}
)
_DRAWN: Mapping[Split, int] = MappingProxyType({Split.TEST: 400, Split.VALIDATION: 400, Split.TRAIN: 5_000})
_DRAW_APART = 1_000_000
"""Between the seeds of two strata of a split."""

Question = tuple[str, int, int]
"""An operator and its two numbers, the smaller first."""


class ProductsTask:
    """`aipo.tasks.base.Task` over reasoning-gym's `products` and `chain_sum`."""

    name = "two_digit_products"

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return the problems of a split, stratum by stratum in the generator's order."""
        return _splits()[split]

    async def grade(self, problem: Problem, response: str) -> Grade:
        """Compare the stated answer with the gold. Never UNGRADED: nothing here can fail."""
        stated = answer(response)
        if stated is None:
            return Grade(Verdict.INCORRECT, "no_answer")
        right = stated == int(problem.gold)
        return Grade(Verdict.CORRECT, "equal") if right else Grade(Verdict.INCORRECT, "different")

    def without_answer(self, problem: Problem, text: str) -> str | None:
        """Cut an agent's words before the value that equals the gold."""
        return without_value(text, int(problem.gold))


def question_of(operation: Operation) -> Question:
    """Return what makes two problems the same.

    >>> question_of(Operation(47, "*", 36)) == question_of(Operation(36, "*", 47))
    True
    """
    return operation.operator, *sorted((operation.left, operation.right))  # type: ignore[return-value]


def stratum_of(operation: Operation) -> str | None:
    """Return the stratum of an operation, None if it is in none."""
    left, right = operation.left, operation.right
    if operation.operator == PLUS:
        return SUM if min(left, right) >= 10 and left + right <= LARGEST else None
    if operation.operator != TIMES or not left or not right:
        return None
    tens, ones = divmod(right, 10)
    if tens and ones:
        return HARD if left >= 10 and left % 10 else None
    if left < 10:
        return ONE_BY_ONE if ones else None
    return TWO_BY_ONE if ones else TWO_BY_TENS


@cache
def held_out_questions() -> frozenset[Question]:
    """Return the questions that neither training nor the warm start may contain: hard products and sums."""
    return frozenset(
        question_of(operation)
        for split in (Split.TEST, Split.VALIDATION)
        for operation in _drawn()[split]
        if _is_held_out(operation)
    )


def _is_held_out(operation: Operation) -> bool:
    return stratum_of(operation) in (SUM, HARD)


def _numbers(name: str, seed: int, size: int, lengths: tuple[int, int]) -> Iterator[tuple[int, str, int]]:
    """Yield the expressions of one of reasoning-gym's generators; both terms have the same length."""
    import reasoning_gym  # it takes seconds

    terms = {"min_terms": 2, "max_terms": 2, "min_digits": lengths[0], "max_digits": lengths[1]}
    for entry in reasoning_gym.create_dataset(name, seed=seed, size=size, **terms):
        left, operator, right = entry["metadata"]["expression"].split()
        yield int(left), operator, int(right)


_Cut = Callable[[int], int]
_PRODUCTS: Mapping[str, tuple[int, _Cut]] = MappingProxyType(
    {
        ONE_BY_ONE: (1, lambda right: right),
        TWO_BY_ONE: (2, lambda right: right // 10),
        TWO_BY_TENS: (2, lambda right: right - right % 10),
        HARD: (2, lambda right: right),
    }
)
"""Digits that are drawn for both factors, and what is kept of the second: the generator's factors are equally
long, so a short or round one is cut from a long one."""


def _candidates(stratum: str, seed: int, size: int) -> Iterator[Operation]:
    if stratum == SUM:
        for left, operator, right in _numbers("chain_sum", seed, size, (2, 4)):
            yield Operation(left, operator, right)
        return
    length, cut = _PRODUCTS[stratum]
    for left, _, right in _numbers("products", seed, size, (length, length)):
        yield Operation(left, TIMES, cut(right))


@cache
def _drawn() -> dict[Split, tuple[Operation, ...]]:
    """Draw each split; a hard product or a sum stays where it was drawn first: test, validation, train."""
    taken: set[Question] = set()
    drawn: dict[Split, tuple[Operation, ...]] = {}
    for split, split_seed in _SEEDS.items():
        kept: dict[Operation, None] = {}
        for index, stratum in enumerate((*EASY_STRATA, HARD)):
            for operation in _candidates(stratum, split_seed + index * _DRAW_APART, _DRAWN[split]):
                if stratum_of(operation) != stratum or question_of(operation) in taken:
                    continue
                if _is_held_out(operation):
                    taken.add(question_of(operation))
                kept[operation] = None
        drawn[split] = tuple(kept)
    return drawn


@cache
def _splits() -> dict[Split, tuple[Problem, ...]]:
    return {
        split: tuple(_problem(split, index, operation) for index, operation in enumerate(operations))
        for split, operations in _drawn().items()
    }


def _problem(split: Split, index: int, operation: Operation) -> Problem:
    stratum = stratum_of(operation)
    assert stratum is not None
    name = f"{ProductsTask.name}/{split}/{index}"
    return Problem(
        id=name,
        text=problem_text(operation),
        gold=str(operation.value),
        stratum=stratum,
        solution=solution(operation),
    )
