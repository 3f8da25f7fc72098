"""What a supervised start imitates: traces, and a source of them."""

from dataclasses import dataclass
from random import Random
from typing import Protocol

from aipo.core.types import Condition


@dataclass(frozen=True, slots=True)
class Trace:
    """One supervised sequence: the assistant's turn as (words, is a target).

    A piece that is no target is context only; nothing of it is ever learnt by imitation.
    """

    problem: str
    condition: Condition
    pieces: tuple[tuple[str, bool], ...]


class Curriculum(Protocol):
    """What a task's supervised start teaches: its words and its worked examples."""

    def vocabulary(self) -> list[str]:
        """Return every word of problems, solutions and feedback, in a fixed order."""
        ...

    def trace(self, rng: Random) -> Trace:
        """Return a random trace; no held-out question is ever drawn."""
        ...
