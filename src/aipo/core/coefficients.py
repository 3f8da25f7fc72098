"""The coefficient C on FEEDBACK tokens: how strongly the policy learns words that it did not sample.

Owns the off-policy term of the objective (docs/method.md#coefficients). Must not know rollouts or groups.
Invariant: C depends on one token's p, p_old and the sign of its advantage; the *weight* that matters is
W = dC / dlog p, the factor on A * grad log p, and it is finite for every p in (0, 1].

Agent-free deployment needs the policy to produce the feedback's content itself. The ideal weight is p / q
with q the agent's probability, which is unknown for most agents: q := 1 is unbiased for a deterministic agent
but its gradient, p, vanishes on exactly the tokens that are new. `floored` keeps that denominator and puts a
floor under the gradient; it is this project's reconstruction of AIPO (arXiv 2605.08401; its formula is not
public).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from math import log

import torch
from torch import Tensor

from aipo.core.surrogates import Clip, clipped_surrogate


class Coefficient(StrEnum):
    """The family of coefficients; d = floor, g = shape."""

    MASKED = "masked"
    """C = 0. Exact gradient of the interactive policy; learns nothing of the content (Search-R1)."""
    RATIO = "ratio"
    """C = p/p_old with PPO's clip: treats the agent's words as the policy's own."""
    AGENT = "agent"
    """C = min(sg p/q, c) p/sg p, W = min(p/q, c), c = truncation: ideal where the agent reports q."""
    UNIT = "unit"
    """C = p, W = p: unbiased for a deterministic agent; vanishes on new tokens."""
    SHAPED = "shaped"
    """C = p/(p+g), W = g p/(p+g)^2: LUFFY, arXiv 2504.14945."""
    ATTENUATED = "attenuated"
    """C = p/max(sg p, d), W = min(1, p/d): TRAPO; drops rare tokens on purpose."""
    STOPGRAD = "stopgrad"
    """C = sg(clip(p, d, 1)) log p, W = clip(p, d, 1): after CISPO, arXiv 2506.13585; W is `floored`'s."""
    FLOORED = "floored"
    """C = max(sg p, d) p/sg p, W = max(p, d): the reconstruction of AIPO."""
    LIKELIHOOD = "likelihood"
    """C = log p, W = 1: maximum likelihood, hence supervised fine-tuning when A = 1."""


@dataclass(frozen=True, slots=True)
class CoefficientSettings:
    """Which coefficient, and its constants."""

    kind: Coefficient = Coefficient.FLOORED
    floor: float = 0.1
    shape: float = 0.1
    clip: Clip = field(default_factory=Clip)
    """Of `ratio`, whatever the base algorithm clips: GSPO's region, say, is meant for whole sequences."""
    truncation: float = 2.0
    """c of `agent`, at least 1; q := 1 where the agent reports none, which makes it `unit`."""
    unit_below_zero: bool = False
    """`signed_unit`: weigh tokens with A < 0 as `unit` does, whatever the coefficient."""


def feedback_term(
    log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings
) -> Tensor:
    """Return C * A for each token, to be maximised; arguments (B, T) or broadcast to it.

    The floor lifts the weight of tokens with A > 0 only. Where A < 0 it would push rare tokens down without
    bound, so `floored` and `stopgrad` weigh those with p itself; the prototype floors the wrong sign.
    `log_p_old` is read by `ratio`, and by `agent`, for which it holds log q. Degenerate case: A = 0 gives 0
    and no gradient.
    """
    term = _TERMS[settings.kind](log_p, log_p_old, advantage, settings)
    if settings.unit_below_zero:
        term = torch.where(advantage < 0, _unit(log_p, log_p_old, advantage, settings), term)
    return term


def _masked(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    return torch.zeros_like(log_p * advantage)


def _ratio(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    return clipped_surrogate(log_p, log_p_old, advantage, settings.clip)


def _agent(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    weight = torch.exp(log_p.detach() - log_p_old).clamp(max=settings.truncation)
    return weight * torch.exp(log_p - log_p.detach()) * advantage


def _unit(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    return log_p.exp() * advantage


def _shaped(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    # p / (p + g) without the cancellation near p = 1
    return torch.sigmoid(log_p - log(settings.shape)) * advantage


def _attenuated(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    return log_p.exp() / log_p.detach().exp().clamp(min=settings.floor) * advantage


def _stopgrad(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    return _floored_weight(log_p, advantage, settings.floor) * log_p * advantage


def _floored(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    # p / sg p as exp(log p - sg log p): exactly 1 with gradient 1, also where p underflows to 0.
    one = torch.exp(log_p - log_p.detach())
    return _floored_weight(log_p, advantage, settings.floor) * one * advantage


def _likelihood(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    return log_p * advantage


def _floored_weight(log_p: Tensor, advantage: Tensor, floor: float) -> Tensor:
    p = log_p.detach().exp()
    return torch.where(advantage > 0, p.clamp(min=floor), p)


_TERMS: dict[Coefficient, Callable[[Tensor, Tensor, Tensor, CoefficientSettings], Tensor]] = {
    Coefficient.MASKED: _masked,
    Coefficient.RATIO: _ratio,
    Coefficient.AGENT: _agent,
    Coefficient.UNIT: _unit,
    Coefficient.SHAPED: _shaped,
    Coefficient.ATTENUATED: _attenuated,
    Coefficient.STOPGRAD: _stopgrad,
    Coefficient.FLOORED: _floored,
    Coefficient.LIKELIHOOD: _likelihood,
}
