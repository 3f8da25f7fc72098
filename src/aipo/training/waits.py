"""What a run is waiting for: for whom, and since when.

A wait is on the list exactly while it lasts, and the wrappers that keep the list change nothing about what
they wrap. `training/watchdog.py` decides how long is too long.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count

import torch

from aipo.agents.base import Agent, AgentQuery, AgentReply
from aipo.core.types import Condition
from aipo.engines.base import Completion, Engine, GenerationRequest
from aipo.rollout.episode import Rollout
from aipo.rollout.group import Sampler
from aipo.rollout.reward import Rewarding
from aipo.tasks.base import Grade, Problem, Split, Task
from aipo.training.events import StopRunError

SHOWN = 3
"""Of many waits for the same thing, those that have lasted longest are named."""
PROBLEM_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Wait:
    """One thing that is being waited for."""

    what: str
    whom: str
    since_s: float
    """On the clock of `time.monotonic`."""


class Waits:
    """The waits of one run. The thread of the watchdog reads, the run writes."""

    def __init__(self) -> None:
        self._open: dict[int, Wait] = {}
        self._keys = count()
        self._progress_s = time.monotonic()
        self._cancel: Callable[[], object] | None = None
        self.stopped_by: StopRunError | None = None
        """Why the run was asked to stop; None: it was not."""
        self.heard = False
        """Whether the run has noticed that."""

    @contextmanager
    def track(self, what: str, whom: str) -> Iterator[None]:
        """Keep a wait on the list for the length of a block; its beginning and its end are progress."""
        key = next(self._keys)
        self.progress()
        self._open[key] = Wait(what, whom, self._progress_s)
        try:
            yield
        finally:
            del self._open[key]
            self.progress()

    def progress(self, *_: object) -> None:
        """Say that something has moved."""
        self._progress_s = time.monotonic()

    def watch_forward_passes(self, model: torch.nn.Module) -> None:
        """Count each forward pass as progress: one of a long rollout or of a micro-batch.

        The embedding is in all of them, whichever way the model is wrapped or cut.
        """
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        embedding.register_forward_pre_hook(self.progress)

    def quiet_s(self) -> float:
        """Return the seconds since something moved."""
        return time.monotonic() - self._progress_s

    @property
    def busy(self) -> bool:
        """Whether anything is on the list."""
        return bool(self._open)

    @property
    def longest(self) -> Wait | None:
        """What has been waited for the longest: of a step under way, the phase that it is in."""
        return min(self._open.copy().values(), key=lambda wait: wait.since_s, default=None)

    def describe(self) -> str:
        """Return a line for each kind of wait: how many, for whom, since when; the longest first."""
        now, by_what = time.monotonic(), dict[str, list[Wait]]()
        for wait in sorted(self._open.copy().values(), key=lambda wait: wait.since_s):
            by_what.setdefault(wait.what, []).append(wait)
        lines = []
        for what, waits in by_what.items():
            names = ", ".join(f"{w.whom} ({_ago(now - w.since_s)})" for w in waits[:SHOWN])
            more = f" and {len(waits) - SHOWN} more" if len(waits) > SHOWN else ""
            lines.append(f"  {what}: {names}{more}")
        return "\n".join(lines) or "  nothing that is on the list of waits"

    @contextmanager
    def cancelled_by_stop(self) -> Iterator[None]:
        """In the task of the run: `stop` cancels this block, which then raises what `stop` was given."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            yield
        except asyncio.CancelledError:
            if self.stopped_by is None:
                raise
            task.uncancel()
            self.heard = True
            self.progress()
            raise self.stopped_by from None
        finally:
            self._cancel = None

    def stop(self, why: StopRunError) -> None:
        """Tell the run to stop wherever it waits; may be called from another thread."""
        self.stopped_by, cancel = why, self._cancel  # taken once: the run may leave its block meanwhile
        if cancel is not None:
            cancel()


def watched(sampler: Sampler, waits: Waits) -> Sampler:
    """Return the sampler with its engine, agents and task on the list of waits."""
    engine = _WatchedEngine(sampler.engine, waits)
    agents = {name: _WatchedAgent(agent, waits) for name, agent in sampler.consult.agents.items()}
    consult = replace(sampler.consult, agents=agents)
    task, reward = _WatchedTask(sampler.task, waits), sampler.reward and _WatchedReward(sampler.reward, waits)
    return replace(sampler, engine=engine, consult=consult, task=task, reward=reward)


class _WatchedEngine:
    def __init__(self, engine: Engine, waits: Waits) -> None:
        self.engine, self._waits = engine, waits

    async def generate(self, request: GenerationRequest) -> Completion:
        with self._waits.track("the policy's engine", f"rollout {request.session}"):
            return await self.engine.generate(request)

    async def release(self, session: str) -> None:
        await self.engine.release(session)


@dataclass(frozen=True, slots=True)
class _WatchedAgent:
    agent: Agent
    waits: Waits

    @property
    def name(self) -> str:
        return self.agent.name

    async def answer(self, query: AgentQuery) -> AgentReply:
        problem = " ".join(query.problem.split())
        short = problem if len(problem) <= PROBLEM_CHARACTERS else problem[:PROBLEM_CHARACTERS] + "…"
        with self.waits.track(f"agent {self.agent.name}", f"problem {short!r}"):
            return await self.agent.answer(query)


class _WatchedTask:
    def __init__(self, task: Task, waits: Waits) -> None:
        self._task, self._waits = task, waits
        self.name = task.name

    def problems(self, split: Split) -> "list[Problem]":
        return list(self._task.problems(split))

    async def grade(self, problem: Problem, response: str) -> Grade:
        with self._waits.track("grading", f"problem {problem.id}"):
            return await self._task.grade(problem, response)

    def without_answer(self, problem: Problem, text: str) -> str | None:
        return self._task.without_answer(problem, text)


@dataclass(frozen=True, slots=True)
class _WatchedReward:
    reward: Rewarding
    waits: Waits

    async def grade(self, problem: Problem, made: Rollout, condition: Condition, grade: Grade) -> Grade:
        with self.waits.track("task.reward", f"problem {problem.id}"):
            return await self.reward.grade(problem, made, condition, grade)


def _ago(seconds: float) -> str:
    begun = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
    return f"since {begun}, {seconds:.0f} s"
