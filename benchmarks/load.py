"""2,000 rollouts in flight from one process, on servers that fail: nothing is lost, nothing counted twice.

A policy server and a server of agents, each a process of its own (`load_servers.py`), answer over real HTTP
with latencies; of 100 requests 1 hangs, 3 get 503, 5 get 429 and 1 is reset. In the first wave the agents'
server is killed and started again, in the second one the policy's, which has lost its weights then; two more
waves show that all goes on. Everything between is the product's own: groups, rollouts, the engine's link, the
agents' retries, deadlines.

What a rollout holds is compared with what its seeds make the server write, token by token. The event loop's
lag is how much later than asked a sleep of 10 ms ends: on the wall, and in CPU-time of this process, which
a busy machine does not change. Not measured here: GPUs, the forward pass, a real server at its limit.
"""

import asyncio
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

from aipo.agents.named import AGENTS
from aipo.agents.remote import ChatSampling, Endpoint, RemoteAgent
from aipo.agents.retry import RetryPolicy
from aipo.consult.codec import TagCodec
from aipo.core.seeds import seed_of
from aipo.core.types import KNOWLEDGE, ConsultOutcome, Source, Verdict
from aipo.engines.link import HttpLink
from aipo.engines.vllm import VllmEngine
from aipo.engines.vllm_server import free_port
from aipo.rollout.episode import ConsultContext
from aipo.rollout.group import Group, GroupShape, MemberRollout, Prompts, Sampler
from aipo.tasks.base import Grade, Problem, Split
from consulting import LIMITS, PROTOCOL
from load_servers import Facts, written
from measure import TAGS, VOCABULARY, Figure, options, policy, report, tokenizer

WAVES = ("agents restarted", "policy restarted", "plain", "plain again")
SHAPE = GroupShape(consulting=6, solo=2)
AT_ONCE = 256
"""Requests to a server at the same time, the default of engine.concurrency; other rollouts wait for a place,
or for the other server."""
RESTART_AFTER_S = 2.0
DEADLINE_S, QUICK_DEADLINE_S = 30.0, 8.0
TICK_S = 0.01
MOST_LAG_MS = 50.0
MOST_GROWTH_MB = 20.0
MB = 2**20
REASONS = ("did not answer within", "answered 503", "answered 429", "cannot be reached", "has weights")


