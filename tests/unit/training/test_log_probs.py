"""Log-probabilities in chunks are those of the model's own logits, and never is a whole micro-batch's held.

Models are real and tiny with random weights; where it matters the vocabulary is Qwen's, 151,936. Memory is
counted, not timed: the bytes of all tensors that are alive at once, as torch's dispatcher sees them come and
go.
"""

import copy
import importlib
import json
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    CohereConfig,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from aipo.training import log_probs
from aipo.training.head import Head
from aipo.training.log_probs import PolicyForward, token_log_probs
from support.engines import random_model

VOCABULARY = 1009
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "tied": lambda: Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True),
    "untied": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "soft-capped": lambda: Gemma3TextConfig(
        **SHAPE, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=2.0
    ),
    "divided": lambda: GraniteConfig(**SHAPE, logits_scaling=0.4),
    "multiplied": lambda: CohereConfig(**SHAPE, logit_scale=1.7),
}
KINDS = pytest.mark.parametrize("kind", CONFIGS)
CHUNK = 7
"""Divides neither 3 x 40 positions nor any row's 40."""
QWEN_VOCABULARY = 151_936

Outcome = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


def outcome(
    model: PreTrainedModel, chunk: int | None, temperature: float = 0.7, checkpointing: bool = False
) -> Outcome:
    """Log p, entropy, and the gradients of a sum of log p with weights of both signs."""
    ids = torch.randint(0, VOCABULARY, (3, 41), generator=torch.Generator().manual_seed(1))
    weights = torch.randn(3, 41, generator=torch.Generator().manual_seed(2))
    model.zero_grad(set_to_none=True)
    log_p, entropy = PolicyForward(model, chunk, checkpointing)(ids, temperature)
    (log_p * weights).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return log_p.detach(), entropy.detach(), gradients


def assert_same(found: Outcome, expected: Outcome, values: float = 1e-6, gradients: float = 1e-5) -> None:
    """Values to `values`, absolute and relative; each gradient to `gradients` of its own length."""
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), atol=values, rtol=values)
    assert found[2].keys() == expected[2].keys()
    for name, theirs in expected[2].items():
        apart = (found[2][name].double() - theirs.double()).norm()
        assert apart <= gradients * theirs.double().norm(), name


@KINDS
@pytest.mark.parametrize("chunk", [1, CHUNK, 119])
def test_chunks_of_any_size_give_the_values_and_gradients_of_the_whole(kind: str, chunk: int) -> None:
    model = random_model(CONFIGS[kind]())
    assert_same(outcome(model, chunk), outcome(model, 0))


@KINDS
def test_in_double_precision_both_ways_are_one(kind: str) -> None:
    model = random_model(CONFIGS[kind]()).double()
    found = outcome(model, CHUNK)
    assert found[0].dtype == torch.float64
    assert_same(found, outcome(model, 0), 1e-12, 1e-12)


