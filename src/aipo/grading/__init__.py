"""Grading: from a response to a verdict and its reason. Read `extract`, `spelling`, `text`,
`guards`, `pool`, `algebra`.

Multiple choice is `choice`. Programs: `code`, `code_tests`, `code_check`, `code_values`, then
`sandbox/`. A grader's own failure is UNGRADED with a reason, never INCORRECT; what an answer does to
its grader is INCORRECT.

Nothing else is imported here: a grader process starts with this package and must start fast.
"""

from dataclasses import dataclass

from aipo.core.types import Verdict

MAX_REASON_CHARS = 200


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict and why: a short word that can be counted, with details after a colon.

    A reason is cut to `MAX_REASON_CHARS`, since a program or an answer may have written part of it.
    """

    verdict: Verdict
    reason: str
    reward: float | None = None
    """What the update learns from in the verdict's place, a finite number; None: the verdict's own."""

    def __post_init__(self) -> None:
        if len(self.reason) > MAX_REASON_CHARS:
            object.__setattr__(self, "reason", self.reason[: MAX_REASON_CHARS - 1] + "…")
