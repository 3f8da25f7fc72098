"""What a coefficient on FEEDBACK tokens is: its entry in the registry, and the settings that its term reads.

The entry holds all that others need to train with it, draw and describe it; formulas: `core/coefficients.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from torch import Tensor

from aipo.core.registry import RegistryError
from aipo.core.surrogates import Clip


class OldLogP(StrEnum):
    """What a coefficient reads as `log_p_old` at FEEDBACK tokens."""

    UNREAD = "unread"
    POLICY = "policy"
    """log p_old: the policy's own before the step, for which the trainer computes a forward pass."""
    AGENT = "agent"
    """log q: the agent's, where it reported them, else 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoefficientSettings:
    """Which coefficient, and its constants."""

    kind: str = "floored"
    floor: float = 0.1
    shape: float = 0.1
    clip: Clip = field(default_factory=Clip)
    """Of `ratio`, whatever the base algorithm clips: GSPO's region, say, is meant for whole sequences."""
    truncation: float = 2.0
    """c of `agent`, at least 1; q := 1 where the agent reports none, which makes it `unit`."""
    unit_below_zero: bool = False
    """`signed_unit`: weigh tokens with A < 0 as `unit` does, whatever the coefficient."""
    options: Mapping[str, float] = field(default_factory=dict)
    """Parameters of a coefficient's own, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficient:
    """One coefficient: its term, and what is needed to draw and to describe it."""

    term: Callable[[Tensor, Tensor, Tensor, CoefficientSettings], Tensor]
    """From log p, log p_old, A, of shape (B, T), and the settings to C * A, to be maximised."""
    value: str
    """C in words or signs; sg is a stopped gradient."""
    weight: str
    """W likewise."""
    about: str
    arxiv: str = ""
    """Number of the paper: https://arxiv.org/abs/NUMBER."""
    reads: Mapping[str, str] = field(default_factory=dict)
    """The settings of `algorithm` that it reads, with the letter of each in the formulas."""
    options: Mapping[str, float] = field(default_factory=dict)
    """Parameters of its own with their defaults; `algorithm.coefficient_options` sets them."""
    old: OldLogP = OldLogP.UNREAD
    trained: bool = True
    """Whether FEEDBACK tokens are trained at all, and so belong to N."""

    def with_defaults(self, options: Mapping[str, float]) -> dict[str, float]:
        """Return its own parameters as given, else by default. Raises `RegistryError` for one it has not."""
        for name, value in options.items():
            if name not in self.options:
                known = f"it has {', '.join(self.options)}" if self.options else "it has none"
                raise RegistryError(
                    f"algorithm.coefficient_options.{name} = {value:g} is not read by algorithm.coefficient: "
                    f"{known}; rename it or leave it out"
                )
        return {**self.options, **options}
