"""What a recipe needs of its device's memory, known before anything is loaded, and refused if it cannot fit.

The formulas are `planning/memory.py`'s; here stands which of a recipe's settings they are asked about.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from math import ceil
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from aipo.config.settings import Settings
from aipo.engines.precision import compute_dtype, compute_in
from aipo.planning.memory import DeviceMemory, Footprint, device_memory
from aipo.planning.model import ModelShape
from aipo.training.batch import pass_tokens
from aipo.training.device import PRODUCTS, WEIGHTS, precision_on, the_device
from aipo.training.log_probs import logit_chunk
from aipo.training.lora import add_lora
from aipo.training.model import checkpoints_activations
from aipo.training.optimizers import OPTIMIZERS

GB = 1e9
CACHE_SHARE = 0.9
"""Of what is free, where rollout.cache_gb does not say how much the cache may take."""
_CGROUP = Path("/sys/fs/cgroup")
_LORA_RANK = 16
"""What is proposed where all weights do not fit."""


class MemoryNeedError(ValueError):
    """The recipe does not fit into the device's memory; the message says which setting would make it fit."""


def free_bytes(device: str) -> int:
    """Return what is free on a device: of a GPU's memory, else of the machine's or of the control group's.

    `device`: as in run.device, `auto` too.
    """
    device = the_device(device)
    if device.startswith("cuda") and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(device)[0])
    return min([int(psutil.virtual_memory().available), *_left_in_group()])