@KINDS
def test_both_ways_say_what_the_definition_says(kind: str) -> None:
    """By hand from the model's own logits, in double precision."""
    model = random_model(CONFIGS[kind]()).double()
    ids = torch.randint(0, VOCABULARY, (3, 41), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        p = torch.softmax(model(ids).logits[:, :-1] / 0.7, dim=-1)
    for chunk in (0, CHUNK):
        log_p, entropy, _ = outcome(model, chunk)
        torch.testing.assert_close(log_p[:, 1:], p.gather(-1, ids[:, 1:, None]).squeeze(-1).log())
        torch.testing.assert_close(entropy[:, 1:], -(p * p.log()).sum(-1))
        assert not log_p[:, 0].any() and not entropy[:, 0].any()


def test_temperature_and_scalings_are_seen_by_these_tests() -> None:
    """What the tests above compare would not be equal if one of them were forgotten on one side."""
    hot = outcome(random_model(CONFIGS["tied"]()), CHUNK, 1.0)[0]
    assert (hot - outcome(random_model(CONFIGS["tied"]()), CHUNK, 0.7)[0]).abs().max() > 0.1
    for kind in ("soft-capped", "divided", "multiplied"):
        model = random_model(CONFIGS[kind]())
        assert Head.of(model) != Head()
        with_scaling = outcome(model, CHUNK)[0]
        forward = PolicyForward(model, CHUNK)
        forward._head, forward._checked = Head(), True
        ids = torch.randint(0, VOCABULARY, (3, 41), generator=torch.Generator().manual_seed(1))
        assert (with_scaling - forward(ids, 0.7)[0]).abs().max() > 0.01


def test_a_head_with_a_bias_gets_its_gradient() -> None:
    model = random_model(CONFIGS["untied"]())
    bias = torch.nn.Linear(32, VOCABULARY)
    bias.weight = model.lm_head.weight
    model.set_output_embeddings(bias)
    found = outcome(model, CHUNK)
    assert "lm_head.bias" in found[2]
    assert_same(found, outcome(model, 0))


def test_a_frozen_head_gets_none() -> None:
    model = random_model(CONFIGS["untied"]())
    model.lm_head.weight.requires_grad_(False)
    found = outcome(model, CHUNK)
    assert "lm_head.weight" not in found[2]
    assert_same(found, outcome(model, 0))


@KINDS
def test_in_bfloat16_the_logits_are_rounded_as_the_model_rounds_them(kind: str) -> None:
    model = random_model(CONFIGS[kind]()).to(torch.bfloat16)
    found, expected = outcome(model, CHUNK), outcome(model, 0)
    assert found[0].dtype == found[1].dtype == torch.float32
    assert {gradient.dtype for gradient in found[2].values()} == {torch.bfloat16}
    assert (found[0] - expected[0]).abs().mean() < 0.01
    assert_same(found, expected, values=0.1, gradients=0.05)


def test_under_autocast_the_product_is_computed_as_the_models_own() -> None:
    model = random_model(CONFIGS["untied"]())
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = outcome(model, CHUNK), outcome(model, 0)
    assert {gradient.dtype for gradient in found[2].values()} == {torch.float32}
    assert_same(found, expected, values=0.1, gradients=0.05)


# which way is taken


@pytest.mark.parametrize("chunk", [0, CHUNK])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_stands_before_the_first_wanted_token_is_zero_and_changes_nothing_behind_it(
    chunk: int, temperature: float
) -> None:
    model, first = random_model(CONFIGS["tied"]()), 17
    ids = torch.randint(0, VOCABULARY, (3, 41), generator=torch.Generator().manual_seed(1))
    logits = model(input_ids=ids).logits[:, :-1] / temperature
    expected = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None]).squeeze(-1)[:, first - 1 :]
    expected.sum().backward()
    slopes = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    forward = PolicyForward(model, chunk)
    assert forward.check() == ""
    log_p, entropy = forward(ids, temperature, first)
    log_p.sum().backward()
    whole, entropy_of_all = forward(ids, temperature)
    for found, of_all in ((log_p, whole), (entropy, entropy_of_all)):
        assert found.shape == ids.shape and not found[:, :first].any()
        assert torch.allclose(found[:, first:], of_all[:, first:], atol=1e-5)
    assert torch.allclose(log_p[:, first:], expected, atol=1e-5)
    for name, p in model.named_parameters():
        assert p.grad is not None and torch.allclose(p.grad, slopes[name], atol=1e-5, rtol=1e-4)


def test_few_logits_are_held_whole_to_the_bit_and_many_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(CONFIGS["tied"]())
    assert torch.equal(outcome(model, None)[0], outcome(model, 0)[0])
    assert PolicyForward(model).chunk_of(10**6) == log_probs.LOGITS_AT_ONCE // VOCABULARY
    monkeypatch.setattr(log_probs, "LOGITS_AT_ONCE", VOCABULARY * 11)
    assert PolicyForward(model).chunk_of(11) == 0 and PolicyForward(model).chunk_of(12) == 11
    assert PolicyForward(model, 0).chunk_of(10**6) == 0 and PolicyForward(model, 5).chunk_of(6) == 5


def test_a_model_that_does_something_of_its_own_to_its_logits_is_held_whole_and_says_so() -> None:
    model = random_model(CONFIGS["tied"]())
    plain = model.forward

    def forward(**inputs: Any) -> Any:
        output = plain(**inputs)
        output.logits = output.logits * 1.1
        return output

    model.forward = forward  # type: ignore[method-assign]
    notice = PolicyForward(model, CHUNK).check()
    assert "Qwen3ForCausalLM" in notice and "held whole" in notice and "train.microbatch_tokens" in notice
    assert_same(outcome(model, CHUNK), outcome(model, 0), 0.0, 0.0)


