"""A vLLM server that aipo starts and ends itself.

A server that was started is in a process group of its own, listens on 127.0.0.1 only, and is gone when `stop`
returns or this process ends, however it ends.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2

from aipo.engines.base import EngineError

STARTS = 2
"""A start that dies is tried once more: 2 of 14 did on a loaded machine (docs/engines.md), cause unknown."""
POLL_S = 0.25
LOG_LINES_SHOWN = 12
NOT_INHERITED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_")
"""What torchrun tells each rank, by beginnings and ends of names: a server would take itself for one."""
OPENS = ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")
"""What opens the paths through which weights and adapters are changed."""
ENVIRONMENT = dict.fromkeys((*OPENS, "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"), "1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlan:
    """How to start a server."""

    command: tuple[str, ...]
    """Without --host and --port."""
    log: Path
    """What it prints goes here; the log of a start that died is kept beside it as `*.died.log`."""
    start_timeout_s: float
    environment: Mapping[str, str]
    """Added to this process's."""


class VllmServer:
    """One server."""

    def __init__(self, plan: ServerPlan) -> None:
        self._plan = plan
        self._process: subprocess.Popen[bytes] | None = None
        self._deadline_s = 0.0
        self.url = ""

    def start(self) -> None:
        """Start it and wait until it is healthy. Raises `EngineError` with the end of its log."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it; `wait` comes next. From a thread that lives as long as the server: it ends with it."""
        atexit.register(self.stop)
        self._deadline_s = time.monotonic() + self._plan.start_timeout_s
        self._launch()

    def wait(self) -> None:
        """Wait until it is healthy, and start it once more if it dies. Raises `EngineError`; see `start`."""
        for attempt in range(1, STARTS + 1):
            if self._wait(self._deadline_s):
                return
            code = self._process.poll() if self._process is not None else None
            self.stop()
            if code is None:
                raise EngineError(
                    f"the policy server was not ready within engine.start_timeout_s = "
                    f"{self._plan.start_timeout_s:g} s; {self.log_end()}"
                )
            if attempt < STARTS:
                self._plan.log.replace(self._plan.log.with_suffix(".died.log"))
                atexit.register(self.stop)
                self._launch()
        raise EngineError(f"the policy server ended with status {code} while it started; {self.log_end()}")

    def stop(self) -> None:
        """End all its processes; nothing happens where none runs."""
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.stop)
        # It holds nothing that is worth a quiet end, and Ctrl-C has five seconds in all.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def ended(self) -> bool:
        """Whether it was started and has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def log_end(self) -> str:
        """Return the last lines of the log, with its place, for an error."""
        try:
            lines = self._plan.log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        return "\n".join([f"its log is {self._plan.log} and ends:", *lines[-LOG_LINES_SHOWN:]])

    def _launch(self) -> None:
        self._plan.log.parent.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        keeper = [sys.executable, "-m", "aipo.engines.keeper", str(os.getpid())]
        command = [*keeper, *self._plan.command, "--host", "127.0.0.1", "--port", str(port)]
        with self._plan.log.open("wb") as log:
            log.write((" ".join(command) + "\n").encode())
            log.flush()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_inherited() | ENVIRONMENT | dict(self._plan.environment),
                start_new_session=True,
            )

    def _wait(self, deadline: float) -> bool:
        """Wait for health; False when the process has ended or time is up."""
        assert self._process is not None
        with httpx2.Client(trust_env=False, timeout=5.0) as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                try:
                    if client.get(f"{self.url}/health").status_code == 200:
                        return True
                except httpx2.HTTPError:
                    pass  # not listening yet
                time.sleep(POLL_S)
        return False


def start_together(servers: Sequence[VllmServer]) -> None:
    """Start servers at the same time and wait until all are healthy.

    Raises `EngineError`; whoever called stops those that run then, as after Ctrl-C.
    """
    for server in servers:
        server.launch()
    for server in servers:
        server.wait()


def _inherited() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(NOT_INHERITED) and not name.endswith(("_RANK", "_WORLD_SIZE"))
    }


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
