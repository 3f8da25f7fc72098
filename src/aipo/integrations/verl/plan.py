"""What the plugin's trainer and loss need to know of a recipe, as it stands in verl's configuration.

`aipo verl config` writes the table `aipo.plan`, the plugin reads it: `Plan.from_table(plan.table()) ==
plan`. An unknown or missing key is an error, so that a table of another version of this package is never
read wrongly.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from aipo.core.advantages import Estimator, FeedbackAdvantage
from aipo.core.batch import Aggregation
from aipo.core.coefficients import Coefficient, CoefficientSettings
from aipo.core.objective import ObjectiveSettings
from aipo.core.surrogates import Clip, Surrogate, SurrogateSettings


class PlanError(ValueError):
    """The table `aipo.plan` cannot be read; the message names the key and the fix."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe's algorithm, resolved: no name is left to be looked up."""

    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    estimator: Estimator = Estimator.GROUP_NORMALISED
    aggregation: Aggregation = Aggregation.TOKEN_MEAN
    feedback_advantage: FeedbackAdvantage = FeedbackAdvantage.OVER_SOLO
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
        """Return plain values: strings, numbers, truth values, tables."""
        return _plain(asdict(self))

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "Plan":
        """Return the plan that `table` wrote. Raises `PlanError`."""
        _same_keys("aipo.plan", table, cls)
        objective = table["objective"]
        _same_keys("aipo.plan.objective", objective, ObjectiveSettings)
        surrogate, coefficient = objective["surrogate"], objective["coefficient"]
        _same_keys("aipo.plan.objective.surrogate", surrogate, SurrogateSettings)
        _same_keys("aipo.plan.objective.coefficient", coefficient, CoefficientSettings)
        enums = {
            "estimator": Estimator(table["estimator"]),
            "aggregation": Aggregation(table["aggregation"]),
            "feedback_advantage": FeedbackAdvantage(table["feedback_advantage"]),
        }
        return cls(
            **dict(table)
            | enums
            | {
                "objective": ObjectiveSettings(
                    SurrogateSettings(Surrogate(surrogate["kind"]), Clip(**surrogate["clip"])),
                    CoefficientSettings(
                        **dict(coefficient)
                        | {"kind": Coefficient(coefficient["kind"]), "clip": Clip(**coefficient["clip"])}
                    ),
                    float(objective["feedback_weight"]),
                )
            }
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value.value) if hasattr(value, "value") else value


def _same_keys(name: str, table: Mapping[str, Any], wanted: type) -> None:
    keys = {each.name for each in fields(wanted)}
    if set(table) != keys:
        wrong = sorted(set(table) ^ keys)
        raise PlanError(
            f"{name}: the keys {wrong} are missing or unknown to this version of aipo; write the "
            "configuration again with `aipo verl config`"
        )
