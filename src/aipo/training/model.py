"""The policy's folders: loading it, writing it, taking its weights back from a checkpoint.

A folder that is exported is a plain Hugging Face one, whole, with the logits of the policy in memory.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from aipo.config.policy import PolicySettings, Precision
from aipo.config.settings import CHECKPOINTED_PARAMETERS, TrainSettings
from aipo.engines.precision import compute_dtype, compute_in
from aipo.engines.vocabulary import leave_out_filler
from aipo.training.device import WEIGHTS, precision_on
from aipo.training.lora import add_lora, has_lora, merged, read_adapters

ADAPTERS = "adapters"
"""Folder beside the exported policy: the adapters alone, for peft."""


class PolicyError(ValueError):
    """The policy cannot be used; the message names the field, the value and the fix."""


def load_policy(settings: PolicySettings, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer from a folder or the hub, with adapters if asked for.

    Raises `PolicyError`.
    """
    if not settings.model:
        raise PolicyError("policy.model is empty; name a folder or hub id, or first run `aipo warmstart`")
    folder = Path(settings.model)
    is_path = folder.exists() or settings.model.startswith((".", "/")) or len(folder.parts) > 2
    if is_path and not (folder / "config.json").is_file():
        raise PolicyError(
            f"policy.model = {settings.model!r} has no config.json; name a Hugging Face model folder, or "
            "first run `aipo warmstart RECIPE`, which writes it"
        )
    precision = precision_on(settings, device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.model)
        model = AutoModelForCausalLM.from_pretrained(
            settings.model, dtype=WEIGHTS[precision], attn_implementation=settings.attention
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        hint = ""
        if settings.attention == "sdpa" and "scaled_dot_product_attention" in str(error):
            hint = "; set policy.attention = 'eager'"
        raise PolicyError(f"policy.model = {settings.model!r} cannot be loaded: {error}{hint}") from error
    if not tokenizer.chat_template:
        raise PolicyError(
            f"policy.model = {settings.model!r}: its tokenizer has no chat template; use an instruct model, "
            "or set tokenizer.chat_template and save the tokenizer beside the model"
        )
    if tokenizer.eos_token_id is None:
        raise PolicyError(
            f"policy.model = {settings.model!r}: its tokenizer has no end-of-turn token (eos_token)"
        )
    if settings.lora_rank:
        add_lora(model, settings)
    leave_out_filler(model, tokenizer)
    model.to(torch.device(device))  # type: ignore[arg-type]
    if precision is Precision.BF16_MIXED:
        compute_in(model, torch.bfloat16)
    return model, tokenizer


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a plain Hugging Face folder that `AutoModelForCausalLM.from_pretrained` loads.

    It is written aside and renamed, so that a folder of that name is always whole. Adapters are merged into
    it, and stand by themselves in `adapters/` beside it.
    """
    aside = _aside(folder)
    save_plain(model, aside)
    tokenizer.save_pretrained(aside)
    _put(aside, folder)
    if has_lora(model):
        beside = folder.with_name(ADAPTERS)
        aside = _aside(beside)
        model.save_pretrained(aside)
        _put(aside, beside)


def save_plain(model: PreTrainedModel, folder: Path) -> None:
    """Write configuration and weights as `save_pretrained` does, adapters merged into them."""
    (merged(model) if has_lora(model) else model).save_pretrained(folder)


def restore_weights(model: PreTrainedModel, folder: Path) -> None:
    """Take the weights that `model.save_pretrained` wrote: all of them, or the adapters where it has some."""
    if has_lora(model):
        read_adapters(model, folder)
        return
    own: Any = type(model)
    read, told = own.from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
    if missing := sorted(told["missing_keys"]):  # transformers would draw them anew
        raise ValueError(f"{folder} lacks the weights {', '.join(missing[:3])}")
    model.load_state_dict(read.state_dict())


def checkpoints_activations(train: TrainSettings, model: PreTrainedModel) -> bool:
    """Say whether the update computes the activations of this policy again in its backward pass."""
    if train.gradient_checkpointing != "auto":
        return train.gradient_checkpointing
    large = sum(parameter.numel() for parameter in model.parameters()) >= CHECKPOINTED_PARAMETERS
    return large and bool(model.supports_gradient_checkpointing)


def parameter_line(model: PreTrainedModel) -> str:
    """Return one line on what is trained.

    Parameters are counted once, however many layers share them.
    """
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in parameters if p.requires_grad})
    computed = str(compute_dtype(model)).removeprefix("torch.")
    mixed = "" if compute_dtype(model) == model.dtype else f"; products are computed in {computed}"
    return (
        f"{type(model).__name__}: {trained:,} of {total:,} parameters are trained "
        f"({trained / total:.2%}), in {' and '.join(kinds)}{mixed}"
    )


def _aside(folder: Path) -> Path:
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def _put(aside: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return an id to pad with: never attended to, never trained, so any id will do."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
