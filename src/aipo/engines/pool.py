"""Several policy servers that hold the same weights, as one engine.

All rollouts of a group go to one server, where the cache has their common beginning; groups go to the server
with the fewest rollouts. Which server samples changes no draw: that depends on the rollout's seed.

A server that fails keeps its failed rollouts on its count until the next weights come, so that a dead one,
which answers at once, draws no further groups. One that takes no weights is not sampled from, until it does.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aipo.engines.base import Completion, Engine, EngineError, GenerationRequest
from aipo.engines.weight_files import weight_files


class PolicyServer(Engine, Protocol):
    """One server of several."""

    @property
    def url(self) -> str:
        """Its address."""
        ...

    @property
    def stamp(self) -> Any:
        """Which weights it has; None: it was given none, or took none."""
        ...

    def follow(self, stamp: Any) -> None:
        """See `SharedSink`."""
        ...

    @property
    def takes_adapters(self) -> bool:
        """See `AdapterSink`."""
        ...

    async def take_weights(self, folder: Path, version: int) -> None:
        """Load the weights of a folder. Raises `EngineError`; it then has no weights."""
        ...


@dataclass(frozen=True, slots=True)
class _Home:
    """Where the rollouts of a group are sampled, and which of them are under way."""

    place: int
    sessions: set[str] = field(default_factory=set)


class ServerPool:
    """`aipo.engines.base.Engine` and `SharedSink` of several servers."""

    def __init__(
        self, servers: Sequence[PolicyServer], weights_folder: Path | None = None, first: int = 0
    ) -> None:
        """`first`: which server is first in turn; ranks begin with different ones."""
        self._servers, self._weights_folder, self._turn = tuple(servers), weights_folder, first
        self._homes: dict[str, _Home] = {}
        self._group_of: dict[str, str] = {}
        self._failed = [0] * len(self._servers)
        self.lost: Sequence[str] = ()

    async def generate(self, request: GenerationRequest) -> Completion:
        """Sample where the group's other rollouts are sampled. Raises `EngineError`."""
        place = self._place(request)
        try:
            return await self._servers[place].generate(request)
        except EngineError:
            self._failed[place] += 1
            raise

    async def release(self, session: str) -> None:
        """See `Engine`."""
        group = self._group_of.pop(session, None)
        if group is None:
            return
        home = self._homes[group]
        home.sessions.discard(session)
        if not home.sessions:
            del self._homes[group]
        await self._servers[home.place].release(session)

    def _place(self, request: GenerationRequest) -> int:
        group = self._group_of.get(request.session) or request.group or request.session
        home = self._homes.get(group)
        if home is None:
            home = self._homes[group] = _Home(self._least_loaded())
        home.sessions.add(request.session)
        self._group_of[request.session] = group
        return home.place

    def _least_loaded(self) -> int:
        """Return the server with the fewest rollouts; of several, the next in turn."""
        number, load = len(self._servers), self._failed.copy()
        for home in self._homes.values():
            load[home.place] += len(home.sessions)
        usable = [i for i, server in enumerate(self._servers) if server.stamp is not None] or range(number)
        place = min(usable, key=lambda i: (load[i], (i - self._turn) % number))
        self._turn = place + 1
        return place

    # weights

    async def load_weights(self, write: Callable[[Path], object], version: int) -> None:
        """Write the weights once and have all servers load them; see `WeightSink`.

        Raises `EngineError` where none does. Those that do not are named in `lost`.
        """
        for server in self._servers:
            server.follow(None)
        with weight_files(write, self._weights_folder) as folder:
            taken = (server.take_weights(folder, version) for server in self._servers)
            outcomes = await asyncio.gather(*taken, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, EngineError):
                raise outcome
        errors = [str(outcome) for outcome in outcomes if outcome is not None]
        if len(errors) == len(self._servers):
            raise EngineError("; ".join(errors))
        of_all = f"of {len(self._servers)} policy servers one took no weights and is not sampled from: "
        self.lost = [of_all + error for error in errors]
        self._failed = [0] * len(self._servers)

    @property
    def takes_adapters(self) -> bool:
        """Whether every server does."""
        return all(server.takes_adapters for server in self._servers)

    @property
    def stamp(self) -> tuple[Any, ...]:
        """The stamp of each server."""
        return tuple(server.stamp for server in self._servers)

    def follow(self, stamp: tuple[Any, ...]) -> None:
        """See `SharedSink`."""
        for server, own in zip(self._servers, stamp, strict=True):
            server.follow(own)
        self._failed = [0] * len(self._servers)
