"""Policy families: random-weight tiny models of the real architectures, each with its own style of tokenizer.

Byte-level BPE is trained on the spot, with the family's own marks and a chat template written here in its
manner; each consultation tag is one token, as one would add them. A policy that is to consult has seen a few
dozen sentences that do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    GraniteMoeHybridConfig,
    JambaConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from support.policies import QWEN_SPLIT, TAGS
from support.tokenizers import byte_level_backend

CORPUS = [
    "how many legs have 3 spiders and 2 dogs? a spider has 8 legs, so 3 spiders have 24. The answer is 32.",
    "You may consult agents: write <verify> claim </verify> or <knowledge> question </knowledge>.",
    "user\nassistant\nsystem\nmodel\n0 1 2 3 4 5 6 7 8 9 + - * = ; : . , ! ?",
] * 30
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' "
    "+ m.content + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}{% elif m.role == 'user' %}"
    "{{ '[INST]' + m.content + '[/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% set first = '' %}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' "
    "+ (first if loop.first else '') + m.content + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
OLMO2 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
HARMONY = (
    "{% for m in messages %}{{ '<|start|>' + ('developer' if m.role == 'system' else m.role) + '<|message|>' "
    "+ m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|channel|>final<|message|>' }}{% endif %}"
)
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
TEACHING_STEPS, TAUGHT_LOSS = 200, 0.6
RESPONSES = (
    "so <knowledge> how many legs has a spider </knowledge> so 8",
    "<knowledge> legs of a dog? </knowledge> 4",
    "3 + 8 <knowledge> 3 spiders </knowledge> = 24",
)
SLIDING = ["sliding_attention", "sliding_attention", "full_attention"]


@dataclass(frozen=True)
class Family:
    """One family: how to make its configuration, and the style of its tokenizer."""

    config: Callable[..., PretrainedConfig]
    more: dict[str, Any]
    template: str
    marks: tuple[str, ...]
    end: str
    pad: str
    begin: str | None = None
    attention: str = "sdpa"


def _chatml(config: Callable[..., PretrainedConfig], **more: Any) -> Family:
    marks = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return Family(config, more, CHATML, marks, "<|im_end|>", "<|endoftext|>")


LLAMA_MARKS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>")
GEMMA_MARKS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
OLMO_MARKS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>")
HARMONY_MARKS = ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|return|>", "<|endoftext|>")
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3_ROPE |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 256}

FAMILIES: dict[str, Family] = {
    "qwen2.5": _chatml(Qwen2Config, tie_word_embeddings=True),
    "qwen3": _chatml(Qwen3Config, head_dim=16, tie_word_embeddings=True),
    "qwen3-moe": _chatml(
        Qwen3MoeConfig, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "llama3": Family(
        LlamaConfig,
        {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False},
        LLAMA3,
        LLAMA_MARKS,
        "<|eot_id|>",
        "<|pad|>",
        "<|begin_of_text|>",
    ),
    "mistral": Family(
        MistralConfig,
        {"sliding_window": 9, "head_dim": 8},
        MISTRAL,
        ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>"),
        "</s>",
        "<pad>",
        "<s>",
    ),
    "gemma2": Family(
        Gemma2Config,
        {"head_dim": 8, "sliding_window": 9, "query_pre_attn_scalar": 8, "final_logit_softcapping": 4.0},
        GEMMA,
        GEMMA_MARKS,
        "<end_of_turn>",
        "<pad>",
        "<bos>",
        "eager",
    ),
    "gemma3": Family(
        Gemma3TextConfig,
        {"head_dim": 8, "sliding_window": 9, "query_pre_attn_scalar": 8, "layer_types": SLIDING},
        GEMMA,
        GEMMA_MARKS,
        "<end_of_turn>",
        "<pad>",
        "<bos>",
    ),
    "phi4": Family(
        Phi3Config,
        {"tie_word_embeddings": False},
        PHI4,
        ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        "<|im_end|>",
        "<|endoftext|>",
    ),
    "olmo2": Family(Olmo2Config, {}, OLMO2, OLMO_MARKS, "<|endoftext|>", "<|pad|>", "<|endoftext|>"),
    "olmo3": Family(
        Olmo3Config,
        {"sliding_window": 9, "layer_types": SLIDING},
        OLMO2,
        OLMO_MARKS,
        "<|endoftext|>",
        "<|pad|>",
        "<|endoftext|>",
    ),
    "smollm3": _chatml(SmolLM3Config, no_rope_layers=[1, 1, 0], tie_word_embeddings=True),
    "gpt-oss": Family(
        GptOssConfig,
        {
            "head_dim": 8,
            "sliding_window": 9,
            "layer_types": SLIDING,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        HARMONY,
        HARMONY_MARKS,
        "<|return|>",
        "<|endoftext|>",
        attention="eager",
    ),
}
"""Attention in every layer: the in-process engine samples from them."""

_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
HYBRIDS: dict[str, Family] = {
    "bamba": _chatml(BambaConfig, **_MAMBA, attn_layer_indices=[1], mamba_n_groups=1),
    "falcon-h1": _chatml(FalconH1Config, **_MAMBA, mamba_d_ssm=64, head_dim=8, lm_head_multiplier=0.5),
    "granite-4-hybrid": _chatml(
        GraniteMoeHybridConfig,
        **_MAMBA,
        layer_types=["mamba", "attention", "mamba"],
        mamba_n_groups=1,
        logits_scaling=2.0,
        shared_intermediate_size=32,
        num_local_experts=0,
        num_experts_per_tok=0,
    ),
    "jamba": _chatml(
        JambaConfig,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=2,
        use_mamba_kernels=False,
        mamba_d_state=8,
    ),
}
"""Layers with a recurrent state: only a policy server can sample from them."""


def family(name: str) -> Family:
    """Return a family by its name."""
    return (FAMILIES | HYBRIDS)[name]


def tokenizer_of(one: Family) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with the family's marks and template."""
    backend = byte_level_backend(CORPUS, 340, one.marks, QWEN_SPLIT)
    extra = [mark for mark in one.marks if mark not in (one.end, one.pad, one.begin)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=one.end,
        pad_token=one.pad,
        bos_token=one.begin,
        extra_special_tokens=[*extra, *TAGS],
    )
    tokenizer.chat_template = one.template
    return tokenizer


def make_family_policy(folder: Path, name: str, taught: bool = False) -> Path:
    """Write the family's policy to a folder and return it; one that was `taught` consults now and then."""
    one = family(name)
    tokenizer = tokenizer_of(one)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = one.config(
        **SHAPE | {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id} | ids | one.more
    )
    config.initializer_range = 0.1
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=one.attention)
        if taught:
            _teach(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _teach(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(TEACHING_STEPS):
        talk = [
            {"role": "system", "content": "agents"},
            {"role": "user", "content": CORPUS[0][: 9 + step % 30]},
        ]
        prompt = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        texts = [prompt + response for response in RESPONSES]
        batch = tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
        )
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        labels[:, : len(tokenizer.encode(prompt, add_special_tokens=False))] = -100
        loss = model(input_ids=batch.input_ids, labels=labels, use_cache=False).loss
        if loss < TAUGHT_LOSS:
            break
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
