"""One policy update: mini-batches of rows through the objective into the optimiser.

Cutting a mini-batch into micro-batches changes no gradient, because each token's weight was fixed for the
whole mini-batch. The objective's terms decide which rows need a backward pass.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import log
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor

from aipo.core.batch import Row, TokenBatch, collate, corrected
from aipo.core.divergence import KLEstimator
from aipo.core.objective import ObjectiveSettings, objective_loss, objective_sums
from aipo.core.types import Source
from aipo.training.batch import (
    PASS_TOKENS_CPU,
    PASS_TOKENS_GPU,
    Microbatch,
    SharedPrefixes,
    microbatches_of_rank,
    pass_tokens,
)
from aipo.training.events import NonFiniteError, StopRunError
from aipo.training.log_probs import packed_log_probs, token_log_probs
from aipo.training.metrics import truncated_share
from aipo.training.prefixes import packed_streams
from aipo.training.ranks import ALONE, Ranks
from aipo.training.room import Result, Room
from aipo.training.sharded import reshard

MISMATCH_RATIO = 2.0
"""Tokens whose probability ratio, trainer to sampler, is outside [1/2, 2] are counted."""
_LARGEST = frozenset({"mismatch_max"})
"""Which of a mini-batch's sums are maxima: of the ranks' values the largest is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSettings:
    """What an update needs to know besides its rows."""

    temperature: float
    microbatch_tokens: int
    max_grad_norm: float
    pad_id: int
    mismatch_truncation: float = 0.0
    """Largest weight of the correction for a sampler that differs from the trainer; 0: no correction."""
    request_ids: tuple[int, ...] = ()
    """Single tokens that open requests: what rows without requests have their probabilities without.
    Simplification: a tag of several tokens, which is banned at its last one, is not taken away here."""
    share_prefixes: bool = False
    """Whether a prefix that several rows share goes through the model once, where that is cheaper."""


class MinibatchGuard(Protocol):
    """Decides what becomes of a mini-batch that must not be applied; see `training/guards.py`."""

    def check_minibatch(self, sums: Mapping[str, float], first: bool) -> None:
        """Raise `StopRunError` for a mini-batch that must not be applied."""

    def refuse_minibatch(self, error: StopRunError, weights_changed: bool) -> None:
        """Return to leave the mini-batch out, raise to end the step."""

    def leaves_out_the_rest(self) -> bool:
        """Say whether no further mini-batch is to be applied."""
        ...


