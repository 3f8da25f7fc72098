"""What the loop tells whoever started it: progress, and why it stopped.

Owns the words between the loop and a display. Must not import torch: an error message must be quick.
Invariant: a run that stops on purpose says so with one of these errors, and its last checkpoint is valid.
"""

from dataclasses import dataclass


class StopRunError(RuntimeError):
    """The run stops on purpose; its last checkpoint is valid. The message says what happened."""


class NonFiniteError(StopRunError):
    """A loss or gradient is not a finite number; the weights have not been touched by it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a display is told after each step."""

    step: int
    steps: int
    metrics: dict[str, float]
    elapsed_s: float
    steps_done_now: int
    """Steps since this process began, for an honest remaining time after a resume."""
