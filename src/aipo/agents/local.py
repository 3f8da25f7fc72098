"""Agents that are a transformers chat model in this process.

A reply depends only on the messages, the sampling and the seed: draws come from a generator of their own, so
neither other threads nor torch's global state changes them. The model is never the policy's own object,
whose weights change while it answers.

Requests are answered one after the other: enough to try agents out, no match for a server.
"""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from aipo.agents.base import AgentError, AgentFailure, AgentQuery, AgentReply
from aipo.agents.prompting import Context, Message
from aipo.agents.remote import NO_PRICES, ChatSampling, Prices
from aipo.agents.spec import AgentSpec


class LocalModelError(ValueError):
    """The model cannot be used; the message names the setting and the fix."""


class LocalModel:
    """A chat model and its thread; agents that name the same model share the object."""

    def __init__(self, name: str, device: str) -> None:
        """Load it. Raises `LocalModelError`."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
            model: Any = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
            model.to(device)
        except (OSError, ValueError, RuntimeError) as error:
            raise LocalModelError(
                f"agents.model = {name!r} cannot be loaded on {device!r} ({_first_line(error)}); name a "
                "folder or hub id of a causal LM with a tokenizer"
            ) from None
        if not tokenizer.chat_template:
            raise LocalModelError(
                f"agents.model = {name!r} has a tokenizer without a chat template; name an instruct model"
            )
        self._model: Any = model.eval()  # transformers' types do not know that it generates
        self._tokenizer: PreTrainedTokenizerBase = tokenizer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="local-agent")

    async def write(self, messages: list[Message], how: ChatSampling, seed: int) -> tuple[str, int, int]:
        """Return the reply and the numbers of prompt and completion tokens. Raises `AgentError`.

        Cancelled, it stops at the next token: whoever is next does not wait for a reply that nobody reads.
        """
        given_up = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._write, messages, how, seed, given_up)
        except (RuntimeError, ValueError, IndexError) as error:
            raise AgentError(f"the local model failed: {_first_line(error)}", AgentFailure.OTHER) from None
        finally:
            given_up.set()

    @torch.no_grad()
    def _write(
        self, messages: list[Message], how: ChatSampling, seed: int, given_up: threading.Event
    ) -> tuple[str, int, int]:
        prompt: Any = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        prompt = prompt.to(self._model.device)
        length = prompt["input_ids"].shape[1]
        ends = self._model.generation_config.eos_token_id
        pad = self._tokenizer.pad_token_id
        first_end = ends[0] if isinstance(ends, Sequence) else ends
        output = self._model.generate(
            **prompt,
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=how.max_tokens,
                eos_token_id=ends if ends is not None else self._tokenizer.eos_token_id,
                pad_token_id=pad if pad is not None else first_end,
            ),
            logits_processor=LogitsProcessorList(_draws(how, seed, self._model.device)),
            stopping_criteria=StoppingCriteriaList([_GivenUp(given_up)]),
        )[0, length:]
        return str(self._tokenizer.decode(output, skip_special_tokens=True)), length, len(output)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAgent:
    """`aipo.agents.base.Agent` that is a model in this process."""

    spec: AgentSpec
    model: LocalModel
    sampling: ChatSampling
    context: Context = Context.ALL
    prices: Prices = NO_PRICES

    @property
    def name(self) -> str:
        """The spec's."""
        return self.spec.name

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Return what the model said, read. Raises `AgentError`; the caller owns the deadline."""
        messages = self.spec.prompt.messages(self.context.seen(query))
        text, prompt_tokens, completion_tokens = await self.model.write(messages, self.sampling, query.seed)
        usage = self.prices.usage(prompt_tokens, completion_tokens)
        try:
            reading = self.spec.read(text)
        except AgentError as error:
            raise AgentError(str(error), error.failure, usage) from None
        return AgentReply(text=reading.words, approves=reading.approves, usage=usage)


class _Gumbel(LogitsProcessor):
    """Adds Gumbel noise: the largest score is then a draw from the softmax."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(scores, dtype=torch.float32).exponential_(generator=self._generator)
        return scores.float() - noise.log()


class _GivenUp(StoppingCriteria):
    def __init__(self, given_up: threading.Event) -> None:
        self._given_up = given_up

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._given_up.is_set(), device=input_ids.device)


def _draws(how: ChatSampling, seed: int, device: torch.device) -> list[LogitsProcessor]:
    """Return what turns the largest score into a draw; at temperature 0 it is one already."""
    if not how.seeded:
        return []
    return [TemperatureLogitsWarper(how.temperature), TopPLogitsWarper(how.top_p), _Gumbel(seed, device)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
