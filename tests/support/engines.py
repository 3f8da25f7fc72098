"""Engines for tests: tiny random models for the real one, and a scripted one where a test chooses the words.

`Script` is an injected end: it stands where another sampler could stand, and stops as the interface says.
"""

import asyncio
from collections.abc import Mapping, Sequence

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from aipo.core.types import StopReason
from aipo.engines.base import Completion, GenerationRequest


def random_model(config: PretrainedConfig, attention: str = "sdpa") -> PreTrainedModel:
    """Build a float32 model with seeded weights, large ones, so that every attended position shows."""
    torch.manual_seed(0)
    config.initializer_range = 0.15
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def reciting_model(vocabulary: int, script: Sequence[int], length: int = 64) -> PreTrainedModel:
    """Build a GPT-2 whose position embeddings spell `script`: at position i it all but surely says script[i].

    Behind the script it goes on saying its last id; a script needs a few different ones.
    """
    shape = {"n_embd": length, "n_layer": 1, "n_head": 1, "n_positions": length, "tie_word_embeddings": False}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, eos_token_id=None, bos_token_id=None, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.wpe.weight.copy_(torch.eye(length))
        model.transformer.ln_f.weight.fill_(1.0)
        for position in range(length):
            model.lm_head.weight[script[min(position + 1, len(script) - 1)], position] = 10.0
    return model.eval()


class Script:
    """`aipo.engines.base.Engine` that says given ids, one list for each session, and remembers requests."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | Mapping[str, Sequence[int]]):
        self._tokenizer = tokenizer
        self._ids = ids
        self._said: dict[str, int] = {}
        self.requests: list[GenerationRequest] = []
        self.completions: list[Completion] = []
        self.released: list[str] = []

    async def generate(self, request: GenerationRequest) -> Completion:
        """Say the script up to its end token, a stop string or the limit; then end."""
        await asyncio.sleep(0)
        self.requests.append(request)
        script = self._ids[request.session] if isinstance(self._ids, Mapping) else self._ids
        end = self._tokenizer.eos_token_id
        ids: list[int] = []
        stop = None
        while stop is None:
            place = self._said.get(request.session, 0)
            ids.append(script[place] if place < len(script) else end)
            self._said[request.session] = place + 1
            text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if ids[-1] == end:
                stop = StopReason.END
            elif any(string in text for string in request.stop):
                stop = StopReason.STOP_STRING
            elif len(ids) == request.max_new_tokens:
                stop = StopReason.LENGTH
        log_probs = tuple(-0.001 * (len(request.prefix_ids) + i) for i in range(len(ids)))
        self.completions.append(Completion(ids=tuple(ids), log_probs=log_probs, stop=stop))
        return self.completions[-1]

    async def release(self, session: str) -> None:
        """Remember it."""
        self.released.append(session)
