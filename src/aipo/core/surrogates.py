"""The surrogate on POLICY tokens: the base RLVR algorithm, unchanged.

Owns the trust region of the policy's own tokens. Must not know FEEDBACK tokens.
Invariant: at the first update after sampling (p = p_old) the gradient of every surrogate is A * grad log p.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor


class Surrogate(StrEnum):
    """How a ratio r = p / p_old that has left the trust region is treated."""

    CLIPPED = "clipped"
    """min(r A, clip(r) A): PPO and GRPO, arXiv 1707.06347 eq. 7."""
    SEQUENCE = "sequence"
    """The same with one ratio a sequence, the geometric mean of its tokens': GSPO, arXiv 2507.18071."""
    CISPO = "cispo"
    """sg(clip(r)) A log p: clips the weight and never the gradient, arXiv 2506.13585."""
    PRESERVING = "preserving"
    """As CLIPPED, but a clipped token keeps a gradient of the clip's size: GPPO, arXiv 2508.07629."""


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


@dataclass(frozen=True, slots=True)
class SurrogateSettings:
    """Which surrogate, and its trust region."""

    kind: Surrogate = Surrogate.CLIPPED
    clip: Clip = field(default_factory=Clip)


MAX_LOG_RATIO = 20.0
"""Beyond it a ratio could overflow float32 and poison the gradient; every clip has acted long before."""


def surrogate_term(
    log_p: Tensor, log_p_old: Tensor, advantage: Tensor, mask: Tensor, settings: SurrogateSettings
) -> Tensor:
    """Return the term of each token, to be maximised; arguments (B, T) or broadcast to it.

    `mask` is True at POLICY tokens, over which SEQUENCE takes its mean; elsewhere the result means nothing.
    Degenerate cases: A = 0 gives 0 and no gradient; p = p_old gives a gradient of A.
    """
    return _TERMS[settings.kind](log_p, log_p_old, advantage, mask, settings.clip)


def clipped_surrogate(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, clip: Clip) -> Tensor:
    """Return min(r A, clip(r) A) for each token, r = p / p_old (arXiv 1707.06347 eq. 7)."""
    ratio = token_ratio(log_p, log_p_old)
    return torch.minimum(ratio * advantage, clip(ratio) * advantage)


def token_ratio(log_p: Tensor, log_p_old: Tensor) -> Tensor:
    """Return p / p_old, at most e^20; (B, T)."""
    return torch.exp((log_p - log_p_old).clamp(max=MAX_LOG_RATIO))


def sequence_ratio(log_p: Tensor, log_p_old: Tensor, mask: Tensor) -> Tensor:
    """Return the geometric mean of a row's ratios where `mask`, with each token's own gradient; (B, T).

    sg(s) p / sg p: GSPO-token, arXiv 2507.18071 eq. 13; its gradient sums up to that of s.
    """
    tokens = mask.sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(mask, log_p - log_p_old, 0.0).sum(-1, keepdim=True) / tokens
    return torch.exp(mean.detach().clamp(max=MAX_LOG_RATIO) + (log_p - log_p.detach()))


def outside(
    log_p: Tensor, log_p_old: Tensor, advantage: Tensor, mask: Tensor, settings: SurrogateSettings
) -> Tensor:
    """Return True for each token on which the trust region acts: beyond it in the advantage's direction."""
    clip = settings.clip
    if settings.kind is Surrogate.SEQUENCE:
        ratio = sequence_ratio(log_p, log_p_old, mask)
    else:
        ratio = token_ratio(log_p, log_p_old)
    return torch.where(advantage > 0, ratio > 1.0 + clip.high, (ratio < 1.0 - clip.low) & (advantage < 0))


def _clipped(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, mask: Tensor, clip: Clip) -> Tensor:
    return clipped_surrogate(log_p, log_p_old, advantage, clip)


def _sequence(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, mask: Tensor, clip: Clip) -> Tensor:
    ratio = sequence_ratio(log_p, log_p_old, mask)
    return torch.minimum(ratio * advantage, clip(ratio) * advantage)


def _cispo(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, mask: Tensor, clip: Clip) -> Tensor:
    return clip(token_ratio(log_p, log_p_old)).detach() * advantage * log_p


def _preserving(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, mask: Tensor, clip: Clip) -> Tensor:
    ratio = token_ratio(log_p, log_p_old)
    kept = clip(ratio).detach() * torch.exp(log_p - log_p.detach())
    return torch.minimum(ratio * advantage, kept * advantage)


_TERMS: dict[Surrogate, Callable[[Tensor, Tensor, Tensor, Tensor, Clip], Tensor]] = {
    Surrogate.CLIPPED: _clipped,
    Surrogate.SEQUENCE: _sequence,
    Surrogate.CISPO: _cispo,
    Surrogate.PRESERVING: _preserving,
}
