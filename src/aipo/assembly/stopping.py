"""How a run ends: by a signal, by a watchdog that saw nothing move, and as one of several processes.

Owns signal handlers and the last words of a run that is stuck. Must not know steps or checkpoints.
Invariant: handlers are as before when the run is over; a first signal loses nothing but time.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import torch
import typer

from aipo.config.guards import GuardSettings
from aipo.console import errors
from aipo.training.events import visible
from aipo.training.journal import STOPPED
from aipo.training.loop import Trainer
from aipo.training.ranks import end_process
from aipo.training.watchdog import Watchdog


@contextmanager
def several_end_at_once() -> Iterator[None]:
    """End a process of several at the end of the block, with the exit code that was raised in it."""
    exit_code = 0
    try:
        yield
    except typer.Exit as error:
        if not torch.distributed.is_initialized():
            raise
        exit_code = error.exit_code
    if torch.distributed.is_initialized():
        end_process(exit_code)


@contextmanager
def signals_end_the_step(trainer: Trainer) -> Iterator[None]:
    """Let SIGTERM end the run after the step under way, SIGINT as soon as that waits, both with a checkpoint.

    The same signal once more ends it at once. A person at the keyboard does not wait for a step of minutes.
    Degenerate case: outside of the main thread, where python takes no handlers, signals do what they did.
    """
    asked: set[int] = set()

    def handle(number: int, _: FrameType | None) -> None:
        if number in asked:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        asked.add(number)
        finish = number == signal.SIGTERM
        trainer.stop_soon(number, finish_step=finish)
        when = f"after step {trainer.step + 1}" if finish else "when what is whole is saved"
        _say(f"{signal.Signals(number).name}: the run ends {when}; once more: at once")

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


def watchdog_of(trainer: Trainer, limits: GuardSettings, folder: Path) -> Watchdog:
    """Return the watchdog of a run that writes to `folder`, speaking through the console."""

    def last_words(why: str) -> None:
        with suppress(OSError):  # a full disk; the words on the screen are still to come
            (folder / STOPPED).write_text(visible(why) + "\n")
        errors.print(f"stopped: {why}", style="bold red", markup=False)
        sys.stderr.flush()

    return Watchdog(trainer.waits, limits, _say, last_words)


def _say(line: str) -> None:
    with suppress(OSError, SystemExit):  # no reader; rich ends the program where a pipe is broken
        errors.print(line, style="yellow", markup=False)
