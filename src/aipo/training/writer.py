"""Writes checkpoints in a thread, one at a time, while the run goes on.

A job gets what it writes as a copy: it reads no live weights, talks to no other rank and touches no file of
the run but its own.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait

from aipo.training.events import StopRunError

POLL_S = 0.5


class NotSavedError(StopRunError):
    """A checkpoint could not be written; those before it are as they were."""


class Writer:
    """Runs one job at a time, and keeps what it raised until that is asked for."""

    def __init__(self, limit_s: float, waiting: Callable[[], object] = lambda: None) -> None:
        """`limit_s`: longest wait for the end of a job; `waiting` is called meanwhile: nothing is stalled."""
        self._limit_s, self._waiting = limit_s, waiting
        self._job: Future[None] | None = None
        self._what = ""

    @property
    def busy(self) -> bool:
        """Whether a job is going on."""
        return self._job is not None and not self._job.done()

    def begin(self, what: str, write: Callable[[], object]) -> None:
        """Start a job; `take` must have been called for the one before."""
        if self._job is not None:
            raise RuntimeError(f"{self._what} is not settled")
        job: Future[None] = Future()
        self._job, self._what = job, what

        def work() -> None:
            try:
                write()
            except Exception as error:
                job.set_exception(error)
            else:
                job.set_result(None)

        # A daemon: a disk that hangs must not hold up the end of the process.
        threading.Thread(target=work, name=f"writer of {what}", daemon=True).start()

    def finish(self) -> None:
        """Wait for the job under way, if there is one. Raises `NotSavedError` where it takes too long."""
        begun_s = time.monotonic()
        while self._job is not None and wait((self._job,), POLL_S).not_done:
            if time.monotonic() - begun_s > self._limit_s:
                raise NotSavedError(
                    f"{self._what} is still being written after {self._limit_s:g} s, guards.stall_s: the "
                    "disk hangs or is too slow. The same command continues from the newest one that is whole"
                )
            self._waiting()

    def take(self) -> tuple[str, NotSavedError | None] | None:
        """Return what the job that has ended wrote and why that failed, once; None: there is none.

        Anything but a `NotSavedError` is a mistake in this program and is raised.
        """
        job = self._job
        if job is None or not job.done():
            return None
        self._job, error = None, job.exception()
        if error is None or isinstance(error, NotSavedError):
            return self._what, error
        raise error
