"""The surrogate on POLICY tokens: the base RLVR algorithm, unchanged.

A surrogate is one entry of `SURROGATES`: how a ratio r = p / p_old that has left the trust region is treated.
At the first update after sampling (p = p_old) the gradient of every surrogate is A * grad log p.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aipo.core.registry import Registry


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """How a ratio that has left the trust region is treated."""

    term: Callable[[Tensor, Tensor, Tensor, Tensor, Clip], Tensor]
    """From log p, log p_old, A and the mask of POLICY tokens, of shape (B, T), to the term of each token."""
    ratio: Callable[[Tensor, Tensor, Tensor], Tensor]
    """From log p, log p_old and that mask to what is clipped."""
    about: str
    arxiv: str


@dataclass(frozen=True, slots=True)
class SurrogateSettings:
    """Which surrogate, and its trust region."""

    kind: str = "clipped"
    clip: Clip = field(default_factory=Clip)


MAX_LOG_RATIO = 20.0
"""Beyond it a ratio could overflow float32 and poison the gradient; every clip has acted long before."""


def surrogate_term(
    log_p: Tensor, log_p_old: Tensor, advantage: Tensor, mask: Tensor, settings: SurrogateSettings
) -> Tensor:
    """Return the term of each token, to be maximised; arguments (B, T) or broadcast to it.

    `mask` is True at POLICY tokens, over which `sequence` takes its mean; elsewhere the result means nothing.
    Degenerate cases: A = 0 gives 0 and no gradient; p = p_old gives a gradient of A.
    """
    return SURROGATES[settings.kind].term(log_p, log_p_old, advantage, mask, settings.clip)


def clipped_surrogate(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, clip: Clip) -> Tensor:
    """Return min(r A, clip(r) A) for each token, r = p / p_old (arXiv 1707.06347 eq. 7)."""
    ratio = token_ratio(log_p, log_p_old)
    return torch.minimum(ratio * advantage, clip(ratio) * advantage)


def token_ratio(log_p: Tensor, log_p_old: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return p / p_old, at most e^20; (B, T). `mask` is not read."""
    return torch.exp((log_p - log_p_old).clamp(max=MAX_LOG_RATIO))


def sequence_ratio(log_p: Tensor, log_p_old: Tensor, mask: Tensor) -> Tensor:
    """Return the geometric mean of a row's ratios where `mask`, with each token's own gradient; (B, T).

    sg(s) p / sg p: GSPO-token, arXiv 2507.18071 eq. 13; its gradient sums up to that of s.
    """
    tokens = mask.sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(mask, log_p - log_p_old, 0.0).sum(-1, keepdim=True) / tokens
    return torch.exp(mean.detach().clamp(max=MAX_LOG_RATIO) + (log_p - log_p.detach()))


def clip_mask(
    log_p: Tensor, log_p_old: Tensor, advantage: Tensor, mask: Tensor, settings: SurrogateSettings
) -> Tensor:
    """Return True for each token on which the trust region acts: beyond it in the advantage's direction."""
    clip = settings.clip
    ratio = SURROGATES[settings.kind].ratio(log_p, log_p_old, mask)
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


SURROGATES = Registry[Surrogate]("algorithm.surrogate", Surrogate)
_PPO = "min(r A, clip(r) A): PPO (eq. 7) and GRPO"
SURROGATES.register("clipped", Surrogate(term=_clipped, ratio=token_ratio, about=_PPO, arxiv="1707.06347"))
_GSPO = "the same with one ratio a sequence, the geometric mean of its tokens': GSPO"
SURROGATES.register(
    "sequence", Surrogate(term=_sequence, ratio=sequence_ratio, about=_GSPO, arxiv="2507.18071")
)
_CISPO = "sg(clip(r)) A log p: clips the weight and never the gradient"
SURROGATES.register("cispo", Surrogate(term=_cispo, ratio=token_ratio, about=_CISPO, arxiv="2506.13585"))
_GPPO = "as `clipped`, but a clipped token keeps a gradient of the clip's size: GPPO"
SURROGATES.register(
    "preserving", Surrogate(term=_preserving, ratio=token_ratio, about=_GPPO, arxiv="2508.07629")
)
