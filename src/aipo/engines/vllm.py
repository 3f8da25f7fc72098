"""Sampling from a vLLM server over HTTP: token ids in, ids and log-probabilities out.

A completion is either what `Completion` promises, stamped with the weights that the server says it has, or an
`EngineError`; nothing is filled in. vllm itself is not imported.

A request sends the rollout's whole prefix again, also after a consultation: the server's prefix cache spares
the forward pass of whole cached blocks (128 tokens on CPU, 16 on GPU), never the ids on the wire.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aipo.core.seeds import seed_of
from aipo.core.types import StopReason
from aipo.engines.base import Completion, EngineError, GenerationRequest, Sampling, taken_away
from aipo.engines.link import HttpLink
from aipo.engines.stops import StopFinder, end_ids
from aipo.engines.vllm_facts import ADAPTERS_MARK, LOAD_ADAPTER, WEIGHTS_MARK, ServerFacts, read_facts
from aipo.engines.vocabulary import filler_ids
from aipo.engines.weight_files import weight_files

BAN_BIAS = -100.0
"""The lowest bias that vLLM keeps: e^-100 of its probability is left to a banned token."""
LOWEST_TEMPERATURE = 0.01
"""vLLM raises a lower one, but for 0, to this without saying so."""
ADAPTERS_FILE = "adapter_config.json"
"""What peft writes beside adapters, and nobody beside whole weights."""
RESET_ATTEMPTS, RESET_WAIT_S = 25, 0.2
"""Requests that a deadline cut off hold their cache blocks until the server has noticed."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Which weights a server has: how many updates are behind them, and the name that the server was told."""

    version: int
    name: str
    adapter: str = ""
    """Under which name their adapters are sampled with; '': they have none."""


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """How a server is used."""

    weights_folder: Path | None = None
    """A folder that this process and the server see, for the weights on their way; None: in memory."""
    weights_timeout_s: float = 600.0
    """Deadline of one change of weights."""


