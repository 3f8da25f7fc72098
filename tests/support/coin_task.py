"""A task whose verdict a coin decides: for policies that solve nothing."""

from collections.abc import Sequence
from hashlib import sha256

from aipo.core.types import Verdict
from aipo.tasks.base import Grade, Problem, Split


class Coin:
    """`task.name = "support.coin_task:Coin"`: half of all responses are right."""

    name = "coin"

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return eight problems of each split."""
        return [Problem(id=f"{split}/{i}", text=f"{split} {i}", gold="") for i in range(8)]

    async def grade(self, problem: Problem, response: str) -> Grade:
        """Throw the coin."""
        right = sha256(response.encode()).digest()[0] % 2 == 0
        return Grade(Verdict.CORRECT if right else Verdict.INCORRECT, "coin")

    def without_answer(self, problem: Problem, text: str) -> str | None:
        """Hide nothing."""
        return None
