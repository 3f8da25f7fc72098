"""Agents that are a transformers chat model in this process.

A reply depends only on the messages, the sampling and the seed, up to rounding: draws come from a generator
of its own, so neither other requests, other threads nor torch's global state changes them. The model is never
the policy's own object, whose weights change while it answers.

What waits when the model is free is answered together, in one forward pass a token; what comes later waits
for the longest of these replies, for which a server would not.
"""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2 import TemplateError
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


@dataclass(eq=False, slots=True, kw_only=True)
class _Request:
    """A reply that somebody waits for."""

    messages: list[Message]
    how: ChatSampling
    seed: int
    given_up: threading.Event = field(default_factory=threading.Event)
    """Set when nobody waits any more: it then ends at the next token."""
    reply: "Future[tuple[str, int, int]]" = field(default_factory=Future)


class LocalModel:
    """A chat model and its thread; agents that name the same model share the object."""

    def __init__(self, name: str, device: str, at_once: int = 16) -> None:
        """Load it; `at_once` requests at most are answered together. Raises `LocalModelError`."""
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
        self._at_once = at_once
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="local-agent")
        self._waiting: list[_Request] = []
        self._lock = threading.Lock()

    async def write(self, messages: list[Message], how: ChatSampling, seed: int) -> tuple[str, int, int]:
        """Return the reply and the numbers of prompt and completion tokens. Raises `AgentError`.

        Cancelled, it stops at the next token: whoever is next does not wait for a reply that nobody reads.
        """
        request = _Request(messages=messages, how=how, seed=seed)
        try:
            with self._lock:
                self._waiting.append(request)
            await asyncio.sleep(0)  # who asks at the same moment is answered in the same pass
            self._thread.submit(self._serve)
            return await asyncio.wrap_future(request.reply)
        except TemplateError as error:
            raise AgentError(
                f"the local model's chat template refuses: {_first_line(error)}; if it has no system role, "
                "set agents.system_role = false",
                AgentFailure.REFUSED,
            ) from None
        except (RuntimeError, ValueError, IndexError) as error:
            raise AgentError(f"the local model failed: {_first_line(error)}", AgentFailure.OTHER) from None
        finally:
            request.given_up.set()

    def _serve(self) -> None:
        """Answer what waits and is drawn alike; one whose forward pass fails does not fail the others."""
        with self._lock:
            wanted = [request for request in self._waiting if not request.given_up.is_set()]
            batch = [request for request in wanted if request.how == wanted[0].how][: self._at_once]
            self._waiting = [request for request in wanted if request not in batch]
        if batch := [request for request in batch if request.reply.set_running_or_notify_cancel()]:
            self._answer(batch)

    def _answer(self, batch: Sequence[_Request]) -> None:
        try:
            replies = self._write(batch)
        except Exception as error:  # whatever it is, it is for whoever waits
            for request in batch if len(batch) > 1 else ():  # one may be too long, or all too many
                self._answer([request])
            if len(batch) == 1:
                batch[0].reply.set_exception(error)
            return
        for request, reply in zip(batch, replies, strict=True):
            request.reply.set_result(reply)

    @torch.no_grad()
    def _write(self, batch: Sequence[_Request]) -> list[tuple[str, int, int]]:
        """Return what each is answered; prompts are padded on the left."""
        prompts: list[Any] = [
            self._tokenizer.apply_chat_template(
                request.messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
            for request in batch
        ]
        width, how = max(map(len, prompts)), batch[0].how
        ends = self._model.generation_config.eos_token_id
        ends = self._tokenizer.eos_token_id if ends is None else ends
        pad = self._tokenizer.pad_token_id
        pad = pad if pad is not None else ends[0] if isinstance(ends, Sequence) else ends
        device = self._model.device
        output = self._model.generate(
            input_ids=torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=device),
            attention_mask=torch.tensor(
                [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device
            ),
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=how.max_tokens, eos_token_id=ends, pad_token_id=pad
            ),
            logits_processor=LogitsProcessorList(_draws(how, [request.seed for request in batch], device)),
            stopping_criteria=StoppingCriteriaList([_GivenUp([request.given_up for request in batch])]),
        )[:, width:]
        replies = []
        for ids, row in zip(prompts, output.tolist(), strict=True):
            last = next((i for i, token in enumerate(row) if token in _as_set(ends)), len(row) - 1)
            text = str(self._tokenizer.decode(row[: last + 1], skip_special_tokens=True))
            replies.append((text, len(ids), last + 1))
        return replies


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAgent:
    """`aipo.agents.base.Agent` that is a model in this process."""

    spec: AgentSpec
    model: LocalModel
    sampling: ChatSampling
    context: Context = Context.ALL
    prices: Prices = NO_PRICES
    system_role: bool = True
    """See `RemoteAgent`."""

    @property
    def name(self) -> str:
        """The spec's."""
        return self.spec.name

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Return what the model said, read. Raises `AgentError`; the caller owns the deadline."""
        messages = self.spec.prompt.messages(self.context.seen(query), self.system_role)
        text, prompt_tokens, completion_tokens = await self.model.write(messages, self.sampling, query.seed)
        usage = self.prices.usage(prompt_tokens, completion_tokens)
        try:
            reading = self.spec.read(text)
        except AgentError as error:
            raise AgentError(str(error), error.failure, usage) from None
        return AgentReply(text=reading.words, approves=reading.approves, usage=usage)


class _Gumbel(LogitsProcessor):
    """Adds Gumbel noise, to each row its own: the largest score is then a draw from the softmax."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() - noise.log()


class _GivenUp(StoppingCriteria):
    """Ends the rows that nobody waits for."""

    def __init__(self, given_up: Sequence[threading.Event]) -> None:
        self._given_up = given_up

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.tensor([event.is_set() for event in self._given_up], device=input_ids.device)


def _draws(how: ChatSampling, seeds: Sequence[int], device: torch.device) -> list[LogitsProcessor]:
    """Return what turns the largest score into a draw; at temperature 0 it is one already."""
    if not how.seeded:
        return []
    return [TemperatureLogitsWarper(how.temperature), TopPLogitsWarper(how.top_p), _Gumbel(seeds, device)]


def _as_set(ends: int | Sequence[int]) -> set[int]:
    return {ends} if isinstance(ends, int) else set(ends)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
