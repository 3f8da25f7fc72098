"""Grading: from a response to a verdict and its reason. Read `extract`, `text`, `guards`, `pool`.

Multiple choice is `choice`. Programs: `code`, `code_tests`, `code_check`, `code_values`, then
`sandbox/`. A grader's own failure is UNGRADED with a reason, never INCORRECT.

Nothing else is imported here: a grader process starts with this package and must start fast.
"""

from dataclasses import dataclass

from aipo.core.types import Verdict


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict and why: a short word that can be counted, with details after a colon."""

    verdict: Verdict
    reason: str
