"""Symbolic equality in processes that can be killed, from any event loop.

A gold that cannot be read is UNGRADED. Once it was read, whatever the answer does to the process is
INCORRECT, running into the limit included: a policy cannot choose to be left out. The limit is CPU time, so
that a busy machine changes no verdict.

Not an alarm and not a ProcessPoolExecutor: an alarm does not interrupt big-integer arithmetic
(https://github.com/huggingface/Math-Verify/issues/65) and an executor keeps its hung workers
(https://github.com/verl-project/verl/pull/5839). Not multiprocessing's spawn either: its child runs the
user's main script again, so a training script without an `if __name__` guard could not be graded; `pebble`,
which was tried, starts its workers in the same way.
"""

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.extract import extract_answer
from aipo.grading.guards import answer_in, decide, gold_problem, needs_algebra, reading

GOLD = b"gold"
"""What a grader process says once the gold alone was read. `worker`, which imports sympy, stays there."""
_KILLED = "crash: killed from outside"

START_S = 60.0
"""Deadline of a process start, which imports sympy; separate from a question's deadline."""
STALL_FACTOR, STALL_S = 30, 60.0
"""A question that has not used its CPU time after this many times as long, and this long, is given up."""
_END_S = 10.0


class _Worker:
    """One grader process, or none yet. Used by one thread at a time; only `kill` may come from another."""

    def __init__(self, cpu_s: float) -> None:
        self.cpu_s = cpu_s
        self.process: subprocess.Popen[bytes] | None = None
        self.pipe: Connection | None = None
        self.killed = False

    def ask(self, gold: str, answer: str) -> Grade:
        """Put one question; the process is started first if there is none.

        Where the process was killed from outside, once more; where it is killed again, the answer did it.
        """
        grade = self._ask(gold, answer)
        if grade.reason == _KILLED and not self.killed:
            grade = self._ask(gold, answer)
            if grade.reason == _KILLED:
                return Grade(Verdict.INCORRECT, "crash: killed twice")
        return grade

    def _ask(self, gold: str, answer: str) -> Grade:
        readable = False
        try:
            if self.pipe is None or self.process is None or self.process.poll() is not None:
                self.stop()
                self.pipe = self._start()
            self.pipe.send_bytes(json.dumps([gold, answer]).encode())
            reply = self._receive()
            if readable := reply == GOLD:
                reply = self._receive()
        except (EOFError, OSError) as error:
            return self._failed(error, readable)
        said = reply.decode()
        if not readable:
            return Grade(Verdict.UNGRADED, said)
        return Grade(Verdict.CORRECT if said == "equal" else Verdict.INCORRECT, said)

    def _receive(self) -> bytes:
        assert self.pipe is not None
        if not self.pipe.poll(max(STALL_S, STALL_FACTOR * self.cpu_s)):
            raise TimeoutError("stalled")
        return self.pipe.recv_bytes()

    def _failed(self, error: Exception, readable: bool) -> Grade:
        """Return the grade of a question whose process did not answer it, and end the process."""
        code = None
        if self.process is not None and not isinstance(error, TimeoutError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.process.wait(_END_S)  # it has closed its end of the pipe: it is about to end
        self.stop()
        if self.killed or code in (-signal.SIGKILL, -signal.SIGTERM):
            return Grade(Verdict.UNGRADED, _KILLED)
        if code is None:
            return Grade(Verdict.UNGRADED, f"crash: {error or type(error).__name__}")
        why = "timeout" if code == -signal.SIGPROF else f"crash: exit code {code}"
        return Grade(Verdict.INCORRECT, why) if readable else Grade(Verdict.UNGRADED, f"gold: {why}")

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        with theirs:
            arguments = str(theirs.fileno()), str(self.cpu_s)
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
        """Kill the process for good; a question under way then ends as a crash."""
        self.killed = True
        if self.process is not None:
            self.process.kill()

    def stop(self) -> None:
        """Kill the process, wait for its end and forget it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        if self.pipe is not None:
            self.pipe.close()
        self.process = self.pipe = None


def _stop_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()


class MathPool:
    """Compares answers by math-verify in `workers` processes, each answer within `timeout_s` of CPU time.

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
            CORRECT or INCORRECT with the rule that decided it, or with `timeout`, `crash: ...` or
            `error: ...` for an answer that cannot be compared; UNGRADED with `gold: ...` or `crash: ...`
            where grading itself failed.

        Raises:
            RuntimeError: the pool is closed.
        """
        if self._closed:
            raise RuntimeError("this MathPool is closed")
        if (early := decide(gold, answer)) is not None:
            return early
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._ask, reading(answer_in(gold)), reading(answer))

    async def problem_with(self, gold: str) -> str:
        """Return why nothing could be graded against a gold, such as `gold: unparsed`; '' where all is well.

        Raises:
            RuntimeError: the pool is closed.
        """
        if self._closed:
            raise RuntimeError("this MathPool is closed")
        if (problem := gold_problem(gold)) or not needs_algebra(gold):
            return problem
        loop, text = asyncio.get_running_loop(), reading(answer_in(gold))
        grade = await loop.run_in_executor(self._threads, self._ask, text, text)
        return grade.reason if grade.verdict is Verdict.UNGRADED else ""

    def unreadable(self, golds: Iterable[str]) -> dict[str, str]:
        """Return the golds that `problem_with` has something against, each with the reason; also in a loop.

        Raises:
            RuntimeError: the pool is closed.
        """
        if self._closed:
            raise RuntimeError("this MathPool is closed")
        refused: dict[str, str] = {}
        asked: dict[str, Future[Grade]] = {}
        for gold in dict.fromkeys(golds):
            if problem := gold_problem(gold):
                refused[gold] = problem
            elif needs_algebra(gold):
                text = reading(answer_in(gold))
                asked[gold] = self._threads.submit(self._ask, text, text)
        for gold, answered in asked.items():
            if (grade := answered.result()).verdict is Verdict.UNGRADED:
                refused[gold] = grade.reason
        return refused

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
