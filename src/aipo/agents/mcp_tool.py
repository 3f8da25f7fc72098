"""Agents that are tools of MCP servers, by the official SDK (the extra `aipo[mcp]`).

What a tool says is the reply, its own errors too: they are meant to be read. What the server or the
connection does is an `AgentError`, and a lost connection is made anew. No wait is without a deadline.
"""

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, TextIO
from weakref import WeakKeyDictionary

import httpx2

from aipo.agents.base import AgentError, AgentFailure, AgentQuery, AgentReply
from aipo.agents.prompting import Context
from aipo.agents.replies import excerpt
from aipo.agents.retry import RetryPolicy

if TYPE_CHECKING:
    from mcp import Client

    from aipo.config.mcp import McpSettings

# A lost connection is an outcome; without a handler of anyone, its traceback would go to standard error.
logging.getLogger("mcp").addHandler(logging.NullHandler())
INSTALL = "pip install 'aipo[mcp]'"
_TAIL_BYTES = 2000
"""Of what a server said on standard error, for a message."""


def is_installed() -> bool:
    """Say whether the SDK is there."""
    return find_spec("mcp") is not None


@dataclass(frozen=True, slots=True)
class _Tool:
    """What a server says of one of its tools."""

    required: tuple[str, ...]
    known: tuple[str, ...]


class _Lost(Exception):
    """The connection is of no more use; another one may be."""


@dataclass(frozen=True, kw_only=True)
class McpServer:
    """One server; agents that share the object share its connection and its limit."""

    settings: "McpSettings"
    """Of one of them; what is said of a tool there is not read."""
    api_key_env: str = ""
    """Environment variable that holds the key of an address; '': none is sent."""
    concurrency: int = 16
    connect_s: float = 30.0
    """Deadline of a connection, the start of a program included."""
    _of_loop: "WeakKeyDictionary[asyncio.AbstractEventLoop, _Line]" = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    @property
    def where(self) -> str:
        """The server in a message."""
        s = self.settings
        return f"MCP server {s.url or ' '.join((s.command, *s.args))!r}"

    async def call(self, name: str, arguments: Callable[[_Tool], Mapping[str, Any]]) -> str:
        """Return the text of a tool's result. Raises `_Lost` for a lost connection, else `AgentError`."""
        line = self._line()
        async with line.limit:
            begun = time.monotonic()
            connection = line.connection(self)
            try:
                client = await asyncio.shield(connection.ready)
                tool = await connection.tool(name)
                result = await client.call_tool(name, dict(arguments(tool)))
            except AgentError:
                raise
            except asyncio.CancelledError:
                if connection.answered_at < begun:  # it may hang: whoever asks next gets another one
                    connection.close()
                raise
            except Exception as error:
                raise self._failure(error, connection) from error
            connection.answered_at = time.monotonic()
        return _words(result)

    def _failure(self, error: Exception, connection: "_Connection") -> Exception:
        from mcp import MCPError
        from mcp.types import INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND

        said = excerpt(str(error)) or type(error).__name__
        if isinstance(error, MCPError) and error.code in (INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND):
            return AgentError(f"{self.where} refuses the call: {said}", AgentFailure.REFUSED)
        connection.close()
        return _Lost(f"{said}{connection.last_words()}")

    def _line(self) -> "_Line":
        loop = asyncio.get_running_loop()
        if loop not in self._of_loop:
            self._of_loop[loop] = _Line(asyncio.Semaphore(self.concurrency))
        return self._of_loop[loop]


@dataclass(slots=True)
class _Line:
    """The limit and the connection of one event loop, which they cannot leave."""

    limit: asyncio.Semaphore
    current: "_Connection | None" = None

    def connection(self, server: McpServer) -> "_Connection":
        if self.current is None or self.current.closed:
            self.current = _Connection(server)
        return self.current


