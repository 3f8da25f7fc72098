"""The base of every table of settings.

Owns strictness. Must not know any setting. Invariant: an unknown key is an error; values are immutable.
"""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
