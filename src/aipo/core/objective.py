"""The objective J of docs/method.md#objective, from per-token log-probabilities to one loss.

    J = sum_t w_t [ POLICY: surrogate(r, A)  +  FEEDBACK: lambda C(p) A_F  +  further terms ]

w_t is 1/N for the token mean. Each summand is a `Term`, which says on which tokens it acts and of which rows
it needs the gradient. Without a FEEDBACK token and without further terms the loss equals the base algorithm's
to the last bit; a token that no term acts on has exactly zero gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from aipo.core.advantages import Advantage
from aipo.core.batch import Row, TokenBatch
from aipo.core.coefficients import COEFFICIENTS, feedback_term
from aipo.core.divergence import KL_ESTIMATORS, EntropyTerm, KLEstimator, KLTerm
from aipo.core.feedback import CoefficientSettings, OldLogP
from aipo.core.surrogates import SurrogateSettings, clip_mask, surrogate_term
from aipo.core.types import Source


class Term(Protocol):
    """One summand of the objective."""

    @property
    def sources(self) -> Sequence[Source]:
        """The sources whose tokens it acts on: POLICY, FEEDBACK or both."""

    def teaches(self, advantage: Advantage) -> bool:
        """Say whether those tokens have a gradient in a row with these advantages."""

    def value(self, log_p: Tensor, batch: TokenBatch) -> Tensor:
        """Return the summand of each token, to be maximised, before its weight; (B, T).

        What it is at tokens of other sources does not matter, as long as it is finite.
        """


@dataclass(frozen=True, slots=True)
class _PolicyTerm:
    """The base algorithm's surrogate on POLICY tokens."""

    settings: SurrogateSettings
    sources: Sequence[Source] = (Source.POLICY,)

    def teaches(self, advantage: Advantage) -> bool:
        return advantage.policy != 0

    def value(self, log_p: Tensor, batch: TokenBatch) -> Tensor:
        return surrogate_term(
            log_p, batch.log_p_old, batch.policy_advantage, batch.policy_mask, self.settings
        )


@dataclass(frozen=True, slots=True)
class _FeedbackTerm:
    """lambda C(p) A_F on FEEDBACK tokens."""

    settings: CoefficientSettings
    weight: float
    sources: Sequence[Source] = (Source.FEEDBACK,)

    def teaches(self, advantage: Advantage) -> bool:
        return advantage.feedback != 0

    def value(self, log_p: Tensor, batch: TokenBatch) -> Tensor:
        return self.weight * feedback_term(log_p, batch.log_p_old, batch.feedback_advantage, self.settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSettings:
    """The base algorithm's surrogate, what is done with FEEDBACK tokens, and further terms."""

    surrogate: SurrogateSettings = field(default_factory=SurrogateSettings)
    coefficient: CoefficientSettings = field(default_factory=CoefficientSettings)
    feedback_weight: float = 1.0
    """lambda; 0 is the same as the coefficient `masked`."""
    kl_weight: float = 0.0
    """beta of KL(policy || reference) on POLICY tokens."""
    kl_estimator: str = "k3"
    entropy_weight: float = 0.0
    """Of the entropy bonus on POLICY tokens."""
    further: tuple[Term, ...] = ()

    @property
    def feedback_trained(self) -> bool:
        """Whether FEEDBACK tokens belong to the trained tokens and so to N."""
        return COEFFICIENTS[self.coefficient.kind].trained and self.feedback_weight > 0

    @property
    def needs_old_feedback_log_p(self) -> bool:
        """Whether p_old is read at FEEDBACK tokens, which no sampler reported."""
        return COEFFICIENTS[self.coefficient.kind].old is OldLogP.POLICY

    @property
    def kl(self) -> KLEstimator | None:
        """How far the policy is from the reference; None where nothing asks for it."""
        return KL_ESTIMATORS[self.kl_estimator] if self.kl_weight else None

    @property
    def terms(self) -> tuple[Term, ...]:
        """All summands; the first is POLICY's."""
        feedback = (_FeedbackTerm(self.coefficient, self.feedback_weight),) if self.feedback_trained else ()
        kl = (KLTerm(self.kl_weight),) if self.kl_weight else ()
        entropy = (EntropyTerm(self.entropy_weight),) if self.entropy_weight else ()
        return (_PolicyTerm(self.surrogate), *feedback, *kl, *entropy, *self.further)

    def teaches(self, row: Row) -> bool:
        """Say whether any token of a row has a gradient; the other rows need no backward pass."""
        return any(
            term.teaches(row.advantage) and any(row.stream.count(source) for source in term.sources)
            for term in self.terms
        )


def objective_loss(log_p: Tensor, batch: TokenBatch, settings: ObjectiveSettings) -> Tensor:
    """Return -J's share of this batch, a scalar; shares of all micro-batches and ranks add up to -J.

    `log_p` is (B, T): log pi_theta(token t | tokens before t), any value at position 0 and at padding.
    """
    # Replaced before it is used: the gradient of where(mask, f(x), 0) is 0 * f'(x): NaN where f'(x) is inf.
    log_p = torch.where(batch.policy_mask | batch.feedback_mask, log_p, 0.0)
    first, *more = (
        torch.where(batch.mask(term.sources), term.value(log_p, batch), 0.0) for term in settings.terms
    )
    # Where no token of its sources is, a further term adds +0.0: the loss keeps every bit.
    total = sum(more, start=first)
    return -(total * batch.weight).sum()


@torch.no_grad()
def objective_sums(log_p: Tensor, batch: TokenBatch, settings: ObjectiveSettings) -> dict[str, float]:
    """Return sums for the records, to be added over micro-batches and divided by their `*_tokens`.

    `credited` FEEDBACK tokens are those with A_F > 0, the ones whose content is being learnt.
    """
    policy, feedback = batch.policy_mask, batch.feedback_mask
    credited = feedback & (batch.feedback_advantage > 0)
    delta = torch.where(policy, log_p - batch.log_p_old, 0.0)
    taken = clip_mask(log_p, batch.log_p_old, batch.policy_advantage, policy, settings.surrogate) & policy
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
    if batch.kl_reference is not None:
        sums["kl_reference"] = torch.where(policy, batch.kl_reference, 0.0).sum()
    return {name: float(value) for name, value in sums.items()}