def _left_in_group() -> Iterator[int]:
    """Yield what a container may still take, where it has a limit (control groups, version 2 and 1)."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            yield int((_CGROUP / limit).read_text()) - int((_CGROUP / used).read_text())
        except (OSError, ValueError):  # no such file, or `max`
            continue


def recipe_memory(settings: Settings, ranks: int = 1, in_process: bool = True) -> DeviceMemory:
    """Return what a device holds at the worst moment of a run: every rollout as long as it may become.

    `in_process`: whether rollouts are sampled by the trainer's own process.
    Raises `ValueError` or `OSError` where policy.model has no readable config.json.
    """
    of = footprint(settings, _skeleton(settings), ranks)
    if not in_process:
        return device_memory(of)
    rows = slots_that_fit(settings, of, free_bytes(settings.run.device) - device_memory(of).weights)
    of_a_step = settings.train.prompts_per_step * _members(settings)
    rows = min(rows, of_a_step) if settings.evaluate.at_steps == () else rows
    return device_memory(replace(of, rows=rows, cache_tokens=rows * _longest(settings)))


def footprint(settings: Settings, model: PreTrainedModel, ranks: int = 1) -> Footprint:
    """Return what the formulas ask of a recipe and its policy, without what the sampler takes."""
    train = settings.train
    shape = _shape(model.config.get_text_config(decoder=True))
    split = ranks > 1 and settings.run.ranks == "fsdp"
    parameters = sum(p.numel() for p in model.parameters())
    limit = pass_tokens(train.microbatch_tokens, the_device(settings.run.device) == "cpu")
    groups = ceil(train.prompts_per_step / train.minibatches_per_step)
    responses = _members(settings) * settings.rollout.max_response_tokens
    distinct = groups * (settings.rollout.max_prompt_tokens + responses)
    tokens = max(_longest(settings), min(limit, distinct))
    chunk = logit_chunk(train.logit_chunk_tokens, tokens, shape.vocabulary)
    trained = [p for p in model.parameters() if p.requires_grad]
    return Footprint(
        shape=shape,
        parameters=parameters,
        trained=sum(p.numel() for p in trained),
        weight_bytes=model.dtype.itemsize,
        trained_bytes=trained[0].dtype.itemsize,
        moment_bytes=OPTIMIZERS[train.optimizer].state_bytes(trained[0].dtype.itemsize),
        compute_bytes=compute_dtype(model).itemsize,
        residual_bytes=model.dtype.itemsize,
        shards=ranks if split else 1,
        whole_sampler=split,
        buckets=ranks > 1 and not split,
        tokens=tokens,
        gradient_checkpointing=checkpoints_activations(train, model),
        logits=(chunk or tokens) * shape.vocabulary,
        reference=settings.algorithm.kl_weight > 0 and not settings.policy.lora_rank,
    )


def slots_that_fit(settings: Settings, of: Footprint, free: float) -> int:
    """Return how many rollouts may be in flight: rollout.slots, or fewer where the cache's bound says so.

    `free`: bytes of the device beside the policy's weights. Each rollout counts as long as it may become, so
    that none has to give its place back. Raises `MemoryNeedError` for a bound below one rollout.
    """
    slots, bound = settings.rollout.slots, settings.rollout.cache_gb
    need = device_memory(replace(of, rows=slots, cache_tokens=_longest(settings)))
    if bound is None:
        left = free - need.optimiser - need.gathered - need.drawn_logits
        return max(1, min(slots, int(CACHE_SHARE * left / need.cache)))
    if bound * GB < need.cache:
        raise MemoryNeedError(
            f"rollout.cache_gb = {bound:g} is below one rollout of {_longest(settings):,} tokens, which "
            f"takes {need.cache / GB:.3g} GB; raise it, or lower rollout.max_response_tokens = "
            f"{settings.rollout.max_response_tokens}"
        )
    return min(slots, int(bound * GB / need.cache))


def _longest(settings: Settings) -> int:
    return settings.rollout.max_prompt_tokens + settings.rollout.max_response_tokens


def _members(settings: Settings) -> int:
    return settings.rollout.rollouts_per_prompt + settings.rollout.experts_per_prompt


def memory_line(settings: Settings, ranks: int = 1, in_process: bool = True) -> str:
    """Return one line on what the recipe will need and what is free. Raises `MemoryNeedError`.

    Degenerate case: '' for a policy that cannot be looked at, whose loading says more.
    """
    try:
        need = recipe_memory(settings, ranks, in_process)
    except MemoryNeedError:
        raise
    except (OSError, ValueError, KeyError, AttributeError):
        return ""
    free = free_bytes(settings.run.device)
    parts = {
        "weights": need.weights,
        "gathered or cast weights": need.gathered,
        "gradient": need.gradients,
        "optimiser": need.optimiser,
        "activations": need.activations,
        "logits": need.logits,
    }
    shown = ", ".join(f"{name} {size / GB:.2f}" for name, size in parts.items() if size)
    line = (
        f"memory{' of each rank' if ranks > 1 else ''}, estimated: update {need.update / GB:.2f} GB "
        f"({shown}); sampling {need.sampling / GB:.2f} GB (cache {need.cache / GB:.2f}); "
        f"free {free / GB:.2f} GB"
    )
    if need.peak > free:
        raise MemoryNeedError(f"{line}. It does not fit: {_fix(settings, ranks, in_process, free)}")
    return line


def _fix(settings: Settings, ranks: int, in_process: bool, free: int) -> str:
    """Say which settings would make it fit, after having tried them."""
    savers = list(_savers(settings, ranks))
    tried = [*([saver] for saver in savers), *accumulate([saver] for saver in savers)]
    for changes in tried:
        need = recipe_memory(_changed(settings, changes), ranks, in_process).peak
        if need <= free:
            set_to = " and ".join(f"{name} = {value!r}".replace("True", "true") for name, value in changes)
            return f"set {set_to} ({need / GB:.2f} GB)"
    return "take a smaller policy, or a device with more memory"


def _savers(settings: Settings, ranks: int) -> Iterator[tuple[str, Any]]:
    rollout, train = settings.rollout, settings.train
    if train.microbatch_tokens > _longest(settings):
        yield "train.microbatch_tokens", _longest(settings)
    if train.gradient_checkpointing is not True:
        yield "train.gradient_checkpointing", True
    if ranks > 1 and settings.run.ranks == "ddp":
        yield "run.ranks", "fsdp"
    if rollout.cache_gb is not None:
        yield "rollout.cache_gb", rollout.cache_gb / 4
    if rollout.max_response_tokens > 1024:
        yield "rollout.max_response_tokens", 1024
    if not settings.policy.lora_rank:
        yield "policy.lora_rank", _LORA_RANK


def _changed(settings: Settings, changes: list[tuple[str, Any]]) -> Settings:
    for name, value in changes:
        section, _, field = name.partition(".")
        table = getattr(settings, section).model_copy(update={field: value})
        settings = settings.model_copy(update={section: table})
    return settings


def _skeleton(settings: Settings) -> PreTrainedModel:
    """Return the policy with shapes and types, but no weights."""
    policy = settings.policy
    precision = precision_on(policy, the_device(settings.run.device))
    config = AutoConfig.from_pretrained(policy.model)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=WEIGHTS[precision])
        if policy.lora_rank:
            add_lora(model, policy)
    compute_in(model, PRODUCTS[precision])
    return model


def _shape(text: PretrainedConfig) -> ModelShape:
    """Return the shape of a decoder. Simplification: of a mixture of experts, the layer of one expert."""
    given: Any = text
    heads = given.num_attention_heads
    hidden = given.hidden_size
    return ModelShape(
        name=str(given.model_type),
        layers=given.num_hidden_layers,
        hidden=hidden,
        heads=heads,
        kv_heads=getattr(given, "num_key_value_heads", None) or heads,
        head_dim=getattr(given, "head_dim", None) or hidden // heads,
        intermediate=getattr(given, "intermediate_size", None) or 4 * hidden,
        vocabulary=given.vocab_size,
        tied=bool(given.tie_word_embeddings),
    )