class VllmEngine:
    """`aipo.engines.base.Engine` and `SharedSink` around a server started with VLLM_SERVER_DEV_MODE=1."""

    lost: Sequence[str] = ()
    """Nothing: if the only server takes no weights, that is an error."""

    def __init__(
        self,
        link: HttpLink,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: VllmSettings = VllmSettings(),
    ) -> None:
        """`model` is asked for its end-of-turn ids only; call `connect` before `generate`."""
        self._link, self._tokenizer, self._settings = link, tokenizer, settings
        self._stops = StopFinder(tokenizer)
        self._end_ids = end_ids(model, tokenizer)
        self._filler = filler_ids(model, tokenizer)
        self._facts: ServerFacts | None = None
        self._run = uuid4().hex[:12]
        self._stamp: Stamp | None = None
        self._adapter = ""
        self._confirmations: _Shared | None = None

    @property
    def url(self) -> str:
        """The server's address."""
        return self._link.url

    @property
    def takes_adapters(self) -> bool:
        """See `AdapterSink`. Raises `EngineError` before `connect`."""
        return self._connected().takes_adapters

    @property
    def stamp(self) -> Stamp | None:
        """The weights that it samples with; None: it was given none."""
        return self._stamp

    def follow(self, stamp: Stamp | None) -> None:
        """See `SharedSink`."""
        self._stamp = stamp

    @property
    def dtype(self) -> str:
        """What the server computes in, as in `float32`. Raises `EngineError` before `connect`."""
        return self._connected().dtype

    async def connect(self) -> ServerFacts:
        """Ask the server what it is. Raises `EngineError` when it does not answer or cannot be used."""
        self._facts = await read_facts(self._link)
        return self._facts

    async def generate(self, request: GenerationRequest) -> Completion:
        """Sample a continuation; see `Engine`."""
        self.refuse(request.sampling, request.banned_sequences)
        stamp = self._stamp
        if stamp is None:
            raise EngineError(
                f"policy server {self._link.url} was given no weights; load_weights comes first"
            )
        body = self._body(request) | ({"model": stamp.adapter} if stamp.adapter else {})
        answer = await self._link.post("/v1/completions", body, bounded=True)
        completion = self._read(answer, request)
        await self._confirm(stamp.name)
        return replace(completion, weights_version=stamp.version)

    async def release(self, session: str) -> None:
        """Do nothing: the server's cache forgets by itself."""

    def refuse(self, sampling: Sampling, banned_sequences: Sequence[Sequence[int]] = ()) -> None:
        """Raise `EngineError` where this server cannot report the log-probabilities that are asked for."""
        banned = taken_away(banned_sequences)
        mode, t = self._connected().logprobs_mode, sampling.temperature
        if 0 < t < LOWEST_TEMPERATURE:
            raise EngineError(f"temperature {t} is below vLLM's lowest, {LOWEST_TEMPERATURE}; use 0 or more")
        if not sampling.exact_log_probs:
            return
        truncated = t > 0 and (sampling.top_p < 1 or sampling.top_k > 0)
        if mode == "raw_logprobs" and t not in (0.0, 1.0):
            raise EngineError(
                f"the policy server reports raw log-probabilities, which are not those of temperature {t}; "
                "start it with --logprobs-mode processed_logprobs, or sample at temperature 1"
            )
        if mode == "raw_logprobs" and banned:
            raise EngineError(
                "the policy server reports raw log-probabilities, as if nothing were banned; start it with "
                "--logprobs-mode processed_logprobs, or set rollout.banned_fraction = 0"
            )
        if mode == "processed_logprobs" and (truncated or (banned_sequences and not banned)):
            raise EngineError(
                "the policy server reports log-probabilities after truncation and bans; start it with "
                "--logprobs-mode raw_logprobs and sample at temperature 1, or without top_p, top_k and bans "
                "of several tokens"
            )

    # weights

    async def load_weights(self, write: Callable[[Path], object], version: int) -> None:
        """Hand weights to the server through a folder; see `WeightSink`."""
        self._stamp = None
        with weight_files(write, self._settings.weights_folder) as folder:
            await self.take_weights(folder, version)

    async def take_weights(self, folder: Path, version: int) -> None:
        """Have the server load the weights or the adapters of a folder.

        Raises `EngineError`; it then has no weights.

        The server's own stamp is spoilt first and set last, so that weights that arrived in part, or a server
        that began anew from its disk, cannot pass for these.
        """
        self._stamp = None
        adapters = (folder / ADAPTERS_FILE).exists()
        name = f"{ADAPTERS_MARK if adapters else WEIGHTS_MARK}{self._run}"
        await self._tell_version(f"{name}-loading")
        stamp = Stamp(version, f"{name}-{version}")
        if adapters:
            stamp = replace(stamp, adapter=await self._take_adapters(folder, stamp.name))
        else:
            reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            await self._link.post("/collective_rpc", reload, self._settings.weights_timeout_s)
        await self._forget_prefixes()
        await self._tell_version(stamp.name)
        self._stamp = stamp

    async def _take_adapters(self, folder: Path, name: str) -> str:
        """Load adapters under a name of their own, which no later ones get; forget those before them."""
        before, self._adapter = self._adapter, f"{name}-{uuid4().hex[:6]}"
        adapter = {"lora_name": self._adapter, "lora_path": str(folder)}
        await self._link.post(LOAD_ADAPTER, adapter, self._settings.weights_timeout_s)
        if before:
            with suppress(EngineError):  # a server that was started anew never had them
                await self._link.post("/v1/unload_lora_adapter", {"lora_name": before})
        return self._adapter

    async def _tell_version(self, name: str) -> None:
        await self._link.post("/update_weight_version", {"new_version": name})

    async def _forget_prefixes(self) -> None:
        for _ in range(RESET_ATTEMPTS):
            answer = await self._link.post("/reset_prefix_cache", {})
            if isinstance(answer, Mapping) and answer.get("success", True):
                return
            await asyncio.sleep(RESET_WAIT_S)
        raise EngineError(f"policy server {self._link.url} does not forget the old weights' prefix cache")

    async def _confirm(self, stamp: str) -> None:
        """Ask which weights the server has, after the answer that is to be stamped."""
        loop = asyncio.get_running_loop()
        if self._confirmations is None or self._confirmations.loop is not loop:
            self._confirmations = _Shared(loop, lambda: self._link.get("/weight_info"))
        answer = await self._confirmations.call()
        found = answer.get("weight_version") if isinstance(answer, Mapping) else None
        if found != stamp:
            raise EngineError(
                f"policy server {self._link.url} has weights {found!r}, not {stamp!r}: it was started anew, "
                "or another run gave it weights; give each run a server of its own and start this one again"
            )

    # requests

    def _connected(self) -> ServerFacts:
        if self._facts is None:
            raise EngineError(f"policy server {self._link.url} was not asked what it is; connect comes first")
        return self._facts

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        """Say all that a default of the server, or of the model's generation settings, could change."""
        prefix, sampling = list(request.prefix_ids), request.sampling
        limit = self._connected().max_tokens
        if not prefix or request.max_new_tokens < 1 or len(prefix) + request.max_new_tokens > limit:
            raise EngineError(
                f"session {request.session}: {len(prefix)} prefix tokens and {request.max_new_tokens} new "
                f"ones do not fit the policy server's {limit}; start it with a larger --max-model-len"
            )
        return {
            "model": self._connected().model,
            "prompt": prefix,
            "max_tokens": request.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed_of(request.seed, len(prefix)),
            "stop": list(request.stop),
            "stop_token_ids": sorted(self._end_ids),
            "ignore_eos": True,  # ours are named above; the server's may be others
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,  # a tag may be a special token, and is a stop string
            "spaces_between_special_tokens": False,
            "logprobs": 0,
            "return_token_ids": True,
            **self._bans(request),
        }

    def _bans(self, request: GenerationRequest) -> dict[str, Any]:
        """Single tokens by a bias; longer sequences as words, where the server's words are these ids."""
        single = (s[0] for s in request.banned_sequences if len(s) == 1)
        bias = {str(token): BAN_BIAS for token in (*self._filler, *single)}
        words = [self._banned_word(s, request) for s in request.banned_sequences if len(s) > 1]
        return ({"logit_bias": bias} if bias else {}) | ({"bad_words": words} if words else {})

    def _banned_word(self, sequence: tuple[int, ...], request: GenerationRequest) -> str:
        word = _text(self._tokenizer, sequence)
        if word != word.lstrip() or self._tokenizer.encode(word, add_special_tokens=False) != list(sequence):
            raise EngineError(
                f"ids {list(sequence)} ({word!r}) cannot be banned on a vLLM server, which bans words; make "
                "the tag a special token of the tokenizer, or use engine.name = 'transformers'"
            )
        begun = range(1, len(sequence))
        if any(tuple(request.prefix_ids[-n:]) == sequence[:n] for n in begun):
            raise EngineError(f"the prefix ends inside {word!r}, which vLLM cannot ban from there on")
        return word

    # answers

    def _read(self, answer: Any, request: GenerationRequest) -> Completion:
        try:
            choice = answer["choices"][0]
            ids = [int(i) for i in choice["token_ids"]]
            log_probs = [float(p) for p in choice["logprobs"]["token_logprobs"]]
            finish, reason = choice["finish_reason"], choice.get("stop_reason")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._odd(f"lacks ids or log-probabilities ({error!r}); is it vLLM?") from error
        if len(ids) != len(log_probs) or not 0 < len(ids) <= request.max_new_tokens:
            raise self._odd(f"has {len(ids)} ids, {len(log_probs)} log-probabilities")
        if not all(math.isfinite(p) and p <= 1e-4 for p in log_probs):
            raise self._odd("has a log-probability that is not a finite number <= 0")
        if banned := {*self._filler, *(s[0] for s in request.banned_sequences if len(s) == 1)} & set(ids):
            raise self._odd(f"holds banned ids {sorted(banned)}")
        stop = self._end(ids, request, finish, reason)
        return Completion(ids=tuple(ids), log_probs=tuple(log_probs[: len(ids)]), stop=stop)

    def _end(self, ids: list[int], request: GenerationRequest, finish: object, reason: object) -> StopReason:
        """Return why generation ended, by our own reading of the ids; what stands behind that end is cut."""
        written = list(request.prefix_ids)
        for place, token in enumerate(ids):
            written.append(token)
            ended = token in self._end_ids
            if ended or self._stops.completed(written, len(request.prefix_ids), request.stop):
                del ids[place + 1 :]
                return StopReason.END if ended else StopReason.STOP_STRING
        if finish == "stop" and isinstance(reason, str) and reason in request.stop:
            return StopReason.STOP_STRING  # its text began inside a character of the prefix
        if finish != "length" or len(ids) < request.max_new_tokens:
            raise self._odd(
                f"ended after {len(ids)} ids for {finish!r} ({reason!r}), which was not asked for"
            )
        return StopReason.LENGTH

    def _odd(self, what: str) -> EngineError:
        return EngineError(f"the answer of policy server {self._link.url} {what}")


class _Shared:
    """One question that many ask at once: a call is answered by a request that began after it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ask: Callable[[], Any]) -> None:
        self.loop, self._ask = loop, ask
        self._running: asyncio.Task[Any] | None = None
        self._next: asyncio.Task[Any] | None = None

    async def call(self) -> Any:
        if self._next is None:
            self._next = self.loop.create_task(self._after(self._running))
        # Whoever is cancelled must not take the answer from the others.
        return await asyncio.shield(self._next)

    async def _after(self, previous: "asyncio.Task[Any] | None") -> Any:
        if previous is not None:
            await asyncio.wait([previous])
        self._running, self._next = self._next, None
        return await self._ask()


def _text(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
