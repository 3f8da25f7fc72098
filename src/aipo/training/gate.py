"""Between rollouts and the engine, where rollouts cross steps: who is decoding, and no change of weights amid
a request.

A group's rollouts have sessions of their own, also where another group of the same problem is under way.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from aipo.engines.base import Completion, Engine, GenerationRequest


class Gate:
    """Lets requests through to an engine, but for the time in which its weights change."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._running = 0
        self._open, self._idle = asyncio.Event(), asyncio.Event()
        self._open.set()

    async def generate(self, request: GenerationRequest) -> Completion:
        """Sample once the gate is open. Raises `EngineError`."""
        await self._open.wait()
        self._running += 1
        self._idle.clear()
        try:
            return await self.engine.generate(request)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Let no request begin in the block, which is entered when those under way have ended.

        A request is a segment of a rollout and has its own deadline, so the wait is bounded.
        """
        self._open.clear()
        try:
            if self._running:
                await self._idle.wait()
            yield
        finally:
            self._open.set()


@dataclass(kw_only=True)
class GroupEngine:
    """`aipo.engines.base.Engine` of one group's rollouts."""

    gate: Gate
    name: str
    """Of the group: begins the names of its sessions."""
    ended: Callable[[], object]
    """Called whenever a rollout stops decoding."""
    decoding: set[str] = field(default_factory=set)
    """Rollouts that decode, or are about to; the others wait for agents, are graded, or done."""

    def expect(self, rollouts: Iterable[str]) -> None:
        """Count rollouts as decoding before they have asked."""
        self.decoding.update(rollouts)

    def forget(self, rollout: str) -> None:
        """Count a rollout no longer."""
        if rollout in self.decoding:
            self.decoding.remove(rollout)
            self.ended()

    async def generate(self, request: GenerationRequest) -> Completion:
        """Sample a continuation; see `Engine`."""
        self.decoding.add(request.session)
        try:
            return await self.gate.generate(replace(request, session=self.name + request.session))
        finally:
            self.forget(request.session)

    async def release(self, session: str) -> None:
        """Forget a session's cache."""
        await self.gate.engine.release(self.name + session)
