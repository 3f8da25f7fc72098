"""What the loop reports to whoever started it: progress, and why it stopped.

A run that stops on purpose says so with one of these errors, and a valid checkpoint is there. torch is not
imported: an error message must be quick.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

LOGGER = logging.getLogger("aipo")

EXIT_STOPPED = 3
_SIGNALLED = 128
"""A shell's exit code for a process that a signal ended, without the signal's number."""


class StopRunError(RuntimeError):
    """The run stops on purpose; a valid checkpoint is there. The message says what happened."""

    exit_code = EXIT_STOPPED


class NonFiniteError(StopRunError):
    """A log-probability, loss or gradient is not a finite number; the weights have not been touched by it."""


class StalledError(StopRunError):
    """Nothing has moved for `guards.stall_s`; the message says what was waited for."""


class LostRankError(StopRunError):
    """Another rank of the run is gone or does not answer; no checkpoint can be made together with it."""


class SignalledError(StopRunError):
    """A signal asked for the end; the step under way was finished and a checkpoint written."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = _SIGNALLED + signal_number


@dataclass(frozen=True, slots=True, kw_only=True)
class LastConsultation:
    """One consultation of the step, to be looked at; its words are foreign text."""

    agent: str
    request: str
    outcome: str
    reply: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a display gets after each step."""

    step: int
    steps: int
    metrics: dict[str, float]
    elapsed_s: float
    steps_done_now: int
    """Steps since this process began, for an honest remaining time after a resume; 0 for a step of before."""
    last_consultation: LastConsultation | None = None
    warnings: Sequence[str] = ()
    """What begins to go wrong with this step, with the ways out."""

    @property
    def remaining_s(self) -> float:
        """The seconds that the steps to come will take at the pace of those that this process did."""
        return self.elapsed_s / max(1, self.steps_done_now) * (self.steps - self.step)


def duration(seconds: float) -> str:
    """Return a time for people.

    >>> duration(42), duration(130), duration(7260)
    ('42 s', '2 min 10 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def visible(text: str) -> str:
    r"""Return foreign text for a terminal or a file: what moves the cursor or turns the text is escaped.

    No control character but the end of a line and a tab is left.

    >>> visible("a\x1b[2Jb\u202e")
    'a\\x1b[2Jb\\u202e'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


class Reporter:
    """What a run says while it goes on: this one, to the logger `aipo`.

    Override the methods whose words should go elsewhere. It is entered as a context manager when training
    begins and left when that ends. With several ranks, rank 0 alone reports.
    """

    def note(self, line: str) -> None:
        """Take a line of information; it may hold foreign text."""
        LOGGER.info("%s", line)

    def warn(self, line: str) -> None:
        """Take a line that somebody should read; also called by handlers of signals and by threads."""
        LOGGER.warning("%s", line)

    def passing(self, line: str) -> None:
        """Take a line that the next one replaces: how far something is."""
        LOGGER.debug("%s", line)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Say what is done in the block, which may take seconds or more, and how long it took."""
        self.passing(f"{what} …")
        started = time.perf_counter()
        yield
        self.note(f"{what}: {time.perf_counter() - started:.1f} s")

    def step(self, progress: Progress) -> None:
        """Take a step that is done."""
        LOGGER.info("step %d/%d", progress.step, progress.steps)

    def __enter__(self) -> "Reporter":
        """Training begins."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Training has ended, in whatever way."""


class Silent(Reporter):
    """Says nothing at all."""

    def note(self, line: str) -> None:
        """Drop the line."""

    warn = passing = note

    def step(self, progress: Progress) -> None:
        """Drop the step."""
