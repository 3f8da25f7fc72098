"""The shapes of model that the GPU benchmark knows, with random weights, and what they cost.

A shape is that of the model whose name it has; only its weights are random.
"""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0}
"""Dense bf16, as the vendor's data sheets have it (nvidia.com/en-us/data-center/h200 and its siblings)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Qwen2.5."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int = 151_936
    tied: bool = True
    masters: bool = True
    """Whether float32 weights stand behind the products' bfloat16; 7B with AdamW leaves no room for them."""

    def model(self, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """Return it with random weights."""
        config = Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=32_768,
            tie_word_embeddings=self.tied,
        )
        torch.manual_seed(0)
        with device:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return model.eval()

    def flops_of_update(self, model: PreTrainedModel, tokens: int, length: int) -> float:
        """Return those of one forward and backward pass over so many tokens, in rows of a length.

        6 a parameter and token (the vocabulary's matrix once: looking tokens up takes none), and 12 x layers
        x hidden x length for attention, halved because it is causal: Chowdhery et al., PaLM, arXiv
        2204.02311, appendix B.
        What is computed twice on purpose (logits, checkpointed layers) is not counted.
        """
        parameters = sum(p.numel() for p in model.parameters())
        if not self.tied:
            parameters -= self.vocabulary * self.hidden
        return tokens * (6.0 * parameters + 6.0 * self.layers * self.hidden * length)


SHAPES = {
    "0.5B": Shape(896, 24, 14, 2, 4864),
    "1.5B": Shape(1536, 28, 12, 2, 8960),
    "7B": Shape(3584, 28, 28, 4, 18_944, vocabulary=152_064, tied=False, masters=False),
    "tiny": Shape(64, 2, 4, 2, 96, vocabulary=2048),
}


def peak_flops(name: str) -> float:
    """Return a device's peak in bf16, per second; nan for one that is not listed."""
    found = [tflops for known, tflops in PEAK_TFLOPS.items() if known in name]
    return found[0] * 1e12 if found else float("nan")
