"""Processes that answer one JSON line with another: foreign or slow Python, off the event loop.

Each question has a deadline; a process that passes it, or ends, is replaced by a new one for the next
question. Several questions go to several processes, and a thread waits for each.
"""

import asyncio
import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import LifoQueue
from typing import Any, BinaryIO

WORKER = Path(__file__).with_name("outside_worker.py")
_END_S = 10.0
_LONGEST_LINE = 64 << 20
_SAID_BYTES = 600
_PART = 1 << 16


class OutsideError(Exception):
    """A process gave no reply; the message says why."""

    def __init__(self, reason: str, code: int | None = None) -> None:
        """`code`: the exit code of a process that ended; None: it did not answer in time, or not in JSON."""
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideCommand:
    """How such a process is started."""

    arguments: Sequence[str]
    """Of `outside_worker.py`."""
    interpreter: str = ""
    """The Python of the environment that the library is installed in; '': this one."""
    start_s: float = 120.0
    """Deadline of a start, which imports the library."""
    paths: Sequence[str] = ()
    """What `import` finds beside the interpreter's own packages."""

    def line(self) -> list[str]:
        """Return the command line."""
        return [self.interpreter or sys.executable, "-P", "-W", "ignore", str(WORKER), *self.arguments]

    def environment(self) -> dict[str, str]:
        """Return the environment: a fixed hash seed, on which what a generator draws may depend."""
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        ours = list(self.paths) if self.interpreter else [*self.paths, *filter(None, sys.path)]
        return inherited | {"PYTHONPATH": os.pathsep.join(ours), "PYTHONHASHSEED": "0"}


@dataclass(slots=True, kw_only=True)
class _Process:
    """One process, or none yet. Used by one thread at a time; only `kill` may come from another."""

    command: OutsideCommand
    process: subprocess.Popen[bytes] | None = None
    errors: BinaryIO | None = None
    rest: bytes = b""
    """What was read behind the last line."""
    greeting: Mapping[str, Any] = field(default_factory=dict)
    killed: bool = False

    def ask(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Put one question. Raises `OutsideError`."""
        try:
            if self.process is None or self.process.poll() is not None:
                self.start()
            assert self.process is not None and self.process.stdin is not None
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
            return self.receive(timeout_s)
        except (OSError, ValueError) as error:
            raise self.ended(repr(error)) from error
        except OutsideError:
            self.stop()
            raise

    def start(self) -> None:
        """Start a process and wait until it is ready."""
        self.stop()
        if self.killed:
            raise OutsideError("the pool was closed")
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        try:
            self.process = subprocess.Popen(
                self.command.line(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                env=self.command.environment(),
                start_new_session=True,  # Ctrl-C is for the parent; it closes the pipe and the process leaves
            )
        except OSError as error:
            raise OutsideError(f"{self.command.line()[0]} cannot be started: {error}") from error
        try:
            first = self.receive(self.command.start_s)
        except OutsideError as error:
            raise OutsideError(f"its start: {error}") from error  # without a code: no question did this
        if "ready" not in first:
            raise OutsideError(str(first.get("error", first)))
        self.greeting = first["ready"]

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return the next line. Raises `OutsideError`."""
        assert self.process is not None and self.process.stdout is not None
        deadline = time.monotonic() + timeout_s
        parts, size = [self.rest], len(self.rest)
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in parts[-1]:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise OutsideError(f"no reply within {timeout_s:g} s")
                part = os.read(self.process.stdout.fileno(), _PART)
                size += len(part)
                if not part:
                    raise self.ended("it ended")
                if size > _LONGEST_LINE:
                    raise OutsideError(f"a reply of more than {_LONGEST_LINE >> 20} MB")
                parts.append(part)
        line, _, self.rest = b"".join(parts).partition(b"\n")
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise OutsideError(f"{line[:60]!r} is no reply")
        return found

    def ended(self, why: str) -> OutsideError:
        """Return the error of a process that answers no more, with the last that it printed."""
        code = None
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.process.wait(_END_S)
        said = self._last_words()
        self.stop()
        return OutsideError(f"{why}, exit code {code}{said}", code)

    def _last_words(self) -> str:
        if self.errors is None:
            return ""
        end = self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, end - _SAID_BYTES))
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def kill(self) -> None:
        """Kill the process for good."""
        self.killed = True
        if self.process is not None:
            self.process.kill()

    def stop(self) -> None:
        """Kill the process, wait for its end and forget it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what was not sent is not sent any more
                        pipe.close()
        if self.errors is not None:
            self.errors.close()
        self.process, self.errors, self.rest = None, None, b""


def _stop_all(processes: Sequence[_Process]) -> None:
    for process in processes:
        process.stop()


class OutsidePool:
    """`workers` processes of one command. None runs before the first question; close the pool when done.

    A forgotten pool is closed at exit, and a process whose parent was killed ends by itself.
    """

    def __init__(self, command: OutsideCommand, workers: int = 1) -> None:
        self._processes = [_Process(command=command) for _ in range(workers)]
        self._idle: LifoQueue[_Process] = LifoQueue()  # who answered last: no start where one is ready
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="outside")
        self._finalizer = weakref.finalize(self, _stop_all, self._processes)

    async def ask(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Return the reply to a question, from any event loop; waiting for a free process is not its time.

        Raises:
            OutsideError: There is none.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self.ask_now, message, timeout_s)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return any(process.killed for process in self._processes)

    def ask_now(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Return the reply to a question, and wait for it. Raises `OutsideError`."""
        process = self._idle.get()
        try:
            return process.ask(message, timeout_s)
        finally:
            self._idle.put(process)

    def greeting(self) -> Mapping[str, Any]:
        """Return what a process says when it is ready. Raises `OutsideError` where none gets ready."""
        process = self._idle.get()
        try:
            if process.process is None:
                process.start()
            return process.greeting
        except OutsideError:
            process.stop()
            raise
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End all processes; questions under way have no reply. Closing twice is harmless."""
        for process in self._processes:
            process.kill()
        self._threads.shutdown(wait=True)
        self._finalizer()
