"""The clipped surrogate on POLICY tokens: the base RLVR algorithm, unchanged.

Owns the trust region of the policy's own tokens. Must not know FEEDBACK tokens.
Invariant: at the first update after sampling (p = p_old) the gradient is A * grad log p.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Clip:
    """The trust region [1 - low, 1 + high] of the ratio p / p_old.

    Equal sides are PPO's and GRPO's (arXiv 1707.06347 eq. 7, arXiv 2402.03300 eq. 3); high > low is DAPO's
    clip-higher (arXiv 2503.14476 eq. 10).
    """

    low: float = 0.2
    high: float = 0.28

    def __call__(self, ratio: Tensor) -> Tensor:
        """Return the ratio held inside the trust region; same shape."""
        return ratio.clamp(1.0 - self.low, 1.0 + self.high)


MAX_LOG_RATIO = 20.0
"""Beyond it a ratio could overflow float32 and poison the gradient; every clip has acted long before."""


def ratio_of(log_p: Tensor, log_p_old: Tensor) -> Tensor:
    """Return p / p_old, at most e^20."""
    return torch.exp((log_p - log_p_old).clamp(max=MAX_LOG_RATIO))


def clipped_surrogate(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, clip: Clip) -> Tensor:
    """Return min(r A, clip(r) A) for each token, to be maximised; r = p / p_old (arXiv 1707.06347 eq. 7).

    Arguments are (B, T) or broadcast to it. Degenerate cases: A = 0 gives 0 and no gradient; p = p_old gives
    A.
    """
    ratio = ratio_of(log_p, log_p_old)
    return torch.minimum(ratio * advantage, clip(ratio) * advantage)


def clipped(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, clip: Clip) -> Tensor:
    """Return True for each token whose gradient the clip has taken away; (B, T)."""
    ratio = ratio_of(log_p, log_p_old)
    return torch.where(advantage > 0, ratio > 1.0 + clip.high, (ratio < 1.0 - clip.low) & (advantage < 0))
