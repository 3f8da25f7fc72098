"""Ids that a model has and its tokenizer does not: rows that only fill its matrix up to a round number.

They decode to nothing and a policy server takes none of them in a prompt, so they are never sampled. The
distribution is that over the other ids, in the sampler and in the update alike.

Simplification: only ids above the tokenizer's last one; a gap below it stays. A vLLM server that reports raw
log-probabilities counts the mass of these rows in them, which after pretraining is next to none.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class _Cut:
    """Cuts the logits of ids that nobody can write."""

    def __init__(self, known: int) -> None:
        self.known = known

    def __call__(self, layer: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
        return logits[..., : self.known]


def known_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return one more than the tokenizer's last id."""
    return 1 + max(tokenizer.get_vocab().values())


def filler_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> range:
    """Return the model's ids above the tokenizer's last one."""
    rows = int(model.config.get_text_config(decoder=True).vocab_size)
    return range(min(known_ids(tokenizer), rows), rows)


def leave_out_filler(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the model's logits end with the tokenizer's last id. Degenerate case: nothing is above it.

    Weights, settings and what is saved stay as they are.
    """
    filler, layer = filler_ids(model, tokenizer), model.get_output_embeddings()
    if filler and layer is not None:
        layer.register_forward_hook(_Cut(filler.start))
        layer.known_ids = filler.start


def rows_of(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of an output layer, without the rows that are left out."""
    known: int | None = getattr(layer, "known_ids", None)
    weight, bias = layer.weight, layer.bias
    if known is None:
        return weight, bias  # type: ignore[return-value]  # a linear layer's
    return weight[:known], None if bias is None else bias[:known]  # type: ignore[index]
