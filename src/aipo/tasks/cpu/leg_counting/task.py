"""The leg-counting task: problems drawn from reasoning-gym, split at the boundary, and their verdict.

No two splits share a question, whatever the order of its items.

easy: no animal that the warm start has not taught. hard: at least two such animals, whose legs have to be
learnt. Problems with exactly one are left out. `leg_counting_long` has five or six animals, of which a hard
problem names two or three unknown ones: whole solutions are long there, and what is missing is short.

Simplification: the 18 unknown animals occur in train and test alike, so hard test problems ask for new
compositions of facts that can be learnt, not for facts never seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import reasoning_gym

from aipo.core.types import Verdict
from aipo.tasks.base import Grade, Problem, Split
from aipo.tasks.cpu.leg_counting.notation import (
    KNOWN,
    MAX_INSTANCES,
    Item,
    answer,
    final_line,
    problem_text,
    solution,
    without_total,
)

EASY, HARD = "easy", "hard"

# Item i of reasoning-gym uses seed + i, so splits are far apart; and questions are compared besides.
_SEEDS = {Split.TEST: 200_000_000, Split.VALIDATION: 100_000_000, Split.TRAIN: 0}
_DRAWN = {Split.TEST: 4_000, Split.VALIDATION: 4_000, Split.TRAIN: 24_000}

Question = frozenset[Item]


@dataclass(frozen=True, slots=True)
class Variant:
    """How many items a problem has, and how many unknown animals a hard one."""

    name: str
    items: tuple[int, int]
    unknown: tuple[int, int]


SHORT = Variant("leg_counting", items=(2, 4), unknown=(2, 4))
LONG = Variant("leg_counting_long", items=(5, 6), unknown=(2, 3))
VARIANTS = {variant.name: variant for variant in (SHORT, LONG)}


class LegCountingTask:
    """`aipo.tasks.base.Task` over reasoning-gym's generator."""

    def __init__(self, variant: Variant = SHORT) -> None:
        self.name, self._variant = variant.name, variant

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return the easy and hard problems of a split, in the generator's order."""
        return _splits(self._variant)[split]

    async def grade(self, problem: Problem, response: str) -> Grade:
        """Compare the stated total with the gold. Never UNGRADED: nothing here can fail."""
        stated = answer(response)
        if stated is None:
            return Grade(Verdict.INCORRECT, "no_answer")
        right = stated == int(problem.gold)
        return Grade(Verdict.CORRECT, "equal") if right else Grade(Verdict.INCORRECT, "different")

    def without_answer(self, problem: Problem, text: str) -> str | None:
        """Cut an agent's words before the running sum, or the total, that equals the gold."""
        return without_total(text, int(problem.gold))


@cache
def held_out_questions(variant: Variant = SHORT) -> frozenset[Question]:
    """Return the questions that neither training nor the warm start may contain."""
    drawn = _drawn(variant)
    return frozenset(drawn[Split.TEST]) | frozenset(drawn[Split.VALIDATION])


def stratum_of(items: Sequence[Item], variant: Variant = SHORT) -> str | None:
    """Return easy, hard or None for a problem that is neither."""
    unknown = sum(item.animal not in KNOWN for item in items)
    fewest, most = variant.unknown
    return EASY if unknown == 0 else HARD if fewest <= unknown <= most else None


@cache
def _drawn(variant: Variant) -> dict[Split, dict[Question, tuple[Item, ...]]]:
    """Draw each split, keeping a question where it was drawn first: test, validation, train."""
    seen: set[Question] = set()
    drawn: dict[Split, dict[Question, tuple[Item, ...]]] = {}
    for split, seed in _SEEDS.items():
        drawn[split] = {}
        dataset = reasoning_gym.create_dataset(
            "leg_counting",
            seed=seed,
            size=_DRAWN[split],
            min_animals=variant.items[0],
            max_animals=variant.items[1],
            max_instances=MAX_INSTANCES,
        )
        for entry in dataset:
            animals = entry["metadata"]["animals"]
            items = tuple(Item(count, name.replace(" ", "-")) for name, count in animals.items())
            question = frozenset(items)
            if stratum_of(items, variant) and question not in seen:
                seen.add(question)
                drawn[split][question] = items
    return drawn


@cache
def _splits(variant: Variant) -> dict[Split, tuple[Problem, ...]]:
    return {
        split: tuple(_problem(variant, split, index, items) for index, items in enumerate(questions.values()))
        for split, questions in _drawn(variant).items()
    }


def _problem(variant: Variant, split: Split, index: int, items: tuple[Item, ...]) -> Problem:
    gold = int("".join(reversed(final_line(items)[1:])))
    stratum = stratum_of(items, variant)
    assert stratum is not None
    return Problem(
        id=f"{variant.name}/{split}/{index}",
        text=problem_text(items),
        gold=str(gold),
        stratum=stratum,
        solution=solution(items),
    )
