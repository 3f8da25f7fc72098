"""What holds a policy: its distance to a reference policy, and its entropy, as terms of the objective.

An estimator of KL(policy || reference) is one entry of `KL_ESTIMATORS`; each is 0, with a gradient of 0,
where both are the same policy. Both terms act on all POLICY tokens, also of rollouts with an advantage of 0:
those drift as the others do. They leave out FEEDBACK tokens, and with them experts and consult-stripped
copies: nobody sampled those from the policy, so k3 of them estimates nothing, and to learn them is to leave
the reference on purpose.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aipo.core.advantages import Advantage
from aipo.core.batch import TokenBatch
from aipo.core.registry import Registry
from aipo.core.surrogates import MAX_LOG_RATIO
from aipo.core.types import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class KLEstimator:
    """How far the policy is from the reference at each token."""

    term: Callable[[Tensor, Tensor], Tensor]
    """From the policy's log-probabilities and the reference's to nats: those of the tokens, (B, T) each, or
    with `over_vocabulary` those of all tokens that could stand there, (..., V), to (...)."""
    over_vocabulary: bool = False
    about: str


class _Divergence(torch.autograd.Function):
    """sum_v p_v (log p_v - log q_v); only the two arguments are kept for the gradient, that of log p."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor | None) -> Tensor:
        ctx.save_for_backward(log_p, log_q)
        return log_p.exp().mul_(log_p if log_q is None else log_p - log_q).sum(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        log_p, log_q = ctx.saved_tensors
        above = log_p if log_q is None else log_p - log_q
        return log_p.exp().mul_(above + 1.0).mul_(gradients[0].unsqueeze(-1)), None


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) in nats of distributions in logarithms, (..., V) to (...); q has no gradient.

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    >>> round(divergence(p.log(), q.log()).item(), 4), divergence(p.log(), p.log()).item()
    (0.1438, 0.0)
    """
    result: Tensor = _Divergence.apply(log_p, log_q)  # type: ignore[no-untyped-call]
    return result


def entropy_of(log_p: Tensor) -> Tensor:
    """Return the entropy in nats of distributions in logarithms, (..., V) to (...).

    >>> round(entropy_of(torch.tensor([0.5, 0.5]).log()).item(), 4)
    0.6931
    """
    result: Tensor = _Divergence.apply(log_p, None)  # type: ignore[no-untyped-call]
    return -result


def k3(log_p: Tensor, log_p_reference: Tensor) -> Tensor:
    """Return q/p - 1 - log(q/p) of each token, at least 0; its mean over tokens sampled from p is KL(p || q).

    Its gradient, in the mean over such tokens, is that of KL(q || p), as in every trainer that has it in the
    loss. http://joschu.net/blog/kl-approx.html
    """
    delta = (log_p_reference - log_p).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(delta) - delta


KL_ESTIMATORS = Registry[KLEstimator]("algorithm.kl_estimator", KLEstimator)
KL_ESTIMATORS.register(
    "k3", KLEstimator(term=k3, about="of the sampled token alone: GRPO (arXiv 2402.03300 eq. 4), TRL, verl")
)
KL_ESTIMATORS.register(
    "exact",
    KLEstimator(term=divergence, over_vocabulary=True, about="of the whole distribution at each token"),
)


@dataclass(frozen=True, slots=True)
class KLTerm:
    """-beta KL(policy || reference), as the trainer has put it into the batch."""

    weight: float
    sources: Sequence[Source] = (Source.POLICY,)

    def teaches(self, advantage: Advantage) -> bool:
        """Say that it does, whatever the advantage."""
        return True

    def value(self, log_p: Tensor, batch: TokenBatch) -> Tensor:
        """Return it of each token, (B, T)."""
        return -self.weight * _given(batch.kl_reference, "kl_reference")


@dataclass(frozen=True, slots=True)
class EntropyTerm:
    """The policy's entropy, to be raised."""

    weight: float
    sources: Sequence[Source] = (Source.POLICY,)

    def teaches(self, advantage: Advantage) -> bool:
        """Say that it does, whatever the advantage."""
        return True

    def value(self, log_p: Tensor, batch: TokenBatch) -> Tensor:
        """Return it of each token, (B, T)."""
        return self.weight * _given(batch.entropy, "entropy")


def _given(values: Tensor | None, name: str) -> Tensor:
    if values is None:
        raise ValueError(
            f"a term of the objective reads TokenBatch.{name}, which the trainer did not compute"
        )
    return values
