"""The coefficient C on FEEDBACK tokens: how strongly the policy learns words that it did not sample.

C depends on one token's p, p_old and the sign of its advantage (docs/method.md#coefficients). What matters is
its *weight* W = dC / dlog p, the factor on A * grad log p, which is finite for every p in (0, 1]. A
coefficient is one entry of `COEFFICIENTS`: its term, its formulas in words, and the settings that it reads.

Agent-free deployment needs the policy to produce the feedback's content itself. The ideal weight is p / q
with q the agent's probability, which is unknown for most agents: q := 1 is unbiased for a deterministic agent
but its gradient, p, vanishes on exactly the tokens that are new. `floored` puts a floor under that gradient:
this project's reconstruction of AIPO (arXiv 2605.08401; its formula is not public).
"""

from math import log

import torch
from torch import Tensor

from aipo.core.feedback import Coefficient, CoefficientSettings, OldLogP
from aipo.core.registry import Registry
from aipo.core.surrogates import clipped_surrogate

COEFFICIENTS = Registry[Coefficient]("algorithm.coefficient", Coefficient)
"""What `algorithm.coefficient` may be; `module:attribute` names one from outside."""


def feedback_term(
    log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings
) -> Tensor:
    """Return C * A for each token, to be maximised; arguments (B, T) or broadcast to it.

    The floor lifts the weight of tokens with A > 0 only. Where A < 0 it would push rare tokens down without
    bound, so `floored` and `stopgrad` weigh those with p itself; the prototype floors the wrong sign.
    `log_p_old` is what the entry's `old` says. Degenerate case: A = 0 gives 0 and no gradient.
    """
    term = COEFFICIENTS[settings.kind].term(log_p, log_p_old, advantage, settings)
    if settings.unit_below_zero:
        term = torch.where(advantage < 0, _unit(log_p, log_p_old, advantage, settings), term)
    return term


def curve(
    p: Tensor, settings: CoefficientSettings, sign: float = 1.0, p_old: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return C and W = dC / dlog p at each p, for A = `sign`, by differentiating the term itself; as p.

    Without `p_old` it is p, as in the first update, or q = 1.

    >>> weights = curve(torch.tensor([0.01, 0.5], dtype=torch.float64), CoefficientSettings())[1]
    >>> [round(weight, 3) for weight in weights.tolist()]
    [0.1, 0.5]
    """
    log_p = p.log().requires_grad_()
    if p_old is not None:
        old = torch.full_like(p, p_old).log()
    else:
        unreported = COEFFICIENTS[settings.kind].old is OldLogP.AGENT
        old = torch.zeros_like(p) if unreported else log_p.detach()
    value = feedback_term(log_p, old, torch.full_like(p, sign), settings) / sign
    if value.requires_grad:
        value.sum().backward()  # type: ignore[no-untyped-call]
    return value.detach(), torch.zeros_like(p) if log_p.grad is None else log_p.grad


def _floored_weight(log_p: Tensor, advantage: Tensor, floor: float) -> Tensor:
    p = log_p.detach().exp()
    return torch.where(advantage > 0, p.clamp(min=floor), p)


def _masked(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    return torch.zeros_like(log_p * advantage)


COEFFICIENTS.register(
    "masked",
    Coefficient(
        term=_masked,
        value="0",
        weight="0",
        about="trains no FEEDBACK token: the exact gradient of the interactive policy (Search-R1)",
        trained=False,
    ),
)


def _ratio(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    return clipped_surrogate(log_p, log_p_old, advantage, settings.clip)


COEFFICIENTS.register(
    "ratio",
    Coefficient(
        term=_ratio,
        value="p / p_old, with PPO's clip",
        weight="1 at the first update, then p / p_old, clipped",
        about="treats the agent's words as the policy's own",
        old=OldLogP.POLICY,
    ),
)


def _agent(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    weight = torch.exp(log_p.detach() - log_p_old).clamp(max=settings.truncation)
    return weight * torch.exp(log_p - log_p.detach()) * advantage


COEFFICIENTS.register(
    "agent",
    Coefficient(
        term=_agent,
        value="min(sg p / q, c) p / sg p",
        weight="min(p / q, c), where q = 1 if the agent reports none",
        about="ideal where the agent reports q",
        old=OldLogP.AGENT,
        reads={"truncation": "c"},
    ),
)


def _unit(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    return log_p.exp() * advantage


COEFFICIENTS.register(
    "unit",
    Coefficient(
        term=_unit, value="p", weight="p", about="unbiased for a deterministic agent; vanishes on new tokens"
    ),
)


def _shaped(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    # p / (p + g) without the cancellation near p = 1
    return torch.sigmoid(log_p - log(settings.shape)) * advantage


COEFFICIENTS.register(
    "shaped",
    Coefficient(
        term=_shaped,
        value="p / (p + g)",
        weight="g p / (p + g)²",
        about="LUFFY",
        arxiv="2504.14945",
        reads={"shape": "g"},
    ),
)


def _attenuated(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    return log_p.exp() / log_p.detach().exp().clamp(min=settings.floor) * advantage


COEFFICIENTS.register(
    "attenuated",
    Coefficient(
        term=_attenuated,
        value="p / max(sg p, d)",
        weight="min(1, p / d)",
        about="TRAPO; drops rare tokens on purpose",
        reads={"floor": "d"},
    ),
)


def _stopgrad(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    return _floored_weight(log_p, advantage, settings.floor) * log_p * advantage


COEFFICIENTS.register(
    "stopgrad",
    Coefficient(
        term=_stopgrad,
        value="sg max(p, d) log p",
        weight="max(p, d) where A > 0, else p",
        about="after CISPO; W is that of `floored`",
        arxiv="2506.13585",
        reads={"floor": "d"},
    ),
)


def _floored(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    # p / sg p as exp(log p - sg log p): exactly 1 with gradient 1, also where p underflows to 0.
    one = torch.exp(log_p - log_p.detach())
    return _floored_weight(log_p, advantage, settings.floor) * one * advantage


COEFFICIENTS.register(
    "floored",
    Coefficient(
        term=_floored,
        value="max(sg p, d) p / sg p",
        weight="max(p, d) where A > 0, else p",
        about="the reconstruction of AIPO",
        reads={"floor": "d"},
    ),
)


def _likelihood(log_p: Tensor, log_p_old: Tensor, advantage: Tensor, settings: CoefficientSettings) -> Tensor:
    return log_p * advantage


COEFFICIENTS.register(
    "likelihood",
    Coefficient(
        term=_likelihood,
        value="log p",
        weight="1",
        about="maximum likelihood, hence supervised fine-tuning when A = 1",
    ),
)
