"""What the plugin's trainer and loss need to know of a recipe, as it stands in verl's configuration.

`aipo verl config` writes the table `aipo.plan`, the plugin reads it: `Plan.from_table(plan.table()) ==
plan`. An unknown or missing key is an error, so that a table of another version of this package is never
read wrongly.
"""

from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from aipo.core.feedback import CoefficientSettings
from aipo.core.objective import ObjectiveSettings
from aipo.core.surrogates import Clip, SurrogateSettings


class PlanError(ValueError):
    """The table `aipo.plan` cannot be read; the message names the key and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe's algorithm, resolved, its parts by name."""

    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    estimator: str = "group_normalised"
    aggregation: str = "token_mean"
    feedback_advantage: str = "over_solo"
    split_baselines: bool = True
    mismatch_truncation: float = 0.0
    """Largest weight of the correction for a sampler that differs from the trainer; 0: no correction."""
    max_response_tokens: int = 16384
    overlong_buffer_tokens: int = 0
    consulting: int = 4
    """Rollouts of a group that may consult; the others are solo."""
    solo: int = 4
    banned: int = 0
    """How many of the solo ones cannot sample request tags."""
    max_ungraded_share: float = 0.05
    max_failed_consultations_share: float = 0.5
    min_consultations_to_stop: int = 20
    generate_timeout_s: float = 3600.0
    """Deadline of one stretch of generation."""

    def table(self) -> dict[str, Any]:
        """Return plain values, which further terms are not. Raises `PlanError` where there are some."""
        if self.objective.further:
            raise PlanError(f"aipo.plan.objective: {self.objective.further} cannot be sent to verl's workers")
        table = asdict(self)
        del table["objective"]["further"]
        return table

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "Plan":
        """Return the plan that `table` wrote. Raises `PlanError`."""
        _same_keys("aipo.plan", table, cls)
        objective = table["objective"]
        _same_keys("aipo.plan.objective", objective, ObjectiveSettings, {"further"})
        surrogate, coefficient = objective["surrogate"], objective["coefficient"]
        _same_keys("aipo.plan.objective.surrogate", surrogate, SurrogateSettings)
        _same_keys("aipo.plan.objective.coefficient", coefficient, CoefficientSettings)
        read = ObjectiveSettings(
            surrogate=SurrogateSettings(surrogate["kind"], Clip(**surrogate["clip"])),
            coefficient=CoefficientSettings(**{**coefficient, "clip": Clip(**coefficient["clip"])}),
            feedback_weight=float(objective["feedback_weight"]),
        )
        return cls(**{**table, "objective": read})


def _same_keys(name: str, table: Mapping[str, Any], wanted: type, left_out: Set[str] = frozenset()) -> None:
    keys = {each.name for each in fields(wanted)} - left_out
    if set(table) != keys:
        wrong = sorted(set(table) ^ keys)
        raise PlanError(
            f"{name}: the keys {wrong} are missing or unknown to this version of aipo; write the "
            "configuration again with `aipo verl config`"
        )
