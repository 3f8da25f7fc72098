"""vLLM servers, put together for a run: started or found, checked, and given the trainer's weights.

Rank 0 starts servers and loads weights; every rank samples through links of its own. What goes wrong on one
rank is an error on all of them.
"""

import asyncio
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aipo.assembly.agents import build_protocol
from aipo.assembly.engine import EngineRequest, EngineSetupError, PolicyEngine
from aipo.assembly.formats import build_format
from aipo.config.settings import Settings
from aipo.engines.base import EngineError, Sampling, taken_away
from aipo.engines.link import HttpLink
from aipo.engines.pool import ServerPool
from aipo.engines.vllm import VllmEngine, VllmSettings
from aipo.engines.vllm_facts import refuse_other_policy
from aipo.engines.vllm_server import ServerPlan, VllmServer, start_together
from aipo.training.device import PRODUCTS, precision_on, the_device
from aipo.training.handover import hand_over
from aipo.training.journal import SERVER_LOG
from aipo.training.ranks import Ranks

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be."""


def make_vllm(request: EngineRequest) -> PolicyEngine:
    """Return an engine on the servers of the settings; on all ranks at once. Raises `EngineSetupError`."""
    settings, ranks = request.settings, request.ranks
    _refuse_settings(settings, ranks)
    started: list[VllmServer] = []

    def close() -> None:
        for server in started:
            server.stop()

    def find() -> tuple[str, ...]:
        if not settings.engine.start:
            return settings.engine.urls
        started.extend(map(VllmServer, server_plans(request)))
        with _explained(settings):
            start_together(started)
        return tuple(server.url for server in started)

    try:
        urls = ranks.from_main(find)
        with ranks.together(), _explained(settings):
            servers = asyncio.run(_connected(request, urls))
        folder = settings.engine.weights_folder
        engine = servers[0] if len(servers) == 1 else ServerPool(servers, folder, ranks.rank)
        with _explained(settings):
            lost = asyncio.run(hand_over(engine, ranks, request.model, 0))
            if lost:
                raise EngineError(lost[0])
    except BaseException:  # Ctrl-C too
        close()
        raise
    said = f"{len(servers)} servers" if len(servers) > 1 else ""
    return PolicyEngine(engine=engine, dtype=servers[0].dtype, close=close, said=said)


def _refuse_settings(settings: Settings, ranks: Ranks) -> None:
    e, limit_s = settings.engine, settings.run.rank_timeout_s
    if ranks.size > e.concurrency:
        raise EngineSetupError(
            f"engine.concurrency = {e.concurrency} is less than one request for each of {ranks.size} ranks; "
            "raise it"
        )
    waits = {"engine.weights_timeout_s": e.weights_timeout_s}
    waits |= {"engine.start_timeout_s": e.start_timeout_s} if e.start else {}
    for name, wait_s in waits.items():
        if ranks.several and wait_s >= limit_s:
            raise EngineSetupError(
                f"{name} = {wait_s:g} is not below run.rank_timeout_s = {limit_s:g}, the longest that other "
                "ranks wait for rank 0; lower the one or raise the other"
            )
    if e.start and e.servers > 1 and not e.devices and the_device(settings.run.device).startswith("cuda"):
        raise EngineSetupError(
            f"engine.servers = {e.servers} without engine.devices: all would be on the first GPU; name each "
            "one's, as in engine.devices = ['4', '5']"
        )


async def _connected(request: EngineRequest, urls: Sequence[str]) -> list[VllmEngine]:
    servers = [await _checked(request, url) for url in urls]
    dtypes = {server.dtype: server.url for server in servers}
    if len(dtypes) > 1:
        raise EngineError(
            "the policy servers compute in different types ("
            + ", ".join(f"{url} in {dtype}" for dtype, url in dtypes.items())
            + "); start all with the same --dtype"
        )
    return servers


async def _checked(request: EngineRequest, url: str) -> VllmEngine:
    """Return one server's engine, if the server is one for this run."""
    settings, ranks = request.settings, request.ranks
    e, r = settings.engine, settings.rollout
    own_requests = len(range(ranks.rank, e.concurrency, ranks.size))
    link = HttpLink(url, timeout_s=e.request_timeout_s, concurrency=own_requests, key=_key(e.api_key_env))
    vllm = VllmSettings(e.weights_folder, e.weights_timeout_s)
    engine = VllmEngine(link, request.model, request.tokenizer, vllm)
    facts = await engine.connect()
    engine.refuse(Sampling(temperature=r.temperature), _banned(request))
    if facts.max_tokens < request.capacity:
        raise EngineError(
            f"policy server {url} takes {facts.max_tokens} tokens in all, rollout.max_prompt_tokens + "
            f"rollout.max_response_tokens = {request.capacity}; start it with --max-model-len "
            f"{request.capacity}, or lower those"
        )
    protocol = build_protocol(settings)
    tags = [f"<{slash}{tag}>" for tag in protocol.tags.values() for slash in ("", "/")]
    if settings.consult.format != "tags":
        tags = list(build_format(settings, request.tokenizer)[0].control_strings)
    await refuse_other_policy(link, facts, request.model.config, request.tokenizer, tags)
    return engine