class _Connection:
    """One connection, held open by a task of its own: it must be closed by whoever opened it."""

    def __init__(self, server: McpServer) -> None:
        self._server = server
        self._done = asyncio.Event()
        self._errors: TextIO = TemporaryFile("a+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._http: httpx2.AsyncClient | None = None
        self._tools: dict[str, _Tool] | None = None
        self.answered_at = 0.0
        """By `time.monotonic()`; 0: never."""
        self.ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold())

    @property
    def closed(self) -> bool:
        """Whether it is of no more use."""
        return self._done.is_set() or self._task.done()

    def close(self) -> None:
        """Have it closed; whoever still waits for it is told."""
        self._done.set()

    def last_words(self) -> str:
        """Return the last line that a program wrote to its standard error."""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - _TAIL_BYTES))
        said = self._errors.read().strip().splitlines()
        return f" (it wrote: {excerpt(said[-1])})" if said else ""

    async def tool(self, name: str) -> _Tool:
        """Return what the server says of a tool. Raises `AgentError` where it has none of that name."""
        if self._tools is None:
            listed = (await self.ready.result().list_tools()).tools
            self._tools = {tool.name: _tool_of(tool.input_schema) for tool in listed}
        if name not in self._tools:
            known = ", ".join(sorted(self._tools)) or "none"
            raise AgentError(
                f"{self._server.where} has no tool {name!r}; it has {excerpt(known)}", AgentFailure.REFUSED
            )
        return self._tools[name]

    async def _hold(self) -> None:
        from mcp import Client

        client = Client(self._transport())
        try:
            async with asyncio.timeout(self._server.connect_s):
                await client.__aenter__()
        except BaseException as error:
            self.ready.set_exception(_Lost(f"cannot connect: {_reason(error)}"))
            self.ready.exception()  # perhaps nobody waits any more
            await self._release()
            if not isinstance(error, Exception):
                raise
            return
        self.ready.set_result(client)
        try:
            await self._done.wait()
        finally:
            self._done.set()
            try:
                await client.__aexit__(None, None, None)
            finally:
                await self._release()

    async def _release(self) -> None:
        if self._http is not None:
            await self._http.aclose()

    def _transport(self) -> AbstractAsyncContextManager[Any]:
        s = self._server.settings
        if s.command:
            from mcp import StdioServerParameters, stdio_client
            from mcp.client.stdio import get_default_environment

            handed = {name: os.environ[name] for name in s.env_from if name in os.environ}
            environment = get_default_environment() | handed | s.env
            program = StdioServerParameters(command=s.command, args=list(s.args), env=environment)
            return stdio_client(program, errlog=self._errors)
        from mcp.client.streamable_http import streamable_http_client

        key = os.environ.get(self._server.api_key_env, "").strip() if self._server.api_key_env else ""
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            follow_redirects=False,  # a key is for the server that it was given to
            timeout=httpx2.Timeout(self._server.connect_s, read=None),  # `McpAgent.answer` holds the deadline
        )
        return streamable_http_client(s.url, http_client=self._http)


@dataclass(frozen=True, slots=True, kw_only=True)
class McpAgent:
    """`aipo.agents.base.Agent` that asks a tool of an MCP server."""

    name: str
    server: McpServer
    settings: "McpSettings"
    deadline_s: float
    """Of one consultation: waiting for a free place, connecting, all attempts."""
    retries: int = 3
    retry_wait_s: float = 0.5
    max_reply_bytes: int = 262_144
    context: Context = Context.ALL

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Return what the tool says of the request; of what is written so far, else the problem, without one.

        Raises `AgentError`, and `TimeoutError` at the deadline.
        """
        seen = self.context.seen(query)
        asked = seen.request.strip() or seen.rollout.strip() or seen.problem
        async with asyncio.timeout(self.deadline_s):
            said = await self._called(asked, query.seed)
        if len(said.encode("utf-8", errors="replace")) > self.max_reply_bytes:
            raise AgentError(
                f"{self.server.where}: a reply longer than agents.max_reply_bytes = {self.max_reply_bytes}",
                AgentFailure.UNREACHABLE,
            )
        return AgentReply(text=said)

    async def _called(self, asked: str, seed: int) -> str:
        policy, number = RetryPolicy(self.retries, self.retry_wait_s), 0
        deadline = time.monotonic() + self.deadline_s
        try:
            async for attempt in policy.attempts(deadline, seed, lambda error: isinstance(error, _Lost)):
                number = attempt.retry_state.attempt_number
                with attempt:
                    return await self.server.call(self.settings.tool, partial(self._arguments, asked))
        except _Lost as error:
            tried = f" ({number} attempts)" if number > 1 else ""
            raise AgentError(f"{self.server.where}{tried}: {error}", AgentFailure.UNREACHABLE) from None
        raise AssertionError("the loop returns or raises")

    def _arguments(self, asked: str, tool: _Tool) -> dict[str, Any]:
        settings, table = self.settings, f"agents.{self.name}.mcp"
        given = settings.arguments
        free = [name for name in tool.required if name not in given]
        if settings.argument:
            taken = settings.argument
        elif len(free) == 1:
            taken = free[0]
        else:
            raise AgentError(
                f"tool {settings.tool!r} requires {free or 'nothing'} and has {list(tool.known)}: name the "
                f"argument that takes the request in {table}.argument, and give the others in "
                f"{table}.arguments",
                AgentFailure.REFUSED,
            )
        return {**given, taken: asked}


def _tool_of(schema: Mapping[str, Any]) -> _Tool:
    return _Tool(tuple(schema.get("required", ())), tuple(schema.get("properties", {})))


def _words(result: Any) -> str:
    """Return a result's text; of one that has none, what it has as JSON. Raises `AgentError`."""
    texts = [block.text for block in result.content if getattr(block, "type", "") == "text"]
    if texts or not (result.content or result.structured_content):
        return "\n".join(texts)
    if result.structured_content:
        return json.dumps(result.structured_content, ensure_ascii=False)
    kinds = ", ".join(sorted({str(getattr(block, "type", "unknown")) for block in result.content}))
    raise AgentError(f"a tool's result without text: {kinds}", AgentFailure.UNREADABLE)


def _reason(error: BaseException) -> str:
    """Return the innermost reason: the SDK's task groups wrap what really happened."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return excerpt(str(error)) or type(error).__name__
