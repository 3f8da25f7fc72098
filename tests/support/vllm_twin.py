"""A twin of a vLLM server for tests: real HTTP on 127.0.0.1, a real tiny model behind it; it can misbehave.

It answers the paths that `aipo.engines.vllm` asks, in vLLM 0.32's own shapes (of a running server, which
tests/real_server drives). It samples with the in-process engine; `/collective_rpc` loads safetensors from
a folder, as vLLM does. It runs in a thread with an event loop of its own.
"""

import asyncio
import json
import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from aipo.core.types import StopReason
from aipo.engines.base import Completion, GenerationRequest, Sampling
from aipo.engines.transformers import TransformersEngine

PATHS = ["/v1/completions", "/tokenize", "/collective_rpc", "/reset_prefix_cache", "/weight_info"]
PATHS += ["/update_weight_version", "/server_info", "/version"]


class Fault(StrEnum):
    """What a request for a completion meets."""

    HANG = "hang"
    ERROR = "error"
    CLOSE = "close"
    CUT = "cut"
    DRIP = "drip"
    NO_JSON = "no_json"
    WRONG_SCHEMA = "wrong_schema"
    NO_LOG_PROBS = "no_log_probs"
    NULL_LOG_PROB = "null_log_prob"
    FEWER_LOG_PROBS = "fewer_log_probs"
    ABORTED = "aborted"
    RESTARTED = "restarted"


