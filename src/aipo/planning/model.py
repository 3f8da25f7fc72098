"""The shape of a policy and what follows from it: parameters, FLOPs, bytes of the key-value cache.

`parameters` counts exactly what transformers builds from the same configuration.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BYTES_BF16 = 2
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A dense decoder: attention with grouped queries, gated feed-forward layers, two norms a layer."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool = False
    """The head is the embedding."""
    qkv_bias: bool = False
    """Qwen2 has one, on query, key and value."""
    qk_norm: bool = False
    """Qwen3 has one, on query and key."""

    @property
    def parameters(self) -> int:
        """All of them."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * self.hidden * queries + 2 * self.hidden * keys
        bias = (queries + 2 * keys) * self.qkv_bias
        norms = 2 * self.hidden + 2 * self.head_dim * self.qk_norm
        layer = attention + bias + norms + 3 * self.hidden * self.intermediate
        return self.layers * layer + self.hidden + self.embedding * (1 if self.tied else 2)

    @property
    def embedding(self) -> int:
        """Parameters of the embedding alone."""
        return self.vocabulary * self.hidden

    @property
    def multiplied(self) -> int:
        """Parameters that each token is multiplied with: all but the table that its id is looked up in."""
        return self.parameters - (0 if self.tied else self.embedding)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in bfloat16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES_BF16

    @property
    def attention_flops(self) -> int:
        """FLOPs of attending from one token to one other: two products, over all heads and layers."""
        return 4 * self.layers * self.heads * self.head_dim

    def forward_flops(self, tokens: float, squares: float) -> float:
        """Return the FLOPs of a forward pass over sequences of `tokens` in sum, `squares` in sum of squares.

        2 a parameter and token; and attention to the half of each square that a causal mask leaves.
        """
        return 2.0 * self.multiplied * tokens + self.attention_flops * squares / 2


PRESETS = {
    # https://huggingface.co/Qwen/Qwen2.5-7B-Instruct/blob/main/config.json and its sisters'.
    name: ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        vocabulary=vocabulary,
        tied=tied,
        qkv_bias=True,
    )
    for name, layers, hidden, heads, kv_heads, head_dim, intermediate, vocabulary, tied in (
        ("qwen2.5-0.5b", 24, 896, 14, 2, 64, 4864, 151936, True),
        ("qwen2.5-1.5b", 28, 1536, 12, 2, 128, 8960, 151936, True),
        ("qwen2.5-3b", 36, 2048, 16, 2, 128, 11008, 151936, True),
        ("qwen2.5-7b", 28, 3584, 28, 4, 128, 18944, 152064, False),
        ("qwen2.5-14b", 48, 5120, 40, 8, 128, 13824, 152064, False),
        ("qwen2.5-32b", 64, 5120, 40, 8, 128, 27648, 152064, False),
    )
}


def find_model(name: str, asked_by: str = "--model") -> ModelShape:
    """Return a preset, also under its hub id (Qwen/Qwen2.5-7B-Instruct), or what a folder's config.json says.

    Raises `ValueError` for neither; `asked_by` says where the name stands.
    """
    known = name.lower().removeprefix("qwen/").removesuffix("-instruct")
    if known in PRESETS:
        return PRESETS[known]
    path = Path(name)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"{asked_by} {name!r} is neither a preset ({', '.join(PRESETS)}) nor a folder with a "
            "config.json; name one of them with --model"
        )
    return read_shape(file)


def read_shape(file: Path) -> ModelShape:
    """Return the shape that a Hugging Face config.json describes. Raises `ValueError`, naming the field."""
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--model: {str(file)!r} cannot be read as JSON ({error})") from None
    kind = given.get("model_type") if isinstance(given, dict) else None
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"--model: {str(file)!r} has model_type {kind!r}; planned for are {', '.join(ARCHITECTURES)}. "
            "Take the preset of similar size"
        )
    heads = _number(given, "num_attention_heads", file)
    hidden = _number(given, "hidden_size", file)
    return ModelShape(
        name=file.parent.name,
        layers=_number(given, "num_hidden_layers", file),
        hidden=hidden,
        heads=heads,
        kv_heads=_number(given, "num_key_value_heads", file, heads),
        head_dim=_number(given, "head_dim", file, hidden // heads),
        intermediate=_number(given, "intermediate_size", file),
        vocabulary=_number(given, "vocab_size", file),
        tied=bool(given.get("tie_word_embeddings", False)),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
    )


def _number(given: dict[str, Any], field: str, file: Path, otherwise: int | None = None) -> int:
    value = given.get(field)
    value = otherwise if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"--model: {field} = {value!r} in {str(file)!r}; a positive whole number is needed")
    return value
