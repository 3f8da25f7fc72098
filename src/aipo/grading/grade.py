"""The result of grading: a verdict and why.

Owns `Grade`. Must not know tasks, problems or rollouts.
Invariant: a verdict is a name; a grader's own failure is UNGRADED with a reason, never INCORRECT.
"""

from dataclasses import dataclass

from aipo.core.types import Verdict


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict and why: a short word that can be counted, with details after a colon."""

    verdict: Verdict
    reason: str
