"""The policy as the trainer sees it: loading it, and the log-probability of each token of a batch.

Owns the training forward pass. Must not know rollouts or the objective.
Invariant: at the first update after sampling these log-probabilities equal the sampler's (ratio 1 to 1e-5 in
float32).
"""

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from aipo.config.settings import PolicySettings


class PolicyError(ValueError):
    """The policy cannot be used; the message names the field, the value and the fix."""


def load_policy(settings: PolicySettings, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer from a folder or the hub. Raises `PolicyError`."""
    if not settings.model:
        raise PolicyError(
            "policy.model is empty; name a folder or hub id, for the CPU task first run `aipo warmstart`"
        )
    folder = Path(settings.model)
    is_path = folder.exists() or settings.model.startswith((".", "/")) or len(folder.parts) > 2
    if is_path and not (folder / "config.json").is_file():
        raise PolicyError(
            f"policy.model = {settings.model!r} has no config.json; name a Hugging Face model folder, for "
            "the CPU task first run `aipo warmstart`"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.model)
        model = AutoModelForCausalLM.from_pretrained(
            settings.model, dtype=getattr(torch, settings.dtype), attn_implementation=settings.attention
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise PolicyError(f"policy.model = {settings.model!r} cannot be loaded: {error}") from error
    if not tokenizer.chat_template:
        raise PolicyError(
            f"policy.model = {settings.model!r}: its tokenizer has no chat template; use an instruct model, "
            "or set tokenizer.chat_template and save the tokenizer beside the model"
        )
    if tokenizer.eos_token_id is None:
        raise PolicyError(
            f"policy.model = {settings.model!r}: its tokenizer has no end-of-turn token (eos_token)"
        )
    model.to(torch.device(device))  # type: ignore[arg-type]
    return model, tokenizer


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a plain Hugging Face folder that `AutoModelForCausalLM.from_pretrained` loads.

    It is written aside and renamed, so that a folder of that name is always whole.
    """
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return an id to pad with: never attended to, never trained, so any id will do."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def token_log_probs(model: torch.nn.Module, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log p of each token given what stands before it, and the entropy there; (B, T) float32 each.

    `ids` is (B, T), right-padded: behind a causal mask padding needs no attention mask. Position 0 is 0.
    Simplification: the logits of a micro-batch are held whole, (B, T, vocabulary).
    """
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float() / temperature
    log_p = torch.log_softmax(logits, dim=-1)
    chosen = log_p.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        entropy = -(log_p.exp() * log_p).sum(-1)
    return torch.nn.functional.pad(chosen, (1, 0)), torch.nn.functional.pad(entropy, (1, 0))
