"""One policy update: mini-batches of rows through the objective into the optimiser.

Owns gradients. Must not know how rows came about. Invariant: cutting a mini-batch into micro-batches changes
no gradient, because each token's weight was fixed for the whole mini-batch.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor

from aipo.core.batch import Row, TokenBatch, collate
from aipo.core.objective import ObjectiveSettings, objective_loss, objective_sums
from aipo.train.batch import microbatches
from aipo.train.events import NonFiniteError
from aipo.train.model import token_log_probs


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """What an update needs to know besides its rows."""

    objective: ObjectiveSettings
    temperature: float
    microbatch_tokens: int
    max_grad_norm: float
    pad_id: int


class Updater:
    """Applies mini-batches to the model."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        settings: UpdateSettings,
    ) -> None:
        self._accelerator, self._model, self._optimiser = accelerator, model, optimiser
        self._settings = settings

    def apply(self, minibatches: Sequence[Sequence[Row]]) -> dict[str, float]:
        """Take one optimiser step for each mini-batch; return the update's metrics.

        Raises `NonFiniteError` before the optimiser has seen a gradient that is not finite.
        """
        sums: defaultdict[str, float] = defaultdict(float)
        first: dict[str, float] = {}
        norms = []
        if self._settings.objective.needs_old_feedback_log_p:
            minibatches = [self._recomputed(rows) for rows in minibatches]
        for rows in minibatches:
            step_sums = self._accumulate(rows)
            norms.append(self._step())
            for name, value in step_sums.items():
                sums[name] += value
            first = first or step_sums
        return {**_means(sums), **_first_update(first), "grad_norm": sum(norms) / max(1, len(norms))}

    def _accumulate(self, rows: Sequence[Row]) -> dict[str, float]:
        sums: defaultdict[str, float] = defaultdict(float)
        for part in microbatches(rows, self._settings.microbatch_tokens):
            batch = self._collate(part)
            log_p, entropy = token_log_probs(self._model, batch.ids, self._settings.temperature)
            loss = objective_loss(log_p, batch, self._settings.objective)
            if not torch.isfinite(loss):
                raise NonFiniteError(f"the loss is {loss.item()}; no update was made")
            if loss.requires_grad:
                self._accelerator.backward(loss)
            for name, value in objective_sums(log_p.detach(), batch, self._settings.objective).items():
                sums[name] += value
            sums["entropy"] += float((entropy * batch.policy_mask).sum())
            sums["loss"] += float(loss.detach())
        return dict(sums)

    def _step(self) -> float:
        norm: Tensor = self._accelerator.clip_grad_norm_(
            self._model.parameters(), self._settings.max_grad_norm
        )
        if not torch.isfinite(norm):
            self._optimiser.zero_grad(set_to_none=True)
            raise NonFiniteError(f"the gradient norm is {float(norm)}; no update was made")
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return float(norm)

    def _collate(self, rows: Sequence[Row]) -> TokenBatch:
        batch = collate(rows, self._settings.pad_id)
        device = self._accelerator.device
        moved = {name: getattr(batch, name).to(device) for name in TokenBatch.__slots__}
        return TokenBatch(**moved)

    @torch.no_grad()
    def _recomputed(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows, sorted by length, with log p under the policy as it is now, before any step."""
        result = []
        for part in microbatches(rows, self._settings.microbatch_tokens):
            log_p, _ = token_log_probs(self._model, self._collate(part).ids, self._settings.temperature)
            result += [
                replace(row, recomputed=tuple(values[: len(row.stream)]))
                for row, values in zip(part, log_p.tolist(), strict=True)
            ]
        return result


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """Turn sums over a step's tokens into means over the tokens that they speak of."""
    if not sums:
        return {}
    policy = max(1.0, sums["policy_tokens"])
    names = {"ratio": "ratio_mean", "kl": "kl", "clipped": "clip_fraction", "entropy": "entropy"}
    counted = ("loss", "policy_tokens", "feedback_tokens", "credited_tokens")
    return {mean: sums[name] / policy for name, mean in names.items()} | {
        name: sums[name] for name in counted
    }


def _first_update(sums: dict[str, float]) -> dict[str, float]:
    """Metrics that mean something before the first optimiser step of a batch only.

    The ratio is 1 but for rounding there; and the feedback's probability is that under the policy that
    sampled.
    """
    result = {"first_ratio_error": 0.0}
    if policy := sums.get("policy_tokens"):
        result["first_ratio_error"] = abs(sums["ratio"] / policy - 1.0)
    if feedback := sums.get("feedback_tokens"):
        result["feedback_prob"] = sums["feedback_p"] / feedback
    if credited := sums.get("credited_tokens"):
        result["credited_feedback_prob"] = sums["credited_p"] / credited
    return result
