"""What a warm start imitates: supervised traces, and a source of them.

Owns the shape of a trace. Must not know models, tokenizers or any one task.
Invariant: a piece that is no target is context only; nothing of it is ever learnt by imitation.
"""

from dataclasses import dataclass
from random import Random
from typing import Protocol

from aipo.core.types import Condition


@dataclass(frozen=True, slots=True)
class Trace:
    """One supervised sequence: the assistant's turn as (words, is a target)."""

    problem: str
    condition: Condition
    pieces: tuple[tuple[str, bool], ...]


class Curriculum(Protocol):
    """What a task's warm start teaches: its words and its worked examples."""

    def vocabulary(self) -> list[str]:
        """Return every word of problems, solutions and feedback, in a fixed order."""
        ...

    def trace(self, rng: Random) -> Trace:
        """Return a random trace; no held-out question is ever drawn."""
        ...
