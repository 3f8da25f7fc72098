"""The two servers of `benchmarks/load.py`: a policy server that speaks as vLLM does, and a server of agents.

    python benchmarks/load_servers.py policy PORT FACTS.json
    python benchmarks/load_servers.py agents PORT FACTS.json

Each is a process of its own over real HTTP. What the policy "samples" is a function of the request's seed, so
that whoever asked can tell whose completion it was given. Of 100 requests 1 is never answered, 3 are answered
with 503, 5 with 429 and 1 by a reset. A server that was started anew has lost its weights.
"""

import asyncio
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

HANGS, ERRORS, LIMITED, RESETS = 0.01, 0.03, 0.05, 0.01
ASKS = 0.6
"""Of what the policy writes, the share that ends in a request to an agent."""
MEDIAN_S, SIGMA, LONGEST_S = 0.4, 0.6, 4.0
"""Of an answer: log-normal, cut."""
FACT = "FACT: no consultations left, request not understood"
Answer = tuple[int, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the policy server must know of the tokenizer."""

    request: tuple[int, ...]
    """A whole request to an agent."""
    end: int
    words: int
    """Ids from 300 up to here are words."""

    @classmethod
    def read(cls, path: Path) -> "Facts":
        """Return what `load.py` has written."""
        table = json.loads(path.read_text())
        return cls(request=tuple(table["request"]), end=table["end"], words=table["words"])


def written(facts: Facts, seed: int, limit: int, may_ask: bool) -> tuple[list[int], list[float], str]:
    """Return what the policy writes for a seed: ids, log-probabilities and why it ended."""
    rng = Random(seed)
    ids = [rng.randrange(300, facts.words) for _ in range(rng.randrange(8, 40))]
    asks = may_ask and rng.random() < ASKS
    ids += facts.request if asks else [facts.end]
    log_probs = [-round(rng.uniform(0.1, 3.0), 4) for _ in ids]
    if len(ids) > limit:
        return ids[:limit], log_probs[:limit], "length"
    return ids, log_probs, "request" if asks else "end"


class PolicyServer:
    """The paths of vLLM that `aipo.engines.vllm` asks."""

    faulty = ("/v1/completions", "/weight_info")

    def __init__(self, facts: Facts) -> None:
        self._facts, self._version = facts, "default"

    def answer(self, path: str, body: Any) -> Answer:
        """Return status and answer."""
        if path == "/v1/completions":
            return 200, self._completion(body)
        if path == "/v1/models":
            return 200, {"data": [{"id": "policy", "root": "policy", "max_model_len": 4096}]}
        if path == "/server_info":
            config = {"logprobs_mode": "raw_logprobs", "dtype": "torch.float32", "max_model_len": 4096}
            return 200, {"vllm_config": {"model_config": config}}
        if path == "/weight_info":
            return 200, {"weight_version": self._version}
        if path == "/openapi.json":
            return 200, {}
        if path == "/update_weight_version":
            self._version = body["new_version"]
        return 200, {"success": True}

    def _completion(self, body: Mapping[str, Any]) -> dict[str, Any]:
        stops = body["stop"]
        ids, log_probs, why = written(self._facts, body["seed"], body["max_tokens"], bool(stops))
        reason = {"end": ids[-1], "request": next(iter(stops), None), "length": None}[why]
        return {
            "choices": [
                {
                    "index": 0,
                    "text": "",
                    "token_ids": ids,
                    "logprobs": {"token_logprobs": log_probs},
                    "finish_reason": "length" if why == "length" else "stop",
                    "stop_reason": reason,
                }
            ]
        }


class AgentServer:
    """An OpenAI-compatible chat endpoint that knows one fact."""

    faulty = ("/v1/chat/completions",)

    def answer(self, path: str, body: Any) -> Answer:
        """Return status and answer."""
        message = {"role": "assistant", "content": FACT}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 70, "completion_tokens": 12, "total_tokens": 82}
        return 200, {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}


class Connections:
    """HTTP/1.1 on 127.0.0.1, with faults."""

    def __init__(self, server: PolicyServer | AgentServer, seed: int) -> None:
        self._server, self._rng = server, Random(seed)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ", 2)[1].partition("?")[0]
        length = next(
            (int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")), 0
        )
        raw = await reader.readexactly(length)
        body = json.loads(raw) if raw else None
        draw = self._rng.random() if path in self._server.faulty else 1.0
        if body and path in self._server.faulty:
            await asyncio.sleep(min(LONGEST_S, MEDIAN_S * math.exp(SIGMA * self._rng.gauss(0.0, 1.0))))
        for share, fault in self._faults():
            if draw < share:
                return await fault(writer)
            draw -= share
        status, answer = self._server.answer(path, body)
        await _send(writer, status, answer)
        return True

    def _faults(self) -> tuple[tuple[float, Callable[[asyncio.StreamWriter], Any]], ...]:
        return ((HANGS, _hang), (ERRORS, _error), (LIMITED, _limited), (RESETS, _reset))


async def _hang(writer: asyncio.StreamWriter) -> bool:
    while not writer.is_closing():
        await asyncio.sleep(1.0)
    return False


async def _error(writer: asyncio.StreamWriter) -> bool:
    await _send(writer, 503, {"error": {"message": "overloaded", "code": 503}})
    return True


async def _limited(writer: asyncio.StreamWriter) -> bool:
    await _send(writer, 429, {"error": {"message": "slow down", "code": 429}}, "Retry-After: 1\r\n")
    return True


async def _reset(writer: asyncio.StreamWriter) -> bool:
    writer.transport.abort()
    return False


async def _send(writer: asyncio.StreamWriter, status: int, answer: Any, more: str = "") -> None:
    body = json.dumps(answer).encode()
    head = f"HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}{more}\r\n".encode() + body)
    await writer.drain()


async def main() -> None:
    """Serve until killed."""
    kind, port, facts = sys.argv[1], int(sys.argv[2]), Facts.read(Path(sys.argv[3]))
    server = PolicyServer(facts) if kind == "policy" else AgentServer()
    connections = Connections(server, seed=port)
    listening = await asyncio.start_server(
        connections.serve, "127.0.0.1", port, backlog=4096, limit=2**22, reuse_address=True
    )
    async with listening:
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
