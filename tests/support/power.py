"""A coefficient of one's own: `algorithm.coefficient = "power:POWER"`, with a parameter h."""

import torch
from torch import Tensor

from aipo.core.feedback import Coefficient, CoefficientSettings


def power(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    """C A = p^h A, hence W = h p^h: between `unit` (h = 1) and no gradient at all (h = 0)."""
    return torch.exp(settings.options["h"] * log_p) * advantage


POWER = Coefficient(
    term=power, value="p^h", weight="h p^h", about="pulls harder at new tokens than p", options={"h": 0.5}
)
