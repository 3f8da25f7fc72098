"""What a task is: problems with checkable answers, a verdict and, for some, an oracle.

Owns the one row shape that everything downstream sees. Must not know rollouts or training.
Invariant: a grader's failure is UNGRADED with a reason, never INCORRECT.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from aipo.grading import Grade

__all__ = ["Grade", "Oracle", "Problem", "Split", "Task", "TaskError"]


class Split(StrEnum):
    """Disjoint parts of a task: by question text, not by seed."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class TaskError(ValueError):
    """The task's data cannot be used; the message names file, line, field and the fix."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. `gold` never leaves tasks and grading."""

    id: str
    text: str
    gold: str
    stratum: str = "all"
    """A named part of the data that results are reported for, such as `easy` or `hard`."""


class Task(Protocol):
    """Problems and their grading."""

    name: str

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return the problems of a split, in a fixed order."""
        ...

    async def grade(self, problem: Problem, response: str) -> Grade:
        """Grade what the policy wrote. Never raises for what a response contains."""
        ...

    def without_answer(self, problem: Problem, text: str) -> str | None:
        """Return an agent's words with the gold answer hidden, or None where they do not state it."""
        ...


class Oracle(Protocol):
    """A programmatic expert for a task: the words of the three agents and whole solutions."""

    def feedback(self, agent: str, problem: str, rollout: str, request: str) -> str:
        """Return what `agent` says; an empty string when it has nothing to say."""
        ...

    def solution(self, problem: str) -> str:
        """Return a whole expert trajectory (the assistant's turn)."""
        ...
