"""Replies kept on disk, so that a step that runs again after a crash asks nobody twice.

Only replies are kept, never failures or empty ones, under a key of everything that they depend on. A cache
that cannot be read or written costs a call, never a consultation. Several processes may share it.
"""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import diskcache

from aipo.agents.base import Agent, AgentQuery, AgentReply, Usage
from aipo.agents.prompting import Context

SCHEMA = 1
_BYTES_OF_A_MEGABYTE = 1_000_000
_BUSY_S = 5.0
"""How long another process may hold the cache before it counts as unusable for this call."""
_UNUSABLE = (OSError, sqlite3.Error, diskcache.Timeout, ValueError, KeyError, TypeError)
Result = TypeVar("Result")


class CacheError(ValueError):
    """The cache's folder cannot be used; the message names the setting and the fix."""


class _TextDisk(diskcache.Disk):
    """Stores text, and refuses to unpickle: whoever can write to the folder must not run code here."""

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        if mode == diskcache.core.MODE_PICKLE:
            raise ValueError("the cache holds a pickled value, which it never wrote")
        return super().fetch(mode, filename, value, read)


class ReplyStore:
    """Keys to replies, in a folder."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        """Open or make the folder. Raises `CacheError`."""
        try:
            self._cache = diskcache.Cache(
                str(folder),
                timeout=_BUSY_S,
                disk=_TextDisk,
                size_limit=megabytes * _BYTES_OF_A_MEGABYTE,
                eviction_policy="least-recently-used",
            )
        except (OSError, sqlite3.Error) as error:
            raise CacheError(
                f"agents.cache_folder = {str(folder)!r} cannot be used ({error}); name a folder that can be "
                "written to, remove it, or set agents.cache = false"
            ) from None

    def get(self, key: str) -> AgentReply | None:
        """Return a reply; None where there is none or it cannot be read."""
        try:
            stored = self._cache.get(key)
            return None if stored is None else _reply(json.loads(stored))
        except _UNUSABLE:
            return None

    def put(self, key: str, reply: AgentReply) -> None:
        """Keep a reply; one that cannot be written is not kept."""
        try:
            self._cache.set(key, json.dumps(asdict(reply)))
        except _UNUSABLE:
            return

    def __len__(self) -> int:
        return len(self._cache)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedAgent:
    """`aipo.agents.base.Agent` that remembers what another one said."""

    agent: Agent
    store: ReplyStore
    identity: str
    """All that a reply depends on but the query: model, prompt hash, sampling."""
    context: Context
    seeded: bool
    """Whether a reply depends on the query's seed."""

    @property
    def name(self) -> str:
        """The wrapped agent's."""
        return self.agent.name

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Return the kept reply, else the agent's. Raises what the agent raises."""
        key = self.key(query)
        kept = await _aside(lambda: self.store.get(key))
        if kept is not None:
            return replace(kept, usage=replace(kept.usage, cached=True))
        reply = await self.agent.answer(query)
        if reply.text.strip():
            await _aside(lambda: self.store.put(key, reply))
        return reply

    def key(self, query: AgentQuery) -> str:
        """Return the content's address: two queries share it if the agent is sent the same for both."""
        seen = self.context.seen(query)
        seed = query.seed if self.seeded else None
        parts = [SCHEMA, self.name, self.identity, seen.problem, seen.rollout, seen.request, seed]
        return sha256(json.dumps(parts).encode()).hexdigest()


async def _aside(work: Callable[[], Result]) -> Result:
    """Run in a thread: another process may hold the database, and other rollouts must not wait for it."""
    return await asyncio.to_thread(work)


def _reply(stored: dict[str, Any]) -> AgentReply:
    text, approves = stored["text"], stored["approves"]
    usage = Usage(**stored["usage"])
    if not isinstance(text, str) or not isinstance(approves, bool | None):
        raise ValueError("no reply of this version")
    return AgentReply(text=text, approves=approves, usage=usage, log_probs=tuple(stored["log_probs"]))