class Anything:
    """A task without right or wrong."""

    name = "anything"

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return none."""
        return []

    async def grade(self, problem: Problem, response: str) -> Grade:
        """Call everything right."""
        return Grade(Verdict.CORRECT, "")

    def without_answer(self, problem: Problem, text: str) -> str | None:
        """Return nothing: no answer is stated."""
        return None


class Server:
    """One of the two servers, in a process of its own."""

    def __init__(self, kind: str, facts: Path) -> None:
        self._kind, self._facts, self._port = kind, facts, free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it listens a moment later."""
        script = Path(__file__).with_name("load_servers.py")
        command = [sys.executable, str(script), self._kind, str(self._port), str(self._facts)]
        self._process = subprocess.Popen(command)

    def kill(self) -> None:
        """End it at once, with all connections."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        for _ in range(600):
            try:
                httpx2.get(self.url, trust_env=False, timeout=5.0)
                return
            except httpx2.HTTPError:
                time.sleep(0.1)
        raise RuntimeError(f"{self.url} does not answer")


@dataclass
class Lag:
    """How late the event loop is."""

    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    async def watch(self) -> None:
        """Look every 10 ms, until cancelled."""
        while True:
            wall, cpu = time.perf_counter(), time.thread_time()
            await asyncio.sleep(TICK_S)
            late = (time.perf_counter() - wall - TICK_S, time.thread_time() - cpu - TICK_S)
            self.wall_ms.append(max(0.0, late[0]) * 1e3)
            self.cpu_ms.append(max(0.0, late[1]) * 1e3)

    @staticmethod
    def p99(values: Sequence[float]) -> float:
        """Return the value that 99 of 100 do not exceed."""
        return statistics.quantiles(values, n=100)[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """What became of one wave."""

    name: str
    seconds: float
    cpu_s: float
    rollouts: int
    most_in_flight: int
    ungraded: int
    reasons: dict[str, int]
    consultations: dict[str, int]
    wrong: int
    """Rollouts whose tokens are not those that their seeds make the server write."""
    twice: int
    memory_mb: float


class Load:
    """The process that drives."""

    def __init__(self, servers: dict[str, Server], facts: Facts, groups: int, deadline_s: float) -> None:
        tokens = tokenizer()
        self._servers, self._facts, self._groups, self.lag = servers, facts, groups, Lag()
        self._rollouts = groups * (SHAPE.consulting + SHAPE.solo)
        link = HttpLink(servers["policy"].url, timeout_s=deadline_s, concurrency=AT_ONCE)
        self._engine = VllmEngine(link, policy(tokens.eos_token_id, quick=True), tokens)
        agent = RemoteAgent(
            spec=AGENTS[KNOWLEDGE],
            endpoint=Endpoint(base_url=f"{servers['agents'].url}/v1", concurrency=AT_ONCE),
            model="agent",
            sampling=ChatSampling(temperature=0.7, top_p=0.8, max_tokens=64),
            retry=RetryPolicy(retries=6, first_wait_s=0.5),
            deadline_s=deadline_s,
        )
        consult = ConsultContext(
            protocol=PROTOCOL,
            codec=TagCodec(tokens, PROTOCOL),
            limits=LIMITS,
            agents={KNOWLEDGE: agent},
            agent_timeout_s=deadline_s,
        )
        prompts = Prompts(
            tokenizer=tokens,
            consult=consult,
            consulting_override="Ask.",
            solo_override="Alone.",
            max_prompt_tokens=2048,
        )
        self._sampler = Sampler(engine=self._engine, consult=consult, task=Anything(), prompts=prompts)

    async def run(self) -> list[Wave]:
        """Drive all waves."""
        await self._engine.connect()
        watching = asyncio.create_task(self.lag.watch())
        waves = [await self._wave(number, name) for number, name in enumerate(WAVES)]
        watching.cancel()
        return waves

    async def _wave(self, number: int, name: str) -> Wave:
        await self._engine.load_weights(lambda folder: folder.mkdir(), number)
        path = ("load", number)
        text = " ".join(["How many legs have 2 dogs and 3 spiders?"] * 4)
        problems = [Problem(id=f"p{i}", text=f"{i}. {text}", gold="8") for i in range(self._groups)]
        begun, cpu = time.perf_counter(), time.process_time()
        sampling = asyncio.create_task(self._sampler.groups(problems, SHAPE, path))
        restart = asyncio.create_task(self._restart(name))
        groups = await sampling
        await restart
        seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
        members = [member for group in groups for member in group.members]
        ids = Counter(member.id for member in members)
        wrong = sum(self._wrong(group, path) for group in groups)
        lost = [member for member in members if member.rollout is None]
        asked = Counter(c.outcome.value for m in members if m.rollout for c in m.rollout.consultations)
        del groups, sampling
        gc.collect()
        return Wave(
            name=name,
            seconds=seconds,
            cpu_s=cpu_s,
            rollouts=len(members),
            most_in_flight=self._rollouts,
            ungraded=len(lost),
            reasons=dict(Counter(map(_reason, lost)).most_common(6)),
            consultations=dict(asked),
            wrong=wrong,
            twice=sum(count - 1 for count in ids.values()),
            memory_mb=psutil.Process().memory_info().rss / MB,
        )

    async def _restart(self, wave: str) -> None:
        kind = wave.partition(" ")[0]
        if kind in self._servers:
            await asyncio.sleep(RESTART_AFTER_S)
            server = self._servers[kind]
            await asyncio.to_thread(server.kill)
            server.start()

    def _wrong(self, group: Group, path: tuple[str | int, ...]) -> int:
        found = 0
        for index, member in enumerate(group.members):
            if member.rollout is None:
                continue
            seed, place = seed_of(*path, group.problem.id, index), 0
            for segment in member.rollout.stream.segments:
                if segment.source is Source.POLICY:
                    may_ask = index < SHAPE.consulting
                    ids, log_probs, _ = written(self._facts, seed_of(seed, place), len(segment.ids), may_ask)
                    found += (tuple(ids), tuple(log_probs)) != (segment.ids, segment.log_probs)
                place += len(segment.ids)
        return found


def _reason(member: MemberRollout) -> str:
    words = member.grade.reason
    for known in REASONS:
        if known in words:
            return known
    return words[:80]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure."""
    given = options("load", arguments)
    groups, deadline_s = (12, QUICK_DEADLINE_S) if given.quick else (250, DEADLINE_S)
    tokens = tokenizer()
    request = tokens.encode("<knowledge> legs of a spider </knowledge>", add_special_tokens=False)
    facts = Facts(request=tuple(request), end=tokens.eos_token_id, words=VOCABULARY - len(TAGS))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "facts.json"
        path.write_text(json.dumps({"request": request, "end": facts.end, "words": facts.words}))
        servers = {kind: Server(kind, path) for kind in ("policy", "agents")}
        try:
            for server in servers.values():
                server.start()
            for server in servers.values():
                server.wait()
            load = Load(servers, facts, groups, deadline_s)
            waves = asyncio.run(load.run())
        finally:
            for server in servers.values():
                server.kill()
    for wave in waves:
        print(wave)
    report("load", figures(waves, load.lag), {"waves": [_table(wave) for wave in waves]}, given)


