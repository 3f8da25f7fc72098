"""Symbolic equality in processes that can be killed, from any event loop.

A question ends within the deadline plus one start, and whatever happens to its process is UNGRADED for that
question alone.

Not an alarm and not a ProcessPoolExecutor: an alarm does not interrupt big-integer arithmetic
(https://github.com/huggingface/Math-Verify/issues/65) and an executor keeps its hung workers
(https://github.com/verl-project/verl/pull/5839). Not multiprocessing's spawn either: its child runs the
user's main script again, so a training script without an `if __name__` guard could not be graded; `pebble`,
which was tried, starts its workers in the same way.
"""

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.extract import extract_answer
from aipo.grading.guards import decide
from aipo.grading.text import clean

START_S = 60.0
"""Deadline of a process start, which imports sympy; separate from a question's deadline."""

_VERDICTS = {"equal": Verdict.CORRECT, "different": Verdict.INCORRECT, "unparsed": Verdict.INCORRECT}


class _Worker:
    """One grader process, or none yet. Used by one thread at a time; only `kill` may come from another."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.process: subprocess.Popen[bytes] | None = None
        self.pipe: Connection | None = None

    def ask(self, gold: str, answer: str) -> Grade:
        """Put one question; the process is started first if there is none, and killed if it fails."""
        try:
            if self.pipe is None or self.process is None or self.process.poll() is not None:
                self.stop()
                self.pipe = self._start()
            self.pipe.send_bytes(json.dumps([gold, answer]).encode())
            if not self.pipe.poll(self.timeout_s):
                self.stop()
                return Grade(Verdict.UNGRADED, "timeout")
            reply = self.pipe.recv_bytes().decode()
        except (EOFError, OSError) as error:
            self.stop()
            return Grade(Verdict.UNGRADED, f"crash: {error or type(error).__name__}")
        return Grade(_VERDICTS.get(reply, Verdict.UNGRADED), reply)

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        with theirs:
            arguments = str(theirs.fileno()), str(self.timeout_s)
            # The parent's import path, as spawn passes it; a fixed hash seed, on which sympy's order depends.
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "0"}
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", "-m", "aipo.grading.worker", *arguments],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the parent; it closes the pipe and the worker leaves
            )
        if not ours.poll(START_S):
            raise TimeoutError("the grader process did not start")
        ours.recv_bytes()
        return ours

    def kill(self) -> None:
        """Kill the process; a question under way then ends as a crash."""
        if self.process is not None:
            self.process.kill()

    def stop(self) -> None:
        """Kill the process, wait for its end and forget it."""
        self.kill()
        if self.process is not None:
            self.process.wait()
        if self.pipe is not None:
            self.pipe.close()
        self.process = self.pipe = None


def _stop_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()


class MathPool:
    """Compares answers by math-verify in `workers` processes, each question within `timeout_s`.

    No process runs before the first question that needs one. Close the pool when done; a forgotten one is
    closed at exit, and a process whose parent was killed ends by itself.

    Raises:
        ValueError: `workers` or `timeout_s` is not positive.
        ImportError: math-verify is not installed.
    """

    def __init__(self, workers: int = 1, timeout_s: float = 2.0) -> None:
        if workers < 1 or timeout_s <= 0:
            raise ValueError(f"workers = {workers}, timeout_s = {timeout_s}: both must be positive")
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError("grading by mathematics needs math-verify: pip install 'math-verify>=0.9'")
        self._workers = [_Worker(timeout_s) for _ in range(workers)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        # As many threads as workers: no thread waits for a worker, and the loop's own executor stays free.
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="math-pool")
        self._closed = False
        self._finalizer = weakref.finalize(self, _stop_all, self._workers)

    async def equal(self, gold: str, answer: str) -> Grade:
        """Grade `answer` against `gold`, both as LaTeX without delimiters.

        Safe from any number of tasks and from several event loops, one after the other or at the same time.
        A cancelled caller leaves its question to end by itself.

        Returns:
            CORRECT or INCORRECT with the rule that decided it; UNGRADED with `timeout`, `crash: ...`,
            `error: ...` or `gold: ...` where grading itself failed.

        Raises:
            RuntimeError: the pool is closed.
        """
        if self._closed:
            raise RuntimeError("this MathPool is closed")
        if (early := decide(gold, answer)) is not None:
            return early
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._ask, clean(gold), clean(answer))

    def _ask(self, gold: str, answer: str) -> Grade:
        if self._closed:
            return Grade(Verdict.UNGRADED, "crash: the pool was closed")
        worker = self._idle.get()
        try:
            return worker.ask(gold, answer)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End all processes; questions under way become UNGRADED. Closing twice is harmless."""
        self._closed = True
        for worker in self._workers:
            worker.kill()  # frees the threads that wait for a reply
        self._threads.shutdown(wait=True)
        self._finalizer()


async def grade_math(response: str, gold: str, pool: MathPool) -> Grade:
    """Grade the assistant's whole turn against a gold answer in LaTeX: extract, compare as text, as algebra.

    A response without an answer is INCORRECT and counted separately, as `no_answer`.

    Raises:
        RuntimeError: the pool is closed. Never for what the response contains.
    """
    answer = extract_answer(response)
    if answer is None:
        return Grade(Verdict.INCORRECT, "no_answer")
    return await pool.equal(gold, answer)
