"""Which engine stands behind `engine.name`: built, connected, compared with policy.model, given its weights.

An engine that cannot serve the settings is one `ValueError` with the fix, and leaves no process.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aipo.assembly.agents import build_protocol
from aipo.assembly.formats import build_format
from aipo.assembly.memory import footprint, free_bytes, slots_that_fit
from aipo.config.settings import Settings
from aipo.core.registry import Registry
from aipo.engines.base import Engine, EngineError, Sampling
from aipo.engines.link import HttpLink
from aipo.engines.precision import compute_dtype
from aipo.engines.transformers import TransformersEngine
from aipo.engines.vllm import VllmEngine, VllmSettings
from aipo.engines.vllm_facts import refuse_other_policy
from aipo.engines.vllm_server import ServerPlan, VllmServer
from aipo.training.device import PRODUCTS, precision_on, the_device
from aipo.training.journal import SERVER_LOG
from aipo.training.model import save_plain


class EngineSetupError(ValueError):
    """The engine of the settings cannot be used; the message names the field and the fix."""


@dataclass(frozen=True, slots=True)
class PolicyEngine:
    """What samples, and how to end it."""

    engine: Engine
    dtype: str
    """What it computes in, as in `float32`."""
    close: Callable[[], None]
    """Ends a server that was started; may be called twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """What an engine is made for: it samples from the weights of `model`."""

    settings: Settings
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    log_folder: Path | None
    """For a started server's log; none: a temporary one."""

    @property
    def capacity(self) -> int:
        """Tokens of the longest prompt with its response."""
        return self.settings.rollout.max_prompt_tokens + self.settings.rollout.max_response_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """An engine by name: how one is made, and where it computes."""

    make: Callable[[EngineRequest], Engine | PolicyEngine]
    """What is only an engine computes as the model does and needs no end."""
    in_process: bool = False
    """Whether it samples in the trainer's process, from the trainer's weights: each of several ranks then
    samples its share, and its cache is part of the process's memory."""


ENGINES = Registry[EngineSpec]("engine.name", EngineSpec, "aipo.engines")


def build_engine(
    settings: Settings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, log_folder: Path | None
) -> PolicyEngine:
    """Return the engine of the settings, ready to sample from `model`'s weights.

    Raises `EngineSetupError`, and `RegistryError` for a name that stands for no engine.
    """
    request = EngineRequest(settings=settings, model=model, tokenizer=tokenizer, log_folder=log_folder)
    made = ENGINES[settings.engine.name].make(request)
    if isinstance(made, PolicyEngine):
        return made
    return PolicyEngine(made, str(compute_dtype(model)).removeprefix("torch."), lambda: None)


def _transformers(request: EngineRequest) -> Engine:
    settings, model = request.settings, request.model
    slots = slots_that_fit(settings, footprint(settings, model), free_bytes(settings.run.device))
    return TransformersEngine(request.model, request.tokenizer, slots=slots, capacity=request.capacity)


def _vllm(request: EngineRequest) -> PolicyEngine:
    settings, server = request.settings, None
    try:
        if settings.engine.start:
            server = VllmServer(server_plan(settings, request.log_folder))
            server.start()
        url = server.url if server else settings.engine.url
        vllm = asyncio.run(_connected(settings, url, request.model, request.tokenizer))
    except EngineError as error:
        if server:
            server.stop()
        raise EngineSetupError(_with_fix(settings, error)) from error
    except BaseException:  # Ctrl-C while a server starts
        if server:
            server.stop()
        raise
    return PolicyEngine(vllm, vllm.dtype, server.stop if server else lambda: None)


ENGINES.register("transformers", EngineSpec(make=_transformers, in_process=True))
ENGINES.register("vllm", EngineSpec(make=_vllm))


async def _connected(
    settings: Settings, url: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> VllmEngine:
    e = settings.engine
    link = HttpLink(url, timeout_s=e.request_timeout_s, concurrency=e.concurrency, key=_key(e.api_key_env))
    engine = VllmEngine(link, model, tokenizer, VllmSettings(e.weights_folder, e.weights_timeout_s))
    facts = await engine.connect()
    engine.refuse(Sampling(temperature=settings.rollout.temperature))
    needed = settings.rollout.max_prompt_tokens + settings.rollout.max_response_tokens
    if facts.max_tokens < needed:
        raise EngineError(
            f"policy server {url} takes {facts.max_tokens} tokens in all, rollout.max_prompt_tokens + "
            f"rollout.max_response_tokens = {needed}; start it with --max-model-len {needed}, or lower those"
        )
    protocol = build_protocol(settings)
    tags = [f"<{slash}{tag}>" for tag in protocol.tags.values() for slash in ("", "/")]
    if settings.consult.format != "tags":
        tags = list(build_format(settings, tokenizer)[0].control_strings)
    await refuse_other_policy(link, facts, model.config, tokenizer, tags)
    await engine.load_weights(partial(save_plain, model), 0)
    return engine


def server_plan(settings: Settings, log_folder: Path | None) -> ServerPlan:
    """Return how a server is started for these settings."""
    e, r = settings.engine, settings.rollout
    precision = precision_on(settings.policy, the_device(settings.run.device))
    exact_at_any_temperature = "raw_logprobs" if r.temperature == 1 else "processed_logprobs"
    command = (
        *e.command,
        settings.policy.model,
        *("--dtype", str(PRODUCTS[precision]).removeprefix("torch.")),
        *("--max-model-len", str(r.max_prompt_tokens + r.max_response_tokens)),
        *("--logprobs-mode", exact_at_any_temperature),
        *("--generation-config", "vllm"),
        *e.arguments,
    )
    folder = log_folder or Path(tempfile.mkdtemp(prefix="aipo-vllm-"))
    return ServerPlan(
        command=command, log=folder / SERVER_LOG, start_timeout_s=e.start_timeout_s, environment=e.environment
    )


def _key(variable: str) -> str | None:
    if not variable:
        return None
    if not os.environ.get(variable):
        raise EngineError(
            f"engine.api_key_env = {variable!r}: there is no such environment variable; set it to the "
            "server's key, or make engine.api_key_env = ''"
        )
    return os.environ[variable]


def _with_fix(settings: Settings, error: EngineError) -> str:
    if settings.engine.start:
        return f"engine.start: {error}"
    return f"engine.url = {settings.engine.url!r}: {error} (docs/engines.md says how to start one)"
