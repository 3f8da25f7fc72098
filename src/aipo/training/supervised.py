"""Supervised fine-tuning on token streams: cross-entropy of the tokens whose sources are targets.

The loss of a step is the mean over all of its target tokens, however they are cut into passes. A run that
goes on from its checkpoint ends with the weights that it would have had.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aipo.core.seeds import seed_of
from aipo.core.tokens import TokenStream
from aipo.core.types import Source
from aipo.training.checkpoint import Checkpoints
from aipo.training.log_probs import PolicyForward, token_log_probs
from aipo.training.sharded import Whole
from aipo.training.snapshot import Learner, snapshot

WARMUP_SHARE, LAST_RATE = 0.05, 0.1
"""The rate rises over the first share of the steps, then falls linearly to this share of itself [ours]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedSettings:
    """How a model is fine-tuned."""

    targets: frozenset[Source]
    epochs: int
    sequences_per_step: int
    learning_rate: float
    microbatch_tokens: int
    max_grad_norm: float
    checkpoint_every_s: float
    seed: int


class Supervised:
    """Fine-tunes a model in place, with checkpoints."""

    def __init__(
        self,
        forward: PolicyForward,
        streams: Sequence[TokenStream],
        settings: SupervisedSettings,
        checkpoints: Checkpoints,
    ) -> None:
        """The parameters that require a gradient are trained. Goes on from the newest checkpoint."""
        self._forward, self._streams, self._settings = forward, streams, settings
        self._per_epoch = math.ceil(len(streams) / settings.sequences_per_step)
        self.steps = self._per_epoch * settings.epochs
        self._model: PreTrainedModel = forward.policy
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(
            self._trained, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, self._rate)
        self._learner = Learner(
            model=self._model,
            optimiser=self._optimiser,
            scheduler=self._schedule,
            policy=Whole(self._model),
        )
        self._checkpoints = checkpoints
        self.step = checkpoints.steps()[-1] if checkpoints.steps() else 0
        if self.step:
            checkpoints.restore(self.step, self._learner)

    def run(self, progress: Callable[[int, int, float, float], None]) -> None:
        """Train to the end. `progress` takes step, steps, the step's loss and the seconds of this process.

        Ctrl-C leaves a checkpoint, and so does every `checkpoint_every_s`.
        """
        begun = saved = time.monotonic()
        first = self.step
        try:
            while self.step < self.steps:
                loss = self._update(self._batch(self.step))
                self.step += 1
                now = time.monotonic()
                progress(self.step - first, self.steps - first, loss, now - begun)
                if now - saved > self._settings.checkpoint_every_s:
                    self._save()
                    saved = time.monotonic()
        except KeyboardInterrupt:
            self._save()
            raise

    def _save(self) -> None:
        self._optimiser.zero_grad(set_to_none=True)
        self._checkpoints.save(snapshot(self._learner, {"step": self.step}, periodic=True, copy=False))

    def _rate(self, step: int) -> float:
        warmup = max(1, round(WARMUP_SHARE * self.steps))
        if step < warmup:
            return (step + 1) / warmup
        return 1 - (1 - LAST_RATE) * (step - warmup) / max(1, self.steps - warmup)

    def _batch(self, step: int) -> list[TokenStream]:
        epoch, place = divmod(step, self._per_epoch)
        order = list(range(len(self._streams)))
        Random(seed_of(self._settings.seed, "supervised", epoch)).shuffle(order)
        size = self._settings.sequences_per_step
        return [self._streams[i] for i in order[place * size : (place + 1) * size]]

    def _update(self, batch: Sequence[TokenStream]) -> float:
        targets = self._settings.targets
        count = sum(target_count(stream, targets) for stream in batch)
        total = 0.0
        for part in passes(batch, self._settings.microbatch_tokens):
            loss = summed_loss(self._forward, part, targets) / count
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self._trained, self._settings.max_grad_norm)
        self._optimiser.step()
        self._schedule.step()
        self._optimiser.zero_grad(set_to_none=True)
        return total


def target_count(stream: TokenStream, targets: frozenset[Source]) -> int:
    """Return how many tokens of a stream are learnt."""
    return sum(stream.count(source) for source in targets)


def passes(streams: Sequence[TokenStream], microbatch_tokens: int) -> Iterator[list[TokenStream]]:
    """Yield the streams in passes of like length, each of at most so many padded tokens or of one stream."""
    part: list[TokenStream] = []
    for stream in sorted(streams, key=len):
        if part and len(stream) * (len(part) + 1) > microbatch_tokens:
            yield part
            part = []
        part.append(stream)
    if part:
        yield part


def summed_loss(forward: PolicyForward, streams: Sequence[TokenStream], targets: frozenset[Source]) -> Tensor:
    """Return the sum of -log p over the target tokens, a scalar in float32."""
    width = max(map(len, streams))
    ids = torch.zeros(len(streams), width, dtype=torch.long)
    learnt = torch.zeros(len(streams), width)
    for row, stream in enumerate(streams):
        ids[row, : len(stream)] = torch.tensor(stream.ids)
        learnt[row, : len(stream)] = torch.tensor([source in targets for source in stream.sources]).float()
    device = forward.policy.device
    first = min(stream.prompt_length for stream in streams)
    log_p, _ = token_log_probs(forward, ids.to(device), 1.0, first)
    return -(log_p * learnt.to(device)).sum()


def mean_loss(
    forward: PolicyForward,
    streams: Sequence[TokenStream],
    targets: frozenset[Source],
    microbatch_tokens: int,
) -> float:
    """Return the mean of -log p over all target tokens of some streams; NaN where there is none."""
    count = sum(target_count(stream, targets) for stream in streams)
    with torch.no_grad():
        parts = (float(summed_loss(forward, part, targets)) for part in passes(streams, microbatch_tokens))
        return sum(parts) / count if count else math.nan
