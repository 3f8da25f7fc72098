"""Metrics say how far the sampler is from the trainer before the first optimiser step."""

import pytest
import torch
from accelerate import Accelerator
from transformers import LlamaConfig

from aipo.core.advantages import Advantage
from aipo.core.batch import Row
from aipo.core.objective import ObjectiveSettings
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Source
from aipo.training.log_probs import token_log_probs
from aipo.training.update import Updater, UpdateSettings
from support.engines import random_model

SHAPE = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
IDS = tuple(range(5, 15))
OFFSETS = (0.0, -0.2, 0.9, -0.8, 0.1)


def metrics_of(offsets: tuple[float, ...]) -> dict[str, float]:
    """Update twice on five sampled tokens whose log-probabilities are off by `offsets`."""
    model = random_model(LlamaConfig(**SHAPE, **HEADS))
    with torch.no_grad():
        true = token_log_probs(model, torch.tensor([IDS]), 1.0)[0][0].tolist()[3:8]
    sampled = tuple(p - offset for p, offset in zip(true, offsets, strict=True))
    segments = (
        Segment(Source.PROMPT, IDS[:3]),
        Segment(Source.POLICY, IDS[3:8], sampled),
        Segment(Source.FEEDBACK, IDS[8:]),
    )
    row = Row(stream=TokenStream(segments), advantage=Advantage(1.0, 1.0), weight=0.1)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    updater = Updater(
        Accelerator(cpu=True),
        model,
        optimiser,
        UpdateSettings(temperature=1.0, microbatch_tokens=64, max_grad_norm=100.0, pad_id=0),
    )
    return updater.apply([[row], [row]], ObjectiveSettings())


def test_mean_largest_and_share_outside_a_factor_of_two_before_the_first_step() -> None:
    metrics = metrics_of(OFFSETS)
    assert metrics["mismatch_mean"] == pytest.approx(sum(map(abs, OFFSETS)) / 5, abs=1e-5)
    assert metrics["mismatch_max"] == pytest.approx(0.9, abs=1e-5)
    assert metrics["mismatch_outside_share"] == pytest.approx(2 / 5)


def test_a_sampler_that_agrees_has_none() -> None:
    metrics = metrics_of((0.0,) * 5)
    assert metrics["mismatch_max"] < 1e-6 and metrics["mismatch_outside_share"] == 0
