"""What a user sees: one console, one way to report errors, one way to show progress.

An error that the user can mend is one message without a traceback, and exit code 2; a run that stops on
purpose exits with 3. What others wrote - a model, a server's error, a data file - is shown and never
obeyed: the terminal gets no control character but this program's own.
"""

import gc
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from aipo.training.events import EXIT_STOPPED as EXIT_STOPPED
from aipo.training.events import Progress, StopRunError, duration, visible

WIDE = 200
"""Columns where there is no terminal: a table in a file or a pipe must not be cut to a screen's width."""


class SafeConsole(Console):
    """rich's console, which by itself lets the escape sequences of a text through to the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See rich; control codes that are meant as such, and styles, are not part of a text here."""
        for segment in super().render(renderable, options):
            # A carriage return alone is this program's: rich takes foreign ones out of a text.
            plain = segment.control or segment.text.isprintable() or segment.text == "\r"
            yield segment if plain else Segment(visible(segment.text), segment.style)


console = SafeConsole(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)
errors = SafeConsole(stderr=True, highlight=False, soft_wrap=True)

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn errors of the user's making into one message and an exit code."""
    try:
        yield
    except ValueError as error:
        errors.print(f"error: {error}", style="bold red", markup=False)
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except StopRunError as error:
        errors.print(f"stopped: {error}", style="bold red", markup=False)
        gc.freeze()  # or the interpreter looks through every object of torch once more: seconds, not worth it
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        errors.print("interrupted; the same command continues from the last checkpoint", style="yellow")
        gc.freeze()
        raise typer.Exit(EXIT_INTERRUPTED) from None


class StepLines:
    """Prints a line for a step now and then: the numbers that matter and the time that remains."""

    def __init__(self, every_s: float = 5.0) -> None:
        self._every_s, self._last = every_s, -1e9

    def __call__(self, progress: Progress) -> None:
        """Print the step if the last line is old enough; always the last step."""
        now = time.monotonic()
        last_step = progress.step == progress.steps
        if now - self._last < self._every_s and not last_step:
            return
        self._last = now
        console.print(
            f"step {progress.step}/{progress.steps}  {_numbers(progress.metrics)}  "
            f"remaining {duration(progress.remaining_s)}",
            markup=False,
        )
        sys.stdout.flush()


SHOWN = {
    "reward_solo": "reward solo",
    "reward_consulting": "consulting",
    "graded_reward_solo": "own reward solo",
    "graded_reward_consulting": "own consulting",
    "consultations_per_rollout": "consultations",
    "credited_feedback_prob": "p(feedback)",
    "entropy": "entropy",
    "kl_reference": "KL to the start",
    "grad_norm": "grad norm",
}


def _numbers(metrics: dict[str, float]) -> str:
    return "  ".join(f"{label} {metrics[name]:.3g}" for name, label in SHOWN.items() if name in metrics)