def test_a_head_that_is_no_plain_linear_layer_is_held_whole_and_says_so() -> None:
    model = random_model(CONFIGS["untied"]())
    parametrizations.weight_norm(model.lm_head)
    assert "no plain linear layer" in PolicyForward(model, CHUNK).check()
    assert_same(outcome(model, CHUNK), outcome(model, 0), 0.0, 0.0)


@KINDS
def test_models_that_are_known_pass_the_check(kind: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert PolicyForward(random_model(CONFIGS[kind]()).to(dtype), CHUNK).check() == ""


# gradient checkpointing


@pytest.mark.parametrize("chunk", [0, CHUNK])
def test_gradient_checkpointing_changes_no_bit_and_no_mode(chunk: int) -> None:
    model = random_model(CONFIGS["tied"]())
    expected = outcome(model, chunk)
    modes = {name: module.training for name, module in model.named_modules()}
    assert_same(outcome(model, chunk, checkpointing=True), expected, 0.0, 0.0)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_gradient_checkpointing_keeps_less_and_switches_no_dropout_on() -> None:
    config = LlamaConfig(**SHAPE | {"num_hidden_layers": 6}, attention_dropout=0.5)
    model = random_model(config)
    expected = outcome(model, 0)
    assert_same(outcome(model, 0, checkpointing=True), expected, 0.0, 0.0)
    assert kept_for_backward(model, True) < 0.5 * kept_for_backward(model, False)


def kept_for_backward(model: PreTrainedModel, checkpointing: bool) -> int:
    """Bytes that a forward pass keeps for the backward pass, logits aside."""
    sizes = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    ids = torch.randint(0, VOCABULARY, (3, 41))
    if not checkpointing:
        model = copy.deepcopy(model)
        model._set_gradient_checkpointing(enable=False)
    forward = PolicyForward(model, CHUNK, checkpointing)
    forward.check()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(ids, 1.0)
    return sum(sizes)


# memory


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operators made and that are still alive; remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.most, self.largest = max(self.most, self.now), max(self.largest, size)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def naive(model: PreTrainedModel, ids: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What everybody writes first."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1] / temperature
    log_p = torch.log_softmax(logits, dim=-1)
    with torch.no_grad():
        entropy = -(log_p.exp() * log_p).sum(-1)
    return log_p.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1), entropy


@pytest.mark.slow
def test_with_a_real_vocabulary_the_peak_is_less_than_an_eighth_and_no_tensor_is_large() -> None:
    """Scaled down: 16 of 240 positions at a time, for 220 of 16,384. Beyond the gradients, that is."""
    positions, chunk = 240, 16
    config = Qwen3Config(**SHAPE | {"vocab_size": QWEN_VOCABULARY}, head_dim=8, tie_word_embeddings=True)
    model = random_model(config)
    ids = torch.randint(0, QWEN_VOCABULARY, (4, positions // 4 + 1))
    most = {}
    forward = PolicyForward(model, chunk)
    assert forward.check() == ""
    for part, way in ((chunk, forward), (0, partial(naive, model))):
        with LiveBytes() as counted:
            way(ids, 0.9)[0].sum().backward()
        model.zero_grad(set_to_none=True)
        most[part], largest = counted.most, counted.largest
        assert (largest >= 4 * positions * QWEN_VOCABULARY) == (part == 0)
    gradients, logits = 4 * sum(p.numel() for p in model.parameters()), 4 * positions * QWEN_VOCABULARY
    assert most[0] > 4 * logits  # the counter sees what is there
    assert most[chunk] - gradients < (most[0] - gradients) / 8


def test_a_transformers_model_is_taken_as_it_is() -> None:
    model = random_model(CONFIGS["tied"]())
    ids = torch.randint(0, VOCABULARY, (2, 9))
    for a, b in zip(token_log_probs(model, ids, 0.8), PolicyForward(model)(ids, 0.8), strict=True):
        assert torch.equal(a, b)


def test_the_benchmark_of_this_runs_and_records_each_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "benchmarks"))
    importlib.import_module("log_prob_memory").main(["--quick", "--output", str(tmp_path)])
    record = json.loads((tmp_path / "log_prob_memory.json").read_text())
    memory, time, *apart = record["figures"]
    assert 0 < memory["ours"] < memory["theirs"] and time["ours"] > 0
    assert len(apart) == 3 and all(figure["passed"] for figure in apart)
