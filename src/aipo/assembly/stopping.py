"""How a run ends: by a signal, or by a watchdog that saw nothing move.

Handlers of signals are as before when the run is over; a first signal loses nothing but time.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

from aipo.config.guards import GuardSettings
from aipo.training.events import Reporter, SignalledError, visible
from aipo.training.journal import STOPPED
from aipo.training.loop import Trainer
from aipo.training.watchdog import Watchdog


class _EndNow(SystemExit):
    """A signal came twice: no `except Exception` on the way may hold it up."""


@contextmanager
def end_now_is_an_error() -> Iterator[None]:
    """Let a second SIGTERM within the block end it as a `SignalledError`, which a caller can catch."""
    try:
        yield
    except _EndNow as end:
        number = int(end.code or 0)
        raise SignalledError(
            f"signal {number} came twice; the same command continues from the last checkpoint", number
        ) from None


@contextmanager
def signals_end_the_step(trainer: Trainer, reporter: Reporter) -> Iterator[None]:
    """Let SIGTERM end the run after the step under way, SIGINT as soon as that waits, both with a checkpoint.

    The same signal once more ends it at once. A person at the keyboard does not wait for a step of minutes.
    Degenerate case: outside of the main thread, where python takes no handlers, signals do what they did.
    """
    asked: set[int] = set()

    def handle(number: int, _: FrameType | None) -> None:
        if number in asked:
            raise KeyboardInterrupt if number == signal.SIGINT else _EndNow(number)
        asked.add(number)
        finish = number == signal.SIGTERM
        trainer.stop_soon(number, finish_step=finish)
        when = f"after step {trainer.step + 1}" if finish else "when what is whole is saved"
        _say(reporter.warn, f"{signal.Signals(number).name}: the run ends {when}; once more: at once")

    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, handle)
    except ValueError:
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watchdog_of(trainer: Trainer, limits: GuardSettings, folder: Path, reporter: Reporter) -> Watchdog:
    """Return the watchdog of a run that writes to `folder`."""

    def last_words(why: str) -> None:
        with suppress(OSError):  # a full disk; the words on the screen are still to come
            (folder / STOPPED).write_text(visible(why) + "\n")
        reporter.warn(f"stopped: {why}")
        sys.stderr.flush()

    say, sign = partial(_say, reporter.warn), partial(_say, reporter.note)
    return Watchdog(trainer.waits, limits, say, last_words, sign=sign)


def _say(show: Callable[[str], None], line: str) -> None:
    with suppress(OSError, SystemExit):  # no reader; rich ends the program where a pipe is broken
        show(line)
