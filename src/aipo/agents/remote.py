"""Agents behind an OpenAI-compatible chat endpoint.

The key is read from the environment when a connection is made, and is in no field, message or record. No
response is read without a bound, and no wait is without a deadline.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, cast, get_args
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import httpx2
from openai import (
    APIConnectionError,
    APIStatusError,
    AsyncOpenAI,
    DefaultAsyncHttpxClient,
    OpenAIError,
)

from aipo.agents.base import AgentError, AgentFailure, AgentQuery, AgentReply, Usage
from aipo.agents.completions import counts_of, embedded_error, words_of
from aipo.agents.prompting import Context, Message
from aipo.agents.replies import excerpt
from aipo.agents.retry import RetryPolicy, TooLongError, retry_after_s
from aipo.agents.spec import AgentSpec
from aipo.config.agents import OmittedField

TOKENS_OF_A_PRICE = 1_000_000
OMITTED: tuple[str, ...] = get_args(OmittedField)
"""Fields of a request that a server may forbid."""
_KEY = re.compile(r"[!-~]+")
_NO_SYSTEM = re.compile(r"system (?:role|message|prompt)|role.{0,20}system|must alternate", re.IGNORECASE)
_SEEDS = 2**31
"""Servers take a seed as a 32-bit or 64-bit integer; this fits both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSampling:
    """How a reply is drawn."""

    temperature: float
    top_p: float
    max_tokens: int
    limit_field: str = "max_tokens"
    """What a request calls that limit."""
    extra_body: str = "{}"
    """More fields of a request, a JSON object."""
    omit: tuple[str, ...] = field(default=(), repr=False)
    """Fields that a request leaves out. Not in `repr`, which is part of the keys of kept replies."""

    @property
    def seeded(self) -> bool:
        """Whether a reply depends on the seed."""
        return self.temperature > 0

    def fields(self, seed: int) -> dict[str, Any]:
        """Return the fields of a request that say how to draw."""
        said = {"temperature": self.temperature, "top_p": self.top_p, self.limit_field: self.max_tokens}
        if self.seeded:
            said["seed"] = seed
        unlimited = {self.limit_field} if "max_tokens" in self.omit else set()
        return {name: value for name, value in said.items() if name not in {*self.omit, *unlimited}}


@dataclass(frozen=True, slots=True)
class Prices:
    """Of a million tokens each."""

    prompt: float = 0.0
    completion: float = 0.0

    def usage(self, prompt_tokens: int, completion_tokens: int) -> Usage:
        """Return these tokens with what they cost."""
        cost = (prompt_tokens * self.prompt + completion_tokens * self.completion) / TOKENS_OF_A_PRICE
        return Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cost=cost)


