"""What the trainer must know of a rollout besides its tokens.

`About.from_table(about.table()) == about`; the table holds plain values only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aipo.core.types import Condition, ConsultOutcome, Verdict

ABOUT = "aipo"
"""Key of verl's `extra_fields`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the trainer must know of a rollout besides its tokens."""

    verdict: Verdict
    condition: Condition
    reason: str = ""
    outcomes: tuple[ConsultOutcome, ...] = ()
    leaks: int = 0
    reply_tokens: int = 0
    failures: tuple[str, ...] = ()
    """Why consultations failed."""

    def table(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "verdict": self.verdict.value,
            "condition": self.condition.value,
            "reason": self.reason,
            "outcomes": [outcome.value for outcome in self.outcomes],
            "leaks": self.leaks,
            "reply_tokens": self.reply_tokens,
            "failures": list(self.failures),
        }

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "About":
        """Return what `table` wrote. Raises `KeyError`, `ValueError`."""
        return cls(
            verdict=Verdict(table["verdict"]),
            condition=Condition(table["condition"]),
            reason=str(table["reason"]),
            outcomes=tuple(ConsultOutcome(outcome) for outcome in table["outcomes"]),
            leaks=int(table["leaks"]),
            reply_tokens=int(table["reply_tokens"]),
            failures=tuple(table["failures"]),
        )
