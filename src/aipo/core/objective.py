"""The objective J of docs/method.md#objective, from per-token log-probabilities to one loss.

    J = sum_t w_t [ POLICY: surrogate(r, A)  +  FEEDBACK: lambda C(p) A_F ]

w_t is 1/N for the token mean. Owns the sum over sources. Must not know models, optimisers, micro-batches.
Invariant: without a FEEDBACK token the loss equals the base algorithm's to the last bit; a token that is not
trained has exactly zero gradient.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from aipo.core.batch import TokenBatch
from aipo.core.coefficients import Coefficient, CoefficientSettings, feedback_term
from aipo.core.surrogates import SurrogateSettings, outside, surrogate_term


@dataclass(frozen=True, slots=True)
class ObjectiveSettings:
    """The base algorithm's surrogate, and what is done with FEEDBACK tokens."""

    surrogate: SurrogateSettings = field(default_factory=SurrogateSettings)
    coefficient: CoefficientSettings = field(default_factory=CoefficientSettings)
    feedback_weight: float = 1.0
    """lambda; 0 is the same as the coefficient `masked`."""

    @property
    def feedback_trained(self) -> bool:
        """Whether FEEDBACK tokens belong to the trained tokens and so to N."""
        return self.coefficient.kind is not Coefficient.MASKED and self.feedback_weight > 0

    @property
    def needs_old_feedback_log_p(self) -> bool:
        """Whether p_old is read at FEEDBACK tokens, which no sampler reported."""
        return self.coefficient.kind is Coefficient.RATIO


def objective_loss(log_p: Tensor, batch: TokenBatch, settings: ObjectiveSettings) -> Tensor:
    """Return -J's share of this batch, a scalar; shares of all micro-batches and ranks add up to -J.

    `log_p` is (B, T): log pi_theta(token t | tokens before t), any value at position 0 and at padding.
    """
    mask = batch.policy_mask
    # Replaced before it is used: the gradient of where(mask, f(x), 0) is 0 * f'(x): NaN where f'(x) is inf.
    log_p = torch.where(mask | batch.feedback_mask, log_p, 0.0)
    policy = surrogate_term(log_p, batch.log_p_old, batch.policy_advantage, mask, settings.surrogate)
    total = torch.where(mask, policy, 0.0)
    if settings.feedback_trained:
        # Where no FEEDBACK token is, this adds +0.0 to each term: the loss keeps every bit.
        feedback = feedback_term(log_p, batch.log_p_old, batch.feedback_advantage, settings.coefficient)
        total = total + settings.feedback_weight * torch.where(batch.feedback_mask, feedback, 0.0)
    return -(total * batch.weight).sum()


@torch.no_grad()
def objective_sums(log_p: Tensor, batch: TokenBatch, settings: ObjectiveSettings) -> dict[str, float]:
    """Return sums for the records, to be added over micro-batches and divided by their `*_tokens`.

    `credited` FEEDBACK tokens are those with A_F > 0, the ones whose content is being learnt.
    """
    policy, feedback = batch.policy_mask, batch.feedback_mask
    credited = feedback & (batch.feedback_advantage > 0)
    delta = torch.where(policy, log_p - batch.log_p_old, 0.0)
    taken = outside(log_p, batch.log_p_old, batch.policy_advantage, policy, settings.surrogate) & policy
    p = log_p.exp()
    sums = {
        "policy_tokens": policy.sum(),
        "feedback_tokens": feedback.sum(),
        "credited_tokens": credited.sum(),
        "clipped": taken.sum(),
        "ratio": (delta.exp() * policy).sum(),
        # Schulman's k3 estimator of KL(p_old || p), http://joschu.net/blog/kl-approx.html
        "kl": ((delta.exp() - 1 - delta) * policy).sum(),
        "policy_nll": torch.where(policy, -log_p, 0.0).sum(),
        "feedback_p": torch.where(feedback, p, 0.0).sum(),
        "credited_p": torch.where(credited, p, 0.0).sum(),
    }
    return {name: float(value) for name, value in sums.items()}