NO_PRICES = Prices()


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One server; agents that share the object share its concurrency limit and connections."""

    base_url: str
    api_key_env: str = ""
    """Environment variable that holds the key; '' means that the server wants none."""
    concurrency: int = 16
    max_reply_bytes: int = 262_144
    _of_loop: "WeakKeyDictionary[asyncio.AbstractEventLoop, _Line]" = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    @property
    def host(self) -> str:
        """Host and port, for records and messages."""
        parts = urlsplit(self.base_url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)

    def line(self) -> "_Line":
        """Return client and limit of the running event loop, which they cannot leave.

        Raises `AgentError` where the key's variable is not set.
        """
        loop = asyncio.get_running_loop()
        if loop not in self._of_loop:
            limit = asyncio.Semaphore(self.concurrency)
            self._of_loop[loop] = _Line(_client(self, self._key()), limit)
        return self._of_loop[loop]

    def without_key(self, text: str) -> str:
        """Return foreign text, in which a server may have repeated the key, without it."""
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        return text.replace(key, "[key]") if key else text

    def _key(self) -> str:
        if not self.api_key_env:
            return "none"  # given none, the SDK would send OPENAI_API_KEY to whatever server this is
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise AgentError(f"environment variable {self.api_key_env} is not set", AgentFailure.REFUSED)
        if not _KEY.fullmatch(key):  # what libraries say of such a header repeats it
            raise AgentError(
                f"environment variable {self.api_key_env} holds white space or characters that no key has",
                AgentFailure.REFUSED,
            )
        return key


@dataclass(frozen=True, slots=True)
class _Line:
    client: AsyncOpenAI = field(repr=False)
    limit: asyncio.Semaphore


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteAgent:
    """`aipo.agents.base.Agent` behind an endpoint."""

    spec: AgentSpec
    endpoint: Endpoint
    model: str
    sampling: ChatSampling
    retry: RetryPolicy
    deadline_s: float
    """Of one consultation: waiting for a free place, all attempts and all waits between them."""
    context: Context = Context.ALL
    prices: Prices = NO_PRICES
    system_role: bool = True
    """Whether the server knows system messages; else their text begins the user's."""

    @property
    def name(self) -> str:
        """The spec's."""
        return self.spec.name

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Return what the model said, read. Raises `AgentError`, and `TimeoutError` at the deadline."""
        deadline = time.monotonic() + self.deadline_s
        messages = self.spec.prompt.messages(self.context.seen(query), self.system_role)
        async with asyncio.timeout(self.deadline_s):
            body = await self._fetch(messages, query.seed, deadline)
        return self._read(body)

    async def _fetch(self, messages: list[Message], seed: int, deadline: float) -> bytes:
        line = self.endpoint.line()
        attempts = 0
        try:
            async for attempt in self.retry.attempts(deadline, seed):
                with attempt:
                    attempts += 1
                    async with line.limit:
                        return await self._request(line.client, messages, seed)
        except TooLongError as error:
            raise AgentError(f"{self._where}: {error}", AgentFailure.UNREACHABLE) from None
        except OpenAIError as error:
            raise self._failure(error, attempts) from None  # its cause's request would show the key
        raise AssertionError("tenacity returns or raises")

    async def _request(self, client: AsyncOpenAI, messages: list[Message], seed: int) -> bytes:
        how = self.sampling
        # The raw response: what the SDK makes of a body that is no completion differs by its content type.
        response = await client.chat.completions.with_raw_response.create(
            model=self.model,
            messages=cast(Any, messages),  # plain dictionaries of the SDK's form
            extra_body=json.loads(how.extra_body) | how.fields(seed % _SEEDS),
        )
        body = bytes(response.content)
        if error := embedded_error(body):
            raw = response.http_response
            said = httpx2.Response(
                error.status, headers=_retry_after(raw), request=raw.request, text=error.said
            )
            raise APIStatusError(error.said, response=said, body=None)
        return body

    def _read(self, body: bytes) -> AgentReply:
        usage = self.prices.usage(*counts_of(body))
        try:
            words = words_of(body)
        except AgentError as error:
            reason = self.endpoint.without_key(f"unreadable response of {self.endpoint.host}: {error}")
            raise AgentError(reason, error.failure, usage) from None
        try:
            reading = self.spec.read(words)
        except AgentError as error:
            raise AgentError(self.endpoint.without_key(str(error)), error.failure, usage) from None
        return AgentReply(text=reading.words, approves=reading.approves, usage=usage)

    def _failure(self, error: OpenAIError, attempts: int) -> AgentError:
        """Say what went wrong without the key and without the SDK's objects."""
        tried = f" ({attempts} attempts)" if attempts > 1 else ""
        if isinstance(error, APIStatusError):
            said = excerpt(self.endpoint.without_key(error.response.text))
            wait = retry_after_s(error)
            later = f", to be asked again in {wait:g} s" if wait is not None else ""
            passing = error.status_code == 429 or error.status_code >= 500
            failure = AgentFailure.UNREACHABLE if passing else AgentFailure.REFUSED
            hint = forbidden_field(error.response.text) if failure is AgentFailure.REFUSED else ""
            said = f"{said or 'no explanation'}{hint}"
            reason = f"{self._where}: status {error.status_code}{later}{tried}: {said}"
            return AgentError(reason, failure)
        cause = error.__cause__ if isinstance(error, APIConnectionError) else None
        why = excerpt(self.endpoint.without_key(str(cause or error))) or type(cause or error).__name__
        return AgentError(f"{self._where}: cannot be reached{tried}: {why}", AgentFailure.UNREACHABLE)

    @property
    def _where(self) -> str:
        return f"{self.endpoint.base_url}, model {self.model!r}"


def forbidden_field(text: str) -> str:
    """Return the way out where a server's explanation names a field that it forbids; else ''."""
    named = [name for name in OMITTED if re.search(rf"(?<![a-z_]){name}(?![a-z_])", text)]
    if "max_completion_tokens" in text:
        return "; set agents.token_limit_field = 'max_completion_tokens'"
    if named:
        return f"; leave it out of requests with agents.omit = {named}"
    if _NO_SYSTEM.search(text):
        return "; put the system text into the user's message with agents.system_role = false"
    return ""


def _retry_after(response: httpx2.Response) -> dict[str, str]:
    stated = response.headers.get("retry-after")
    return {"retry-after": stated} if stated else {}


class _Bounded(httpx2.AsyncByteStream):
    """The body of a response, up to a length."""

    def __init__(self, body: httpx2.AsyncByteStream, most: int) -> None:
        self._body, self._most = body, most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for chunk in self._body:
            read += len(chunk)
            if read > self._most:
                raise TooLongError(f"a response longer than agents.max_reply_bytes = {self._most}")
            yield chunk

    async def aclose(self) -> None:
        await self._body.aclose()


class _BoundedTransport(httpx2.AsyncHTTPTransport):
    """Bounds every body, those of errors too, before anything else reads it."""

    def __init__(self, most: int, encrypted: bool) -> None:
        # Certificates take a while to load and matter to https only; the semaphore is the limit.
        super().__init__(verify=encrypted, limits=httpx2.Limits(max_connections=None))
        self._most = most

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        coding = response.headers.get("content-encoding", "identity").lower()
        if coding != "identity":  # which was not asked for, and a few bytes of which can be a gigabyte
            await response.aclose()
            raise TooLongError(f"a response in content-encoding {excerpt(coding)!r}, which was not asked for")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Bounded(response.stream, self._most)
        return response


def _client(endpoint: Endpoint, key: str) -> AsyncOpenAI:
    http = DefaultAsyncHttpxClient(
        transport=_BoundedTransport(endpoint.max_reply_bytes, endpoint.base_url.startswith("https:")),
        headers={"Accept-Encoding": "identity"},
        follow_redirects=False,  # a key is for the server that it was given to
        timeout=None,  # `RemoteAgent.answer` holds the one deadline
    )
    return AsyncOpenAI(
        api_key=key,
        organization="",
        project="",
        base_url=endpoint.base_url,
        max_retries=0,
        timeout=None,
        http_client=http,
    )
