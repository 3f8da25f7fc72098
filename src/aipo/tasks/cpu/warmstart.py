"""The warm start: supervised training of the tiny policy on traces of a CPU task.

Only targets are learnt; what agents say about fictional things, and deliberate mistakes, are context. A real
model needs no warm start: it already writes solutions and follows the prompt that offers the agents.
"""

import math
import time
from collections.abc import Callable, Sequence
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aipo.core.types import Condition
from aipo.tasks.base import StartRequest
from aipo.tasks.cpu.curriculum import Curriculum, Trace
from aipo.tasks.cpu.settings import CpuSettings
from aipo.tasks.cpu.tiny import build_model, build_tokenizer

IGNORED = -100
LENGTH_BUCKETS = 4
"""A step's sequences are sorted by length and cut into this many parts, each padded by itself."""

Prompts = Callable[[str, Condition], Sequence[int]]


def make_policy(
    curriculum: Curriculum, request: StartRequest
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the tiny policy of a curriculum, trained; seed torch before the call."""
    settings = request.settings
    assert isinstance(settings, CpuSettings)
    tokenizer = build_tokenizer([*curriculum.vocabulary(), *request.words], request.control_strings)
    prompts = request.prompts(tokenizer)
    model = build_model(tokenizer, settings.warmstart)
    parameters = sum(p.numel() for p in model.parameters())
    request.note(f"warm start: {settings.warmstart.architecture}, {parameters:,} parameters")
    _train(model, tokenizer, curriculum, prompts, settings, request.progress)
    return model, tokenizer


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    curriculum: Curriculum,
    prompts: Prompts,
    settings: CpuSettings,
    progress: Callable[[int, int, float, float], None],
) -> None:
    """Train `model` in place; the same seed gives the same weights on the same machine and thread count."""
    ws = settings.warmstart
    rng = Random(settings.run.seed)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=ws.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _learning_rate(step, ws.steps))
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    begun = time.monotonic()
    model.train()
    for step in range(1, ws.steps + 1):
        traces = [curriculum.trace(rng) for _ in range(ws.sequences_per_step)]
        end_id = tokenizer.eos_token_id
        sequences = [_sequence(prompts(t.problem, t.condition), t, vocabulary, end_id) for t in traces]
        loss = _step(model, sequences)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        if step % 25 == 0 or step == ws.steps:
            progress(step, ws.steps, loss, time.monotonic() - begun)


def _learning_rate(step: int, steps: int) -> float:
    """Linear warm-up over 3 % of the steps, then a cosine to 2 %."""
    warmup = max(1, round(0.03 * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _sequence(
    prompt: Sequence[int], example: Trace, vocabulary: dict[str, int], end_id: int
) -> tuple[list[int], list[int]]:
    """Return ids and labels. Words are looked up: for a word-level vocabulary that is what encoding does."""
    ids, labels = list(prompt), [IGNORED] * len(prompt)
    for text, target in example.pieces:
        piece = [vocabulary[word] for word in text.split()]
        ids += piece
        labels += piece if target else [IGNORED] * len(piece)
    return [*ids, end_id], [*labels, end_id]


def _step(model: PreTrainedModel, sequences: list[tuple[list[int], list[int]]]) -> float:
    sequences.sort(key=lambda pair: len(pair[0]))
    targets = sum(label != IGNORED for _, labels in sequences for label in labels)
    size = math.ceil(len(sequences) / LENGTH_BUCKETS)
    total = 0.0
    for start in range(0, len(sequences), size):
        part = sequences[start : start + size]
        loss = _summed_loss(model, part) / targets
        loss.backward()
        total += float(loss.detach())
    return total


def _summed_loss(model: PreTrainedModel, part: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    width = max(len(ids) for ids, _ in part)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in part])
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in part])
    # Right padding behind a causal mask: no attention mask is needed, and none keeps the fast kernel.
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
