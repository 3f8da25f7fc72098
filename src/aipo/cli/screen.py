"""The live screen of a run: progress, the few numbers that matter and their course, the last consultation.

Foreign text - requests and replies - is shown on one line, without control characters or markup.
"""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import Progress as Stages
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aipo.cli.console import SHOWN, StepLines, console, errors
from aipo.training.events import LastConsultation, Progress, Reporter, duration

BARS = " ▁▂▃▄▅▆▇█"
COURSE_STEPS = 40
"""So many of the last steps are drawn."""
SHARES = {"reward_solo", "reward_consulting", "credited_feedback_prob"}
"""Drawn from 0 to 1; the others from their own least to their own greatest."""
BAR_WIDTH, WORDS = 40, 60


class LiveScreen:
    """Draws each step in place; what is printed on the same console meanwhile goes above it."""

    def __init__(self, console: Console, run: str) -> None:
        self._run, self._courses = run, {name: deque[float](maxlen=COURSE_STEPS) for name in SHOWN}
        self._live = Live(Text(f"{run}: the first step"), console=console, auto_refresh=False)

    def __enter__(self) -> "LiveScreen":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Draw a step."""
        for name, course in self._courses.items():
            if name in progress.metrics:
                course.append(progress.metrics[name])
        self._live.update(self._drawn(progress), refresh=True)

    def _drawn(self, progress: Progress) -> RenderableType:
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(progress.steps, progress.step, width=BAR_WIDTH)
        remaining = f"remaining {duration(progress.remaining_s)}"
        head.add_row(Text(self._run, style="bold"), bar, f"{progress.step}/{progress.steps}", remaining)
        numbers = Table.grid(padding=(0, 2))
        for name, course in self._courses.items():
            if course:
                drawn = course_of(list(course), name in SHARES)
                numbers.add_row(
                    Text(SHOWN[name], style="dim"), f"{course[-1]:.3g}", Text(drawn, style="cyan")
                )
        return Group(head, numbers, spoken(progress.last_consultation))


class Terminal(Reporter):
    """Reports a run on this process's terminal: a live screen there, lines into a file or a pipe."""

    def __init__(self, run: str = "") -> None:
        self._screen = LiveScreen(console, run) if run and console.is_terminal else None
        self._show = self._screen or StepLines()

    def note(self, line: str) -> None:
        """Print it."""
        console.print(line, markup=False)

    def warn(self, line: str) -> None:
        """Print it in yellow, to stderr."""
        errors.print(line, style="yellow", markup=False)

    def passing(self, line: str) -> None:
        """Print a line that the next one replaces; nothing where that cannot be, or the screen says it."""
        if sys.stdout.isatty() and not self._screen:
            console.print(line, end="\r", markup=False)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Count the seconds on a terminal; in a file or a pipe, begin a line and end it with them."""
        started = time.perf_counter()
        try:
            if console.is_terminal:
                columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
                with Stages(*columns, console=console, transient=True) as stages:
                    stages.add_task(what, total=None)
                    yield
                console.print(what, end=" … ", markup=False)
            else:
                console.print(what, end=" … ", markup=False)
                sys.stdout.flush()
                yield
        finally:
            console.print(f"{time.perf_counter() - started:.1f} s")
            sys.stdout.flush()

    def step(self, progress: Progress) -> None:
        """Show it."""
        self._show(progress)

    def __enter__(self) -> "Terminal":
        if self._screen:
            self._screen.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._screen:
            self._screen.__exit__(kind, error, trace)


def course_of(values: list[float], share: bool) -> str:
    """Return a line of bars, one for each value.

    >>> course_of([0.0, 0.5, 1.0], share=True), course_of([3.0, 3.0], share=False)
    (' ▄█', '▄▄')
    """
    low, high = (0.0, 1.0) if share else (min(values), max(values))
    if high <= low:
        return BARS[len(BARS) // 2] * len(values)
    places = [(min(max(v, low), high) - low) / (high - low) * (len(BARS) - 1) for v in values]
    return "".join(BARS[int(place)] for place in places)


def spoken(said: LastConsultation | None) -> Text:
    """Return the last consultation in a line."""
    if said is None:
        return Text("nobody was consulted in this step", style="dim")
    line = Text(f"{said.agent} ", style="bold")
    line.append(f"“{one_line(said.request)}”", style="default")
    line.append(f" {said.outcome}", style="yellow")
    return line.append(f" “{one_line(said.reply)}”", style="green") if said.reply else line


def one_line(text: str) -> str:
    """Return foreign text for a terminal: nothing that moves the cursor, and not much of it.

    >>> one_line("a\\x1b[2Jb\\u202e\\n c")
    'a [2Jb c'
    """
    plain = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * WORDS]).split())
    return plain if len(plain) <= WORDS else plain[: WORDS - 1] + "…"