def _banned(request: EngineRequest) -> Sequence[Sequence[int]]:
    """Return what training bans in some of its rollouts."""
    if not request.settings.rollout.banned_fraction:
        return ()
    return build_format(request.settings, request.tokenizer)[1].banned_sequences()


def server_plans(request: EngineRequest) -> list[ServerPlan]:
    """Return how each server is started for these settings."""
    settings, log_folder = request.settings, request.log_folder
    e, r = settings.engine, settings.rollout
    precision = precision_on(settings.policy, the_device(settings.run.device))
    raw = r.temperature == 1 and not taken_away(_banned(request))
    adapters = ("--enable-lora", "--max-lora-rank", str(_served_rank(settings.policy.lora_rank)))
    command = (
        *e.command,
        settings.policy.model,
        *("--dtype", str(PRODUCTS[precision]).removeprefix("torch.")),
        *("--max-model-len", str(r.max_prompt_tokens + r.max_response_tokens)),
        *("--logprobs-mode", "raw_logprobs" if raw else "processed_logprobs"),
        *("--generation-config", "vllm"),
        *(adapters if settings.policy.lora_rank else ()),
        *e.arguments,
    )
    folder = log_folder or Path(tempfile.mkdtemp(prefix="aipo-vllm-"))
    log = Path(SERVER_LOG)
    logs = [f"{log.stem}-{i}{log.suffix}" for i in range(e.servers)] if e.servers > 1 else [SERVER_LOG]
    devices = [{"CUDA_VISIBLE_DEVICES": own} for own in e.devices] or [{}] * e.servers
    return [
        ServerPlan(
            command=command,
            log=folder / name,
            start_timeout_s=e.start_timeout_s,
            environment=dict(e.environment) | own,
        )
        for name, own in zip(logs, devices, strict=True)
    ]


def _served_rank(rank: int) -> int:
    """Return the smallest rank that vLLM offers and these adapters fit in; a larger one it has to refuse."""
    return next((served for served in LORA_RANKS if served >= rank), rank)


def _key(variable: str) -> str | None:
    if not variable:
        return None
    if not os.environ.get(variable):
        raise EngineError(
            f"engine.api_key_env = {variable!r}: there is no such environment variable; set it to the "
            "server's key, or make engine.api_key_env = ''"
        )
    return os.environ[variable]


@contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    """Let what goes wrong with a server in the block say which setting brought it in."""
    try:
        yield
    except EngineError as error:
        e = settings.engine
        if e.start:
            raise EngineSetupError(f"engine.start: {error}") from error
        how = "docs/engines.md says how to start one"
        raise EngineSetupError(f"engine.urls = {list(e.urls)}: {error} ({how})") from error