class Updater:
    """Applies mini-batches to the model."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        settings: UpdateSettings,
        guard: MinibatchGuard | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Without a `guard` the first mini-batch that is not finite ends the update.

        Each of the `ranks` is given all rows and computes its share; metrics are those of all ranks.
        """
        self._accelerator, self._model, self._optimiser = accelerator, model, optimiser
        self._settings, self._guard, self._ranks = settings, guard, ranks
        self._objective = ObjectiveSettings()
        self.steps_taken = 0
        """Optimiser steps in the current update."""
        self.room = Room(settings.microbatch_tokens, ranks.several)
        self._prefixes = SharedPrefixes(model, accelerator) if settings.share_prefixes else None
        self._trainer_log_p: dict[int, tuple[float, ...]] = {}
        """log p of each stream's tokens before the first optimiser step, by `id(stream)`; empty without
        the correction."""
        self.truncated_share = 0.0
        """Of the latest update's POLICY tokens: those whose correction was cut off; 0 without it."""
        self._keep_feedback = False
        self.feedback_log_p: dict[int, list[float]] = {}
        """log p of each stream's FEEDBACK tokens, by `id(stream)`, when its mini-batch was computed."""

    def begin_step(self) -> None:
        """Forget the last step's numbers, whose streams are gone: this step may end before its update."""
        self.steps_taken, self.feedback_log_p = 0, {}

    def apply(
        self,
        minibatches: Sequence[Sequence[Row]],
        objective: ObjectiveSettings,
        by_source: bool = False,
        keep_feedback: bool = False,
    ) -> dict[str, float]:
        """Take one optimiser step for each mini-batch; return the update's metrics.

        With `by_source`, also the norms of POLICY's and of FEEDBACK's part of the first gradient, at the cost
        of two more backward passes; with `keep_feedback`, `feedback_log_p` is filled. Raises `NonFiniteError`
        before the optimiser has seen a gradient that is not finite.
        """
        self._objective, self._keep_feedback, self.feedback_log_p = objective, keep_feedback, {}
        sums: defaultdict[str, float] = defaultdict(float)
        first_sums: dict[str, float] = {}
        norms = []
        self._trainer_log_p = {}
        if objective.needs_old_feedback_log_p or self._settings.mismatch_truncation:
            recomputed = [self._within_memory(partial(self._recomputed, rows)) for rows in minibatches]
            if self._settings.mismatch_truncation:
                pairs = ((row.stream, row.recomputed) for rows in recomputed for row in rows)
                self._trainer_log_p = {id(stream): log_p for stream, log_p in pairs if log_p}
                limit = self._settings.mismatch_truncation
                self.truncated_share = truncated_share([r for rows in recomputed for r in rows], limit)
            if objective.needs_old_feedback_log_p:
                minibatches = recomputed
        grad_norms = {}
        if by_source and minibatches:
            grad_norms = self._within_memory(partial(self._norms_by_source, minibatches[0]))
        self.steps_taken = 0
        for rows in minibatches:
            applied = self._apply_minibatch(rows)
            if applied is None:
                continue
            step_sums, norm = applied
            norms.append(norm)
            for name, value in step_sums.items():
                sums[name] += value
            first_sums = first_sums or step_sums
        mean_norm = sum(norms) / max(1, len(norms))
        return {**_means(sums), **_first_update(first_sums), "grad_norm": mean_norm, **grad_norms}

    def _within_memory(self, compute: Callable[[], Result]) -> Result:
        """Return what `compute` returns, in smaller micro-batches if memory runs out."""
        return self.room.within(compute, lambda: self._optimiser.zero_grad(set_to_none=True))

    def _apply_minibatch(self, rows: Sequence[Row]) -> tuple[dict[str, float], float] | None:
        """Take the optimiser step of a mini-batch; return its sums and its gradient's norm, or None if the
        guard left it out."""
        if self._guard is not None and self._guard.leaves_out_the_rest():
            return None
        try:
            sums = self._within_memory(partial(self._accumulate, rows))
            if self._guard is not None:
                self._guard.check_minibatch(sums, first=not self.steps_taken)
            norm = self._step()
        except StopRunError as error:
            self._optimiser.zero_grad(set_to_none=True)
            if self._guard is None:
                raise
            self._guard.refuse_minibatch(error, weights_changed=self.steps_taken > 0)
            return None
        self.steps_taken += 1
        return sums, norm

    def _accumulate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Add up the gradient of a mini-batch; return the sums of its metrics.

        Rows that have no gradient under any term of the objective, most of a batch in late training, go
        through the model for the metrics only, at a third of the cost. If no row has a gradient, it is set to
        zero, so that the optimiser's momentum does not depend on this shortcut.
        """
        sums: defaultdict[str, float] = defaultdict(float)
        teaching = [row for row in rows if self._objective.teaches(row)]
        rest = [row for row in rows if not self._objective.teaches(row)]
        parts = [*self._parts(teaching, backward=True), *self._parts(rest, backward=False)]
        nonfinite_error: NonFiniteError | None = None
        for part, backward, gradient_sync in parts:
            sampled = self._collate(part.rows)
            batch = self._corrected(sampled, part.rows)
            with torch.set_grad_enabled(backward), gradient_sync:
                log_p, batch = self._forward(batch, part)
                loss = objective_loss(log_p, batch, self._objective)
                try:
                    _refuse_non_finite(loss, log_p, batch)
                except NonFiniteError as error:
                    if not self._ranks.several:
                        raise
                    nonfinite_error = nonfinite_error or error  # the other ranks wait for this one's passes
                self._backward(loss)
            if not part.counted:  # it only gives this rank as many passes as the others have
                continue
            for name, value in objective_sums(log_p.detach(), batch, self._objective).items():
                sums[name] += value
            _add_mismatch(sums, log_p.detach(), sampled)
            if self._keep_feedback and nonfinite_error is None:
                self._store_feedback(part.rows, log_p.detach(), sampled)
            assert batch.entropy is not None
            sums["entropy"] += float((batch.entropy.detach() * batch.policy_mask).sum())
            sums["loss"] += float(loss.detach())
        if not teaching:
            for parameter in self._model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        reshard(self._model)
        with self._ranks.together():
            if nonfinite_error is not None:
                raise nonfinite_error
        self._share_feedback(rows)
        return self._ranks.summed(sums, largest=_LARGEST)

    def _parts(
        self, rows: Sequence[Row], backward: bool
    ) -> Iterator[tuple[Microbatch, bool, AbstractContextManager[None]]]:
        """Yield this rank's micro-batches, `backward`, and a context that delays the exchange of gradients.

        Under DDP, ranks exchange gradients in the last backward pass only. Under FSDP they do so in each,
        or each rank would have to hold the whole gradient.
        """
        limit, on_cpu = self.room.tokens, self._accelerator.device.type == "cpu"
        rank, size = self._ranks.rank, self._ranks.size
        parts = self._prefixes.microbatches(rows, limit, rank, size) if self._prefixes else None
        if parts is None:
            limit = pass_tokens(limit, on_cpu)
            overhead = PASS_TOKENS_CPU if on_cpu else PASS_TOKENS_GPU
            parts = microbatches_of_rank(rows, limit, overhead, rank, size)
        may_delay = backward and self._ranks.several and not self._accelerator.is_fsdp2
        for i, part in enumerate(parts):
            delay = may_delay and i < len(parts) - 1
            yield part, backward, self._accelerator.no_sync(self._model) if delay else nullcontext()

    def _backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradient, times the number of ranks: DDP and FSDP average over ranks, but
        tokens are weighted within the whole mini-batch, so the ranks' gradients have to be summed."""
        if loss.requires_grad:
            self._accelerator.backward(loss * self._ranks.size if self._ranks.several else loss)

    def _share_feedback(self, rows: Sequence[Row]) -> None:
        """Give all ranks the `feedback_log_p` of this mini-batch's streams."""
        if not (self._keep_feedback and self._ranks.several):
            return
        own = [self.feedback_log_p.get(id(row.stream)) for row in rows]
        for of_rank in self._ranks.all_gather(own):
            for row, log_p in zip(rows, of_rank, strict=True):
                if log_p is not None:
                    self.feedback_log_p[id(row.stream)] = log_p

    def _log_probs(self, batch: TokenBatch, part: Microbatch, kl: KLEstimator | None) -> tuple[Tensor, ...]:
        """Return log p and entropy of each token after the prompt, and with `kl` also its estimate of the
        divergence from the reference; (B, T) each. Rows without requests have the log p of that policy."""
        alone = [row.without_requests for row in part.rows]
        if not (self._settings.request_ids and any(alone)):
            return self._of_policy(batch, part, kl)
        log_p, *others, left_over = self._of_policy(batch, part, kl, self._settings.request_ids)
        chosen = torch.tensor(alone, device=log_p.device).unsqueeze(-1)
        return torch.where(chosen, log_p - left_over, log_p), *others

    def _of_policy(
        self, batch: TokenBatch, part: Microbatch, kl: KLEstimator | None, without: Sequence[int] = ()
    ) -> tuple[Tensor, ...]:
        temperature = self._settings.temperature
        if part.trees:
            rows = packed_streams([row.stream for row in part.rows], part.trees, self._settings.pad_id)
            self.room.note_pass(len(part.rows), rows.ids.numel())
            return packed_log_probs(self._model, rows.to(batch.ids.device), temperature, kl, without)
        self.room.note_pass(len(part.rows), batch.ids.numel())
        prompt = int((batch.sources == Source.PROMPT).sum(-1).min())
        return token_log_probs(self._model, batch.ids, temperature, prompt, kl, without)

    def _forward(self, batch: TokenBatch, part: Microbatch) -> tuple[Tensor, TokenBatch]:
        """Return log p, and the batch with what else the objective's terms need from the forward pass."""
        log_p, entropy, *divergence = self._log_probs(batch, part, self._objective.kl)
        if not self._objective.entropy_weight:
            entropy = entropy.detach()  # its graph would keep the logits in memory
        return log_p, replace(batch, entropy=entropy, kl_reference=divergence[0] if divergence else None)

    def _store_feedback(self, rows: Sequence[Row], log_p: Tensor, batch: TokenBatch) -> None:
        feedback = batch.sources == Source.FEEDBACK
        for i, row in enumerate(rows):
            self.feedback_log_p[id(row.stream)] = log_p[i, feedback[i]].tolist()

    def _norms_by_source(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the norm of each source's part of a mini-batch's gradient; leave the gradient zero."""
        norms = {}
        for source in (Source.POLICY, Source.FEEDBACK):
            for part, _, gradient_sync in self._parts(rows, backward=True):
                batch = self._corrected(self._collate(part.rows), part.rows)
                batch = replace(batch, weight=batch.weight * (batch.sources == source))
                with gradient_sync:
                    log_p, batch = self._forward(batch, part)
                    self._backward(objective_loss(log_p, batch, self._objective))
            norm = self._clip_gradient(float("inf"))
            self._optimiser.zero_grad(set_to_none=True)
            norms[f"grad_norm_{source.name.lower()}"] = float(norm)
        return norms

    def _clip_gradient(self, max_norm: float) -> Tensor:
        """Scale the gradient down to `max_norm`; return its norm before that, over all ranks."""
        norm: Tensor = self._accelerator.clip_grad_norm_(self._model.parameters(), max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _step(self) -> float:
        norm = self._clip_gradient(self._settings.max_grad_norm)
        if not torch.isfinite(norm):
            self._optimiser.zero_grad(set_to_none=True)
            raise NonFiniteError(f"the gradient norm of a mini-batch is {float(norm)}")
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return float(norm)

    def _collate(self, rows: Sequence[Row]) -> TokenBatch:
        batch = collate(rows, self._settings.pad_id)
        device = self._accelerator.device
        values = {name: getattr(batch, name) for name in TokenBatch.__slots__}
        return TokenBatch(**{name: value.to(device) for name, value in values.items() if value is not None})

    def _corrected(self, batch: TokenBatch, rows: Sequence[Row]) -> TokenBatch:
        """Return the batch corrected for a sampler that differs from the trainer, if that is asked for."""
        if not self._trainer_log_p:
            return batch
        log_p = [torch.tensor(self._trainer_log_p[id(row.stream)]) for row in rows]
        padded = torch.nn.utils.rnn.pad_sequence(log_p, batch_first=True).to(batch.weight)
        return corrected(batch, padded, self._settings.mismatch_truncation)

    @torch.no_grad()
    def _recomputed(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows with log p under the policy as it is now, before any step."""
        own: dict[int, tuple[float, ...]] = {}
        for part, *_ in self._parts(rows, backward=False):
            log_p, _ = self._log_probs(self._collate(part.rows), part, None)
            for row, row_log_p in zip(part.rows, log_p.tolist(), strict=True):
                if part.counted:
                    own[id(row.stream)] = tuple(row_log_p[: len(row.stream)])
        reshard(self._model)
        by_rank = self._ranks.all_gather([own.get(id(row.stream)) for row in rows])
        found = [next(filter(None, of_row)) for of_row in zip(*by_rank, strict=True)]  # one rank has it
        return [replace(row, recomputed=log_p) for row, log_p in zip(rows, found, strict=True)]


def _refuse_non_finite(loss: Tensor, log_p: Tensor, batch: TokenBatch) -> None:
    """Raise `NonFiniteError` for a log-probability or loss that is not finite.

    Tokens without an advantage, which the loss leaves out, are checked too.
    """
    count = int((~torch.isfinite(log_p.detach()[batch.policy_mask | batch.feedback_mask])).sum())
    if count:
        raise NonFiniteError(f"{count} log-probabilities of a mini-batch are not finite numbers")
    if not torch.isfinite(loss):
        raise NonFiniteError(f"the loss of a mini-batch is {loss.item()}")


def _add_mismatch(sums: dict[str, float], log_p: Tensor, batch: TokenBatch) -> None:
    """Add how far the trainer's log-probabilities of POLICY tokens are from the sampler's."""
    abs_diff = (log_p - batch.log_p_old)[batch.policy_mask].abs()
    if abs_diff.numel():
        sums["mismatch_sum"] += float(abs_diff.sum())
        sums["mismatch_outside"] += float((abs_diff > log(MISMATCH_RATIO)).sum())
        sums["mismatch_max"] = max(sums["mismatch_max"], float(abs_diff.max()))


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """Return means over a step's POLICY tokens, and the loss and the numbers of tokens as they are."""
    if not sums:
        return {}
    policy = max(1.0, sums["policy_tokens"])
    names = {"kl_reference": "kl_reference"} if "kl_reference" in sums else {}
    names |= {"ratio": "ratio_mean", "kl": "kl", "clipped": "clip_fraction", "entropy": "entropy"}
    totals = ("loss", "policy_tokens", "feedback_tokens", "credited_tokens")
    return {mean: sums[name] / policy for name, mean in names.items()} | {name: sums[name] for name in totals}


def _first_update(sums: dict[str, float]) -> dict[str, float]:
    """Return the metrics that only make sense before a step's first optimiser step.

    There the ratio is 1 except for rounding and for differences between sampler and trainer (the mismatch),
    and the feedback's probability is that under the policy that sampled.
    """
    result = {"first_ratio_error": 0.0}
    if policy := sums.get("policy_tokens"):
        result["first_ratio_error"] = abs(sums["ratio"] / policy - 1.0)
        result["mismatch_mean"] = sums["mismatch_sum"] / policy
        result["mismatch_max"] = sums["mismatch_max"]
        result["mismatch_outside_share"] = sums["mismatch_outside"] / policy
    if feedback := sums.get("feedback_tokens"):
        result["feedback_prob"] = sums["feedback_p"] / feedback
    if credited := sums.get("credited_tokens"):
        result["credited_feedback_prob"] = sums["credited_p"] / credited
    return result