def figures(waves: Sequence[Wave], lag: Lag) -> list[Figure]:
    """Return what is asked and what was found."""
    asked = sum(wave.rollouts for wave in waves)
    wanted = len(waves) * waves[0].most_in_flight
    undisturbed = [wave for wave in waves if wave.name != "policy restarted"]
    ungraded = sum(wave.ungraded for wave in undisturbed) / sum(wave.rollouts for wave in undisturbed)
    growth = waves[-1].memory_mb - waves[1].memory_mb
    wall, cpu = Lag.p99(lag.wall_ms), Lag.p99(lag.cpu_ms)
    answered = sum(wave.consultations.get(ConsultOutcome.ANSWERED.value, 0) for wave in waves)
    consulted = sum(sum(wave.consultations.values()) for wave in waves)
    wrong, twice = sum(wave.wrong for wave in waves), sum(wave.twice for wave in waves)
    rate = asked / sum(wave.cpu_s for wave in waves)
    each = f"{waves[0].rollouts:,} in flight"
    return [
        Figure("rollouts that are missing", wanted - asked, "", asked="0", passed=asked == wanted),
        Figure("rollouts counted twice", twice, "", asked="0", passed=twice == 0),
        Figure("rollouts with another's tokens", wrong, "", asked="0", passed=wrong == 0),
        Figure(f"UNGRADED, {each}, without a restart of the policy's server", 100 * ungraded, "%"),
        Figure("UNGRADED in the wave of that restart", 100 * waves[1].ungraded / waves[1].rollouts, "%"),
        Figure("consultations answered", 100 * answered / max(1, consulted), "%"),
        _below("event-loop lag, p99", wall, "ms", MOST_LAG_MS),
        _below("the same in CPU-time of the process", cpu, "ms", MOST_LAG_MS),
        _below("memory, growth from the second to the last wave", growth, "MB", MOST_GROWTH_MB),
        Figure("rollouts per CPU-second of the driving process", rate, ""),
    ]


def _below(what: str, found: float, unit: str, limit: float) -> Figure:
    return Figure(what, found, unit, asked=f"below {limit:g} {unit}", passed=found < limit)


def _table(wave: Wave) -> dict[str, Any]:
    return {name: getattr(wave, name) for name in Wave.__slots__}


if __name__ == "__main__":
    main()
