"""The watchdog: a sign of life from a phase that takes long, and of one in which nothing moves; the end of a
run that waits for ever.

From `guards.stall_s` without progress on, the process lives at most `guards.stall_exit_s` longer than it
takes to write a checkpoint. It touches no weights and no file of the run but `stopped.txt`, and ends no run
that can stop by itself.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from aipo.config.guards import GuardSettings
from aipo.training.events import EXIT_STOPPED, StalledError
from aipo.training.waits import Wait, Waits

MOST_POLL_S = 1.0
SIGN_S = 20.0
"""So long may a phase of a step take before a line says that it goes on; the next comes after twice that."""
MOST_WORDS_S = 5.0
"""No longer does the watchdog wait for its words to be shown: a pipe that nobody reads takes none."""


class Watchdog:
    """For the length of a `with` block around the run's event loop."""

    def __init__(
        self,
        waits: Waits,
        limits: GuardSettings,
        say: Callable[[str], None],
        last_words: Callable[[str], None],
        end: Callable[[int], object] = os._exit,
        sign: Callable[[str], object] = lambda line: None,
    ) -> None:
        """`say` shows a line to the user; `last_words` is told why before `end` ends a run that is stuck.
        `sign` takes signs of life, of which nobody has to hear.

        A run is stuck where its event loop does not turn: in a system call, in a task's or an agent's code
        that blocks, or in a thread that asyncio waits for. Nothing in this process could end it politely.
        Neither `say` nor `last_words` can keep the watchdog from what it does next, whether they raise
        `OSError` (a closed terminal, a full disk) or do not return.
        """
        self._waits, self._limits = waits, limits
        self._say, self._last_words, self._end, self._sign = say, last_words, end, sign
        self._phase: Wait | None = None
        self._next_sign_s = SIGN_S
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._waits.progress()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        limits = self._limits
        poll_s = min(MOST_POLL_S, limits.stall_report_s / 4, limits.stall_s / 4)
        report_after_s = limits.stall_report_s
        while not self._done.wait(poll_s):
            quiet_s = self._waits.quiet_s()
            if quiet_s < limits.stall_report_s:
                report_after_s = limits.stall_report_s
                self._give_sign()
            elif quiet_s >= limits.stall_s:
                return self._stop(quiet_s)
            elif quiet_s >= report_after_s:
                report_after_s *= 2
                waits = self._waits.describe()
                _spoken(self._say, f"nothing has moved for {quiet_s:.0f} s; waiting for\n{waits}")

    def _give_sign(self) -> None:
        """Say which phase goes on, now and then."""
        phase = self._waits.longest
        if phase is None or phase != self._phase:
            self._phase, self._next_sign_s = phase, SIGN_S
        elif (lasts_s := time.monotonic() - phase.since_s) >= self._next_sign_s:
            self._next_sign_s *= 2
            _spoken(self._sign, f"{phase.whom}: {phase.what}, {lasts_s:.0f} s so far")

    def _stop(self, quiet_s: float) -> None:
        why = (
            f"nothing has moved for {quiet_s:.0f} s, more than guards.stall_s = {self._limits.stall_s:g}; "
            f"the run was waiting for\n{self._waits.describe()}\n"
            "A valid checkpoint is there and the same command continues from it; find out why this does not "
            "answer, or name guards.stall_s with --allow-change (docs/recovery.md)"
        )
        self._waits.stop(StalledError(why))
        told_s = time.monotonic()
        while not self._done.wait(min(MOST_POLL_S, self._limits.stall_exit_s / 4)):
            if not self._waits.heard:
                over = time.monotonic() - told_s >= self._limits.stall_exit_s
            else:  # the stop is being carried out: a checkpoint may take its time, what follows may not
                limit_s = self._limits.stall_s if self._waits.busy else self._limits.stall_exit_s
                over = self._waits.quiet_s() >= limit_s
            if over:
                _spoken(self._last_words, why)
                self._end(EXIT_STOPPED)
                return


def _spoken(speak: Callable[[str], object], words: str) -> None:
    """Let words be said, for a while."""

    def said() -> None:
        with suppress(OSError):
            speak(words)

    speaker = threading.Thread(target=said, name="watchdog's words", daemon=True)
    speaker.start()
    speaker.join(MOST_WORDS_S)
