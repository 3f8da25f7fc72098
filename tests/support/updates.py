"""Eight rows of one mini-batch and a float64 model, for tests of how a mini-batch may be cut."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import torch
from transformers import LlamaConfig, PreTrainedModel

from aipo.core.advantages import Advantage
from aipo.core.batch import Row, collate, weighted_rows
from aipo.core.feedback import CoefficientSettings
from aipo.core.objective import ObjectiveSettings, objective_loss
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Source
from aipo.engines.precision import compute_in
from aipo.training.log_probs import token_log_probs
from aipo.training.update import Updater
from support.engines import random_model

ADVANTAGES = [
    (1.0, 0.5),
    (-0.5, 0.0),
    (0.0, 1.0),
    (0.2, 0.0),
    (0.7, 0.0),
    (-1.0, 0.2),
    (-0.3, 0.0),
    (0.3, 0.3),
]
OBJECTIVE = ObjectiveSettings(coefficient=CoefficientSettings(kind="ratio"))
"""Reads p_old at FEEDBACK tokens, so that log p is computed once more before the step."""
UPDATES = 8
"""Of a curve of losses."""
LONGEST = 14
"""Tokens of the longest uneven row; the shortest has 7."""


def double_model() -> PreTrainedModel:
    """Two layers, tied embeddings, always the same weights."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=50, num_key_value_heads=2, tie_word_embeddings=True, **shape)
    return random_model(config).double()


def mixed_model() -> PreTrainedModel:
    """The same in float32, with products in bfloat16 (policy.precision = "bf16-mixed")."""
    model = double_model().float()
    compute_in(model, torch.bfloat16)
    return model


def descent(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Follow the gradient's size too, which AdamW hardly does."""
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


def loss_curve(updater: Updater) -> list[float]:
    """Learn from the uneven rows again and again; return the loss that each update found."""
    return [updater.apply([UNEVEN_ROWS], OBJECTIVE)["loss"] for _ in range(UPDATES)]


def _stream(rng: Random, length: int) -> TokenStream:
    prompt, said, heard = (tuple(rng.randrange(3, 50) for _ in range(n)) for n in (2, length, 2))
    sampled = Segment(Source.POLICY, said, tuple(-3.0 - rng.random() for _ in said))
    return TokenStream((Segment(Source.PROMPT, prompt), sampled, Segment(Source.FEEDBACK, heard)))


def _rows(lengths: Sequence[int]) -> list[Row]:
    rng = Random(0)
    streams = [_stream(rng, length) for length in lengths]
    advantages = [Advantage(*of_row) for of_row in ADVANTAGES]
    return weighted_rows(streams, advantages, "token_mean", feedback_trained=True)


EVEN_ROWS = _rows([6] * 8)
"""10 tokens each."""
UNEVEN_ROWS = [
    replace(row, advantage=Advantage(0.0, 0.0)) if i in (3, 6) else row
    for i, row in enumerate(_rows(range(3, 11)))
]
"""Two of them teach nothing."""


def gradient_of(rows: Sequence[Row]) -> list[torch.Tensor]:
    """The gradient of the objective on all rows at once, by its definition."""
    model = double_model()
    with torch.no_grad():
        log_p, _ = token_log_probs(model, collate(rows, 0).ids, 1.0)
    pairs = zip(rows, log_p.tolist(), strict=True)
    batch = collate([replace(row, recomputed=tuple(p[: len(row.stream)])) for row, p in pairs], 0)
    log_p, _ = token_log_probs(model, batch.ids, 1.0)
    objective_loss(log_p, batch, OBJECTIVE).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
