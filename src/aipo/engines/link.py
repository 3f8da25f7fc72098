"""One HTTP client for a policy server: JSON in, JSON out, within a deadline.

A call ends within its deadline, in an answer or in an `EngineError` that names the server and the fix; the
key is never in a message. What can be asked twice is, where a server or a proxy before it is busy for now.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from itertools import cycle
from math import ceil
from random import Random
from typing import Any

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from aipo.engines.base import EngineError

KEEP_ALIVE_S = 1.0
"""Idle connections are dropped sooner than any server does it, so that none breaks while it is being used."""
CONNECTIONS_OF_A_CLIENT = 64
"""A client looks at each of its connections before each request: with 2,000 that was half of a process's time
and held up its event loop for 80 ms (benchmarks/load.py)."""
ATTEMPTS, FIRST_WAIT_S, LONGEST_WAIT_S = 6, 0.5, 8.0
"""Of what can be asked twice: the longest wait before the second attempt is doubled for each further one."""
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""What a server says that may answer a moment later."""
SHOWN_CHARACTERS = 300
"""Of what a server says in an error."""


class _BusyError(EngineError):
    """The server cannot answer for now; `retry_after_s`: when it wants to be asked again, if it says so."""

    retry_after_s: float | None = None


class HttpLink:
    """A server at one address. Usable from one event loop after another, not from two at once."""

    def __init__(self, url: str, *, timeout_s: float, concurrency: int, key: str | None = None) -> None:
        """`concurrency` bounds the calls of `post(..., bounded=True)`. Raises `EngineError` for a bad URL."""
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise EngineError(f"{url!r} is not a URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise EngineError(f"{url!r} is not a URL such as http://127.0.0.1:8000")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.timeout_s = timeout_s
        self._concurrency, self._key = concurrency, key
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clients: Iterator[httpx2.AsyncClient]
        self._slots: asyncio.Semaphore
        self._jitter = Random(self.url)

    async def get(self, path: str) -> Any:
        """Return the JSON behind a path. Raises `EngineError`."""
        return await self._asked("GET", path, None, self.timeout_s)

    async def post(
        self, path: str, body: Mapping[str, Any], timeout_s: float | None = None, bounded: bool = False
    ) -> Any:
        """Return what the server answers: JSON, or {} for a confirmation in words.

        `bounded`: it is one of the many calls that change nothing and can be made again; the wait for one of
        the places is outside the deadline. Raises `EngineError`.
        """
        self._open()
        if not bounded:
            return await self._call("POST", path, body, timeout_s or self.timeout_s)
        async with self._slots:
            return await self._asked("POST", path, body, timeout_s or self.timeout_s)

    async def _asked(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> Any:
        """Call, and call again while the server is busy, all within one deadline."""
        deadline = time.monotonic() + timeout_s

        def stop(state: RetryCallState) -> bool:
            too_late = time.monotonic() + (state.upcoming_sleep or 0.0) >= deadline
            return state.attempt_number >= ATTEMPTS or too_late

        again = retry_if_exception_type(_BusyError)
        async for attempt in AsyncRetrying(retry=again, wait=self._wait_s, stop=stop, reraise=True):
            with attempt:
                return await self._call(method, path, body, timeout_s, deadline - time.monotonic())

    def _wait_s(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        stated = error.retry_after_s if isinstance(error, _BusyError) else None
        # Full jitter: rollouts that were turned away together must not come back together.
        longest = min(FIRST_WAIT_S * 2 ** (state.attempt_number - 1), LONGEST_WAIT_S)
        return (stated or 0.0) + longest * self._jitter.random()

    def _open(self) -> None:
        """Make a client of the running loop's; one of an ended loop cannot be used, or closed, any more."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        limits = httpx2.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        secure = httpx2.create_ssl_context()  # takes longer than all the rest, and may be shared
        self._clients = cycle(
            # trust_env: a proxy of the environment must not stand between a run and its own server.
            httpx2.AsyncClient(verify=secure, limits=limits, headers=headers, timeout=None, trust_env=False)
            for _ in range(ceil(self._concurrency / CONNECTIONS_OF_A_CLIENT))
        )
        self._slots = asyncio.Semaphore(self._concurrency)
        self._loop = loop

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        timeout_s: float,
        left_s: float | None = None,
    ) -> Any:
        """Call once. `left_s`: what earlier attempts have left of `timeout_s`; None: all of it."""
        self._open()
        where = f"policy server {self.url}{path}"
        try:
            async with asyncio.timeout(timeout_s if left_s is None else left_s):
                response = await self._sent(method, path, body)
        except TimeoutError as error:
            raise EngineError(
                f"{where} did not answer within {timeout_s:g} s; raise engine.request_timeout_s if it is slow"
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise EngineError(
                f"{where} cannot be reached ({type(error).__name__}: {error}); is it running, and is "
                "its address right?"
            ) from error
        if response.status_code in BUSY:
            busy = _BusyError(f"{where} answered {response.status_code}: {_said(response)}")
            after = response.headers.get("Retry-After", "")
            busy.retry_after_s = float(after) if after.isdecimal() else None
            raise busy
        if response.status_code >= 400:
            raise EngineError(f"{where} answered {response.status_code}: {_said(response)}")
        confirmed = response.headers.get("Content-Type", "text/plain").startswith("text/plain")
        if not response.content or (confirmed and method == "POST"):
            return {}
        try:
            return response.json()
        except ValueError as error:
            raise EngineError(f"{where} answered no JSON: {_said(response)}") from error

    async def _sent(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx2.Response:
        """Send a request, once more where the connection broke: a draw depends on its seed, not on when."""
        client = next(self._clients)
        try:
            return await client.request(method, self.url + path, json=body)
        except (httpx2.NetworkError, httpx2.RemoteProtocolError):
            return await client.request(method, self.url + path, json=body)


def _said(response: httpx2.Response) -> str:
    """Return the readable part of an error, on one line."""
    text = response.text
    try:
        found = response.json()
    except ValueError:
        found = None
    if isinstance(found, dict):
        inner = found.get("error", found.get("detail", found))
        text = str(inner.get("message", inner)) if isinstance(inner, dict) else str(inner)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text[:SHOWN_CHARACTERS] or "nothing"
