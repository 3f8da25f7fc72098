"""AIPO's loss on the actor's workers: verl's jagged tensors through `core/objective.py`.

For equal rollouts the loss and its gradient are those of this package's own trainer, whatever the micro-
batches, ranks and padding; a missing or misaligned field is an error, never a mask of zeros.

verl calls it as `loss(model_output, data, dp_group)` (`ActorRolloutRefWorker.set_loss_fn`), with log-probs of
whole sequences and fields of their responses, and averages gradients over ranks, hence the factor `dp_size`.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aipo.core.batch import TokenBatch, corrected
from aipo.core.objective import ObjectiveSettings, objective_loss, objective_sums
from aipo.core.types import Source

SOURCES, WEIGHTS, FEEDBACK_ADVANTAGES = "token_sources", "token_weights", "feedback_advantages"
SUMS = "actor/aipo_sum/"
"""Metrics that are sums over tokens; the trainer makes means of them."""
REFERENCE = "ref_log_prob"
"""verl's field of the reference policy's log-probabilities."""
_FIELDS = (SOURCES, WEIGHTS, FEEDBACK_ADVANTAGES, "old_log_probs", "rollout_log_probs", "advantages")


class LossError(RuntimeError):
    """A field that the objective needs is not in verl's batch, or not aligned with the responses."""


@dataclass(frozen=True, slots=True)
class AipoLoss:
    """The loss of one step; goes to the workers by pickle."""

    objective: ObjectiveSettings
    mismatch_truncation: float = 0.0
    """Largest weight of the correction for a sampler that differs from the trainer; 0: no correction."""

    def __call__(self, model_output: Any, data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
        """Return (loss of this micro-batch, metrics). Raises `LossError`."""
        from verl.utils.metric import AggregationType, Metric
        from verl.workers.utils.padding import no_padding_2_padding

        batch = token_batch(data, self.objective, self.mismatch_truncation)
        width = batch.sources.shape[1]
        log_p = no_padding_2_padding(model_output["log_probs"], data)[:, :width]
        if (kl := self.objective.kl) is not None:
            batch = replace(batch, kl_reference=kl.term(log_p, _reference(data)))
        entropy = model_output.get("entropy")
        if entropy is not None:
            entropy = no_padding_2_padding(entropy, data)[:, :width]
            batch = replace(batch, entropy=entropy if self.objective.entropy_weight else entropy.detach())
        elif self.objective.entropy_weight:
            raise LossError("the actor gave no entropy: the batch did not go through the trainer `aipo_sync`")
        loss = objective_loss(log_p, batch, self.objective) * data["dp_size"]
        metrics = {"actor/pg_loss": Metric(value=loss.detach(), aggregation=AggregationType.SUM)}
        sums = objective_sums(log_p.detach(), batch, self.objective)
        if batch.entropy is not None:
            sums["entropy"] = float(torch.where(batch.policy_mask, batch.entropy.detach(), 0.0).sum())
        for name, value in sums.items():
            metrics[f"{SUMS}{name}"] = Metric(value=value, aggregation=AggregationType.SUM)
        return loss, metrics


def token_batch(data: Any, objective: ObjectiveSettings, mismatch_truncation: float = 0.0) -> TokenBatch:
    """Return verl's micro-batch as `core` sees it: (B, T), T the longest response. Raises `LossError`."""
    if missing := [name for name in _FIELDS if name not in data]:
        raise LossError(
            f"verl's batch has no {missing}: its transfer queue drops a field that one record lacks, so "
            "every training row must come from the agent loop `aipo` (dataset column agent_name) and go "
            "through the trainer `aipo_sync`"
        )
    lengths = _lengths(data["responses"])
    fields = {name: _padded(name, data[name], lengths) for name in _FIELDS}
    sources = fields[SOURCES].long()
    old, sampled = fields["old_log_probs"], fields["rollout_log_probs"]
    positions = torch.arange(sources.shape[1], device=sources.device)
    batch = TokenBatch(
        ids=_padded("responses", data["responses"], lengths),
        sources=sources,
        attended=positions < torch.tensor(lengths, device=sources.device).unsqueeze(-1),
        log_p_old=_log_p_old(old, sampled, sources, objective),
        policy_advantage=fields["advantages"],
        feedback_advantage=fields[FEEDBACK_ADVANTAGES],
        weight=fields[WEIGHTS],
    )
    if not mismatch_truncation:
        return batch
    own = torch.where(sources == Source.POLICY, sampled, batch.log_p_old)
    return corrected(replace(batch, log_p_old=own), old, mismatch_truncation)


def _reference(data: Any) -> Tensor:
    """Return the reference policy's log-probabilities, (B, T). Raises `LossError`."""
    if REFERENCE not in data:
        raise LossError(
            f"verl's batch has no {REFERENCE}, which algorithm.kl_weight needs; set "
            "actor_rollout_ref.actor.use_kl_loss=True, for which verl computes it"
        )
    return _padded(REFERENCE, data[REFERENCE], _lengths(data["responses"]))


def _log_p_old(old: Tensor, sampled: Tensor, sources: Tensor, objective: ObjectiveSettings) -> Tensor:
    """Return p_old at POLICY tokens, and at FEEDBACK tokens the agent's q unless p_old is asked for."""
    if objective.needs_old_feedback_log_p:
        return old
    return torch.where(sources == Source.FEEDBACK, sampled, old)


def _lengths(responses: Tensor) -> list[int]:
    if responses.is_nested:
        return [int(n) for n in responses.offsets().diff().tolist()]  # type: ignore[attr-defined]
    return [int(responses.shape[1])] * int(responses.shape[0])


def _padded(name: str, field: Tensor, lengths: list[int]) -> Tensor:
    """Return (B, T) padded with 0, which is the source PROMPT: trained on by nothing. Raises `LossError`."""
    found = _lengths(field)
    if found != lengths:
        row = next(i for i, pair in enumerate(zip(found, lengths, strict=True)) if pair[0] != pair[1])
        raise LossError(
            f"{name} of row {row} has {found[row]} values for a response of {lengths[row]} tokens: it was "
            "not written by the trainer `aipo_sync`"
        )
    return torch.nested.to_padded_tensor(field, 0) if field.is_nested else field
