"""Decoding without consultations: the in-process engine beside `model.generate` and vLLM's CPU build.

128 prompts of 32 tokens, 64 new tokens each, then 8 to 120. Every engine
gets the same prompts, weights and lengths, and samples at temperature 1. Ours and vLLM return
log-probabilities, `generate` does not. One thread each; tokens per CPU-second decide, since others share the
machine.

`--peer COMMAND` is vLLM's command (build/vllm-venv/bin/vllm, made by `scripts/vllm.sh --install`); it is left
out where it is missing. Its CPU-seconds are those of the server's processes and of our client. Not measured:
prefix caching.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from aipo.engines.base import Engine, GenerationRequest
from aipo.engines.link import HttpLink
from aipo.engines.transformers import TransformersEngine
from aipo.engines.vllm import VllmEngine
from aipo.engines.vllm_server import ServerPlan, VllmServer
from measure import (
    ROOT,
    Clock,
    Figure,
    alternating,
    clocked,
    median_ratio,
    options,
    policy,
    report,
    tokenizer,
    words,
)

PROMPT_TOKENS = 32
REPEATS = 3
START_TIMEOUT_S = 300.0
VLLM_ARGUMENTS = ("--enforce-eager", "--no-enable-chunked-prefill", "--generation-config", "vllm")
VLLM_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
LEAST = {"equal": 1.0, "spread": 2.0}


def lengths_of(prompts: int) -> dict[str, list[int]]:
    """New tokens of each prompt: equal, and spread evenly over 8-120, shuffled."""
    spread = [8 + 112 * i // (prompts - 1) for i in range(prompts)]
    Random(1).shuffle(spread)
    return {"equal": [64] * prompts, "spread": spread}


def by_engine(engine: Engine, prompts: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> None:
    """Sample all prompts at once through an engine of ours."""

    async def one(index: int) -> None:
        session = f"s{index}"
        request = GenerationRequest(
            session=session, prefix_ids=prompts[index], max_new_tokens=lengths[index], seed=index
        )
        completion = await engine.generate(request)
        await engine.release(session)
        assert len(completion.ids) == lengths[index], "an early end would make the comparison worthless"

    async def every() -> None:
        await asyncio.gather(*(one(index) for index in range(len(prompts))))

    asyncio.run(every())


@torch.no_grad()
def by_generate(model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> None:
    """Sample them as one batch; rows that are done go on until the longest is."""
    ids = torch.tensor(prompts)
    generate: Any = model.generate  # the attribute of a torch module is anything, says its type
    out = generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max(lengths),
        pad_token_id=0,
    )
    assert out.shape[1] == PROMPT_TOKENS + max(lengths)


class Server:
    """vLLM's CPU build on the same weights."""

    def __init__(self, command: str, model: PreTrainedModel, tokens: PreTrainedTokenizerFast) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="aipo-benchmark-")
        folder = Path(self._folder.name)
        model.save_pretrained(folder / "policy")
        tokens.save_pretrained(folder / "policy")
        line = (command, "serve", str(folder / "policy"), "--dtype", "float32", "--max-model-len", "512")
        plan = ServerPlan(
            command=(*line, *VLLM_ARGUMENTS),
            log=folder / "server.log",
            start_timeout_s=START_TIMEOUT_S,
            environment=VLLM_ENVIRONMENT,
        )
        self._server = VllmServer(plan)
        self._server.start()
        self._model, self._tokens = model, tokens

    def clocked(self, prompts: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> Clock:
        """Sample them over HTTP; the clock holds the server's CPU-seconds and ours."""
        link = HttpLink(self._server.url, timeout_s=120.0, concurrency=len(prompts))
        engine = VllmEngine(link, self._model, self._tokens)
        asyncio.run(_load(engine, self._model))
        before = self._cpu_s()
        taken = clocked(lambda: by_engine(engine, prompts, lengths))
        return Clock(taken.wall_s, taken.cpu_s + self._cpu_s() - before)

    def stop(self) -> None:
        """End it."""
        self._server.stop()
        self._folder.cleanup()

    def _cpu_s(self) -> float:
        """CPU-seconds of every process whose command line names our folder, or that such a one started."""
        seconds = 0.0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rsplit(")", 1)[1].split()
                ours = self._folder.name in (stat.parent / "cmdline").read_text() or (
                    os.getpgid(int(stat.parent.name)) == self._group()
                )
            except (OSError, ValueError):
                continue  # it has ended meanwhile
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if ours else 0.0
        return seconds

    def _group(self) -> int:
        process = self._server._process
        return process.pid if process is not None else -1


async def _load(engine: VllmEngine, model: PreTrainedModel) -> None:
    await engine.connect()
    await engine.load_weights(model.save_pretrained, 0)


def figures_of(name: str, taken: dict[str, list[Clock]], tokens: int) -> list[Figure]:
    """Compare ours with each peer, in tokens per CPU-second."""

    def speed(peer: str) -> float:
        return statistics.median(tokens / clock.cpu_s for clock in taken[peer])

    figures = []
    for peer in taken:
        if peer == "aipo":
            continue
        ratio = median_ratio([c.cpu_s for c in taken[peer]], [c.cpu_s for c in taken["aipo"]])
        asked, passed = "", None
        if peer == "generate":
            asked, passed = f"at least {LEAST[name]:g} x", ratio >= LEAST[name]
        what = f"decode, {name} lengths"
        figures.append(Figure(what, speed("aipo"), "tokens/CPU-s", peer, speed(peer), ratio, asked, passed))
        if peer == "vllm":  # its server and our client compute at the same time
            walls = {p: statistics.median(tokens / c.wall_s for c in taken[p]) for p in ("aipo", peer)}
            ratio = median_ratio([c.wall_s for c in taken[peer]], [c.wall_s for c in taken["aipo"]])
            figures.append(Figure(f"{what}, wall", walls["aipo"], "tokens/s", peer, walls[peer], ratio))
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure."""
    command = ROOT / "build" / "vllm-venv" / "bin" / "vllm"
    given = options("decode", arguments, str(command) if command.exists() else "")
    tokens, model = tokenizer(end=None), policy(quick=given.quick)
    rng, number = Random(0), 8 if given.quick else 128
    prompts = [words(rng, PROMPT_TOKENS) for _ in range(number)]
    engine = TransformersEngine(model, tokens, slots=number, capacity=PROMPT_TOKENS + 120)
    server = Server(given.peer, model, tokens) if given.peer else None
    figures: list[Figure] = []
    details: dict[str, object] = {"prompts": number, "prompt_tokens": PROMPT_TOKENS}
    details["parameters"] = sum(p.numel() for p in model.parameters())
    try:
        for name, lengths in lengths_of(number).items():
            lengths = [min(n, 8) for n in lengths] if given.quick else lengths
            runs: dict[str, Callable[[], Clock]] = {
                "aipo": lambda n=lengths: clocked(lambda: by_engine(engine, prompts, n)),  # type: ignore[misc]
                "generate": lambda n=lengths: clocked(lambda: by_generate(model, prompts, n)),  # type: ignore[misc]
            }
            if server:
                runs["vllm"] = lambda n=lengths: server.clocked(prompts, n)  # type: ignore[misc]
            by_engine(engine, prompts, [2] * number)  # whatever is built on first use
            by_generate(model, prompts, [2])
            if server:
                server.clocked(prompts, [2] * number)
            taken = alternating(runs, given.repeats or (1 if given.quick else REPEATS))
            figures += figures_of(name, taken, sum(lengths))
            details[name] = {
                peer: [{"wall_s": round(c.wall_s, 3), "cpu_s": round(c.cpu_s, 3)} for c in clocks]
                for peer, clocks in taken.items()
            }
    finally:
        if server:
            server.stop()
    report("decode", figures, details, given)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s in all")
