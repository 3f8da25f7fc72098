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
from typing import Any, cast
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import httpx2
from openai import (
    APIConnectionError,
    APIStatusError,
    AsyncOpenAI,
    DefaultAsyncHttpxClient,
    OpenAIError,
    omit,
)
from pydantic import BaseModel, Field, ValidationError

from aipo.agents.base import AgentError, AgentFailure, AgentQuery, AgentReply, Usage
from aipo.agents.prompting import Context, Message
from aipo.agents.replies import excerpt
from aipo.agents.retry import RetryPolicy, TooLongError, retry_after_s
from aipo.agents.spec import AgentSpec

TOKENS_OF_A_PRICE = 1_000_000
_KEY = re.compile(r"[!-~]+")
_SEEDS = 2**31
"""Servers take a seed as a 32-bit or 64-bit integer; this fits both."""


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Counts(BaseModel):
    prompt_tokens: int = Field(0, ge=0, lt=2**40)
    completion_tokens: int = Field(0, ge=0, lt=2**40)


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Counts | None = None


class _CountsOnly(BaseModel):
    usage: _Counts


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

    @property
    def seeded(self) -> bool:
        """Whether a reply depends on the seed."""
        return self.temperature > 0


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

    @property
    def name(self) -> str:
        """The spec's."""
        return self.spec.name

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Return what the model said, read. Raises `AgentError`, and `TimeoutError` at the deadline."""
        deadline = time.monotonic() + self.deadline_s
        messages = self.spec.prompt.messages(self.context.seen(query))
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
            temperature=how.temperature,
            top_p=how.top_p,
            extra_body={**json.loads(how.extra_body), how.limit_field: how.max_tokens},
            seed=seed % _SEEDS if how.seeded else omit,
        )
        return bytes(response.content)

    def _read(self, body: bytes) -> AgentReply:
        try:
            completion = _Completion.model_validate_json(body)
        except ValidationError as error:
            found = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, found["loc"])) or "body"
            raise AgentError(
                f"unreadable response of {self.endpoint.host}: {place}: {excerpt(found['msg'])}",
                AgentFailure.UNREADABLE,
                self._usage_of(body),
            ) from None
        counts = completion.usage or _Counts()
        usage = self.prices.usage(counts.prompt_tokens, counts.completion_tokens)
        try:
            reading = self.spec.read(completion.choices[0].message.content or "")
        except AgentError as error:
            raise AgentError(self.endpoint.without_key(str(error)), error.failure, usage) from None
        return AgentReply(text=reading.words, approves=reading.approves, usage=usage)

    def _usage_of(self, body: bytes) -> Usage:
        """Return what a response of a wrong shape says that it cost."""
        try:
            counts = _CountsOnly.model_validate_json(body).usage
        except ValidationError:
            return Usage()
        return self.prices.usage(counts.prompt_tokens, counts.completion_tokens)

    def _failure(self, error: OpenAIError, attempts: int) -> AgentError:
        """Say what went wrong without the key and without the SDK's objects."""
        tried = f" ({attempts} attempts)" if attempts > 1 else ""
        if isinstance(error, APIStatusError):
            said = excerpt(self.endpoint.without_key(error.response.text))
            wait = retry_after_s(error)
            later = f", to be asked again in {wait:g} s" if wait is not None else ""
            passing = error.status_code == 429 or error.status_code >= 500
            failure = AgentFailure.UNREACHABLE if passing else AgentFailure.REFUSED
            reason = f"{self._where}: status {error.status_code}{later}{tried}: {said or 'no explanation'}"
            return AgentError(reason, failure)
        cause = error.__cause__ if isinstance(error, APIConnectionError) else None
        why = excerpt(self.endpoint.without_key(str(cause or error))) or type(cause or error).__name__
        return AgentError(f"{self._where}: cannot be reached{tried}: {why}", AgentFailure.UNREACHABLE)

    @property
    def _where(self) -> str:
        return f"{self.endpoint.base_url}, model {self.model!r}"


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
