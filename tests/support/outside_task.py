"""A task from outside the package: sums of two digits, whose solutions serve as experts."""

from collections.abc import Sequence

from aipo.core.types import Verdict
from aipo.tasks.base import Grade, Problem, Split

FIRST = {Split.TRAIN: range(1, 7), Split.VALIDATION: range(7, 8), Split.TEST: range(8, 10)}


class Sums:
    """`task.name = "support.outside_task:Sums"`."""

    name = "sums"

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return the problems of a split; no two splits share one."""
        return [self._problem(a, b) for a in FIRST[split] for b in range(1, 10)]

    async def grade(self, problem: Problem, response: str) -> Grade:
        """Look at the last word."""
        right = response.split()[-1:] == [problem.gold]
        return Grade(Verdict.CORRECT if right else Verdict.INCORRECT, "last word")

    def without_answer(self, problem: Problem, text: str) -> str | None:
        """Hide the sum in an agent's words; None where they do not state it."""
        return text.replace(problem.gold, "...") if problem.gold in text else None

    def _problem(self, a: int, b: int) -> Problem:
        stratum = "carry" if a + b > 9 else "plain"
        return Problem(
            id=f"sums/{a}+{b}",
            text=f"{a} + {b} = ?",
            gold=str(a + b),
            stratum=stratum,
            solution=f"{a} + {b} = {a + b}",
        )