class Twin:
    """One server. `fault` says for a completion's body what goes wrong; None: nothing."""

    def __init__(self, policy: Path, port: int = 0, max_tokens: int = 4096) -> None:
        self.policy, self.port, self.max_tokens = policy, port, max_tokens
        self.mode, self.dtype = "raw_logprobs", "torch.float32"
        self.fault: Callable[[dict[str, Any]], Fault | None] = lambda body: None
        self.refuse_weights = self.takes_adapters = False
        self.more: dict[str, Any] = {}
        self.requests: list[tuple[str, Any]] = []
        self.version = "default"
        self.tokenizer = AutoTokenizer.from_pretrained(policy)
        self._thread: threading.Thread | None = None
        self._load_from_disk()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Twin":
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(20)
            self._thread = None

    def completions(self) -> list[dict[str, Any]]:
        """Bodies of all requests for a completion so far."""
        return [body for path, body in self.requests if path == "/v1/completions"]

    # inside

    def _load_from_disk(self) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(self.policy, dtype=torch.float32).eval()
        self.engine = TransformersEngine(self.model, self.tokenizer, slots=32, capacity=self.max_tokens)
        self.version, self.adapter = "default", ""

    def _load_adapters(self, body: dict[str, str]) -> None:
        """Put them beside the weights that are on the disk."""
        from peft import PeftModel

        plain = AutoModelForCausalLM.from_pretrained(self.policy, dtype=torch.float32)
        whole = PeftModel.from_pretrained(plain, body["lora_path"]).merge_and_unload()
        self.model.load_state_dict(whole.state_dict())
        self.adapter = body["lora_name"]

    def _serve(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main(ready))

    async def _main(self, ready: threading.Event) -> None:
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stopping.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while (head := await reader.readuntil(b"\r\n\r\n")) and await self._one(head, reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client or the test has ended
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False when the connection is to be closed."""
        first, *lines = head.decode().split("\r\n")
        _, target, _ = first.split(" ")
        path = target.partition("?")[0]
        lengths = [int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length")]
        raw = await reader.readexactly(lengths[0]) if lengths else b""
        body = json.loads(raw) if raw else None
        self.requests.append((path, body))
        if path == "/v1/completions":
            return await self._completion(body, writer)
        status, answer = self._simple(path, body)
        await _send(writer, status, b"" if answer is None else json.dumps(answer).encode())
        return True

    def _simple(self, path: str, body: Any) -> tuple[int, Any]:
        name = str(self.policy)
        if path == "/health":
            return 200, {}
        if path == "/v1/models":
            return 200, {"data": [{"id": name, "root": name, "max_model_len": self.max_tokens}]}
        if path == "/server_info":
            config = {"logprobs_mode": self.mode, "dtype": self.dtype, "max_model_len": self.max_tokens}
            lora = {"lora_config": {"max_lora_rank": 16}} if self.takes_adapters else {}
            return 200, {"vllm_config": {"model_config": config, **lora, **self.more}}
        if path == "/openapi.json":
            paths = [*PATHS, *(["/v1/load_lora_adapter"] if self.takes_adapters else [])]
            return 200, {"paths": {name: {} for name in paths}}
        if path == "/tokenize":
            return 200, {"tokens": self.tokenizer.encode(body["prompt"], add_special_tokens=False)}
        if path == "/weight_info":
            return 200, {"weight_version": self.version}
        if path == "/update_weight_version":
            self.version = body["new_version"]
            return 200, {"success": True, "new_version": self.version}
        if path == "/reset_prefix_cache":
            return 200, {"success": True}
        if path == "/collective_rpc" and self.refuse_weights:
            return 500, {"error": {"message": "Call to collective_rpc method failed: Worker failed"}}
        if path == "/v1/load_lora_adapter" and self.takes_adapters:
            self._load_adapters(body)
            return 200, None
        if path == "/v1/unload_lora_adapter" and self.takes_adapters:
            return 200, None
        if path == "/collective_rpc":
            weights = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
            self.model.load_state_dict(weights, strict=False)
            return 200, {"results": [None]}
        return 404, {"detail": "Not Found"}

    async def _completion(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        fault = self.fault(body)
        if body["model"] not in (self.adapter or str(self.policy),):
            await _send(writer, 404, b'{"error":{"message":"The model does not exist.","code":404}}')
            return True
        if fault is Fault.HANG:
            await self._stopping.wait()
            return False
        if fault is Fault.CLOSE:
            return False
        if fault is Fault.ERROR:
            await _send(writer, 500, b'{"error":{"message":"EngineCore encountered an issue.","code":500}}')
            return True
        if fault is Fault.RESTARTED:
            self._load_from_disk()
        request = GenerationRequest(
            session=f"twin-{len(self.requests)}-{body['seed']}",
            prefix_ids=tuple(body["prompt"]),
            max_new_tokens=body["max_tokens"],
            stop=tuple(body["stop"]),
            banned_sequences=tuple((int(i),) for i in body.get("logit_bias", {})),
            sampling=Sampling(temperature=body["temperature"], top_p=body["top_p"], top_k=body["top_k"]),
            seed=body["seed"],
        )
        completion = await self.engine.generate(request)
        await self.engine.release(request.session)
        answer = _answer(completion, body, fault)
        return await self._sent(writer, json.dumps(answer).encode(), fault)

    async def _sent(self, writer: asyncio.StreamWriter, answer: bytes, fault: Fault | None) -> bool:
        if fault is Fault.NO_JSON:
            answer = b"<html>Bad Gateway \xff</html>"
        if fault not in (Fault.CUT, Fault.DRIP):
            await _send(writer, 200, answer)
            return True
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer))
        if fault is Fault.CUT:
            writer.write(answer[: len(answer) // 2])
            await writer.drain()
            return False
        for byte in answer:  # a byte a second: no read ever times out, the whole does
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(1)
        return True


def _answer(completion: Completion, body: dict[str, Any], fault: Fault | None) -> dict[str, Any]:
    ids, log_probs = list(completion.ids), list[Any](completion.log_probs)
    reasons = {StopReason.END: ids[-1], StopReason.STOP_STRING: next(iter(body["stop"]), None)}
    choice: dict[str, Any] = {
        "index": 0,
        "text": "",
        "token_ids": ids,
        "logprobs": {"token_logprobs": log_probs, "tokens": [], "text_offset": []},
        "finish_reason": "length" if completion.stop is StopReason.LENGTH else "stop",
        "stop_reason": reasons.get(completion.stop),
    }
    if fault is Fault.NO_LOG_PROBS:
        choice["logprobs"] = None
    if fault is Fault.NULL_LOG_PROB:
        log_probs[-1] = None
    if fault is Fault.FEWER_LOG_PROBS:
        del log_probs[-1]
    if fault is Fault.ABORTED:
        choice |= {"finish_reason": "abort", "stop_reason": None}
        del ids[-1:], log_probs[-1:]
    if fault is Fault.WRONG_SCHEMA:
        return {"result": {"output": "hello"}}
    return {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [choice]}


async def _send(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    reason = {200: "OK", 404: "Not Found", 500: "Internal Server Error"}[status]
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
