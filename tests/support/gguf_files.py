"""Small GGUF files with random weights, written as llama.cpp's converters write them; entries of models."""

from pathlib import Path

import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

from aipo.assembly.models import PackagedModel

TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m.role + ' ' + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant ' }}{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<eot>"]
WIDTH, HEADS, INNER = 32, 2, 64

DAMAGED = PackagedModel(
    name="damaged",
    package="gguf==0.19.0",
    file="gguf/__init__.py",
    sha256="0" * 64,
    licence="MIT",
    megabytes=1,
)
"""A file that is there, in an installed package, with another checksum."""


def write_gguf(
    path: Path,
    architecture: str = "llama",
    template: str | None = TEMPLATE,
    head: str = "none",
    add_bos: bool = False,
) -> Path:
    """Write a model of one layer. `head`: `none` (tied), `copy` of the embedding with noise, or `own`."""
    from gguf import GGUFWriter

    draw = np.random.default_rng(0)
    tokens = [*SPECIAL, *bytes_to_unicode().values(), "ab"]
    writer = GGUFWriter(path, architecture)
    writer.add_name("small")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(add_bos)
    if template is not None:
        writer.add_chat_template(template)

    def tensor(name: str, *shape: int) -> np.ndarray:
        made = draw.normal(0, 0.2, shape).astype(np.float32)
        writer.add_tensor(name, made)
        return made

    embedding = tensor("token_embd.weight", len(tokens), WIDTH)
    if head == "copy":
        noise = draw.normal(0, 0.005, embedding.shape).astype(np.float32)
        writer.add_tensor("output.weight", embedding + noise)
    elif head == "own":
        tensor("output.weight", len(tokens), WIDTH)
    tensor("output_norm.weight", WIDTH)
    for name in ("attn_norm", "ffn_norm"):
        tensor(f"blk.0.{name}.weight", WIDTH)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        tensor(f"blk.0.{name}.weight", WIDTH, WIDTH)
    tensor("blk.0.ffn_gate.weight", INNER, WIDTH)
    tensor("blk.0.ffn_up.weight", INNER, WIDTH)
    tensor("blk.0.ffn_down.weight", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
