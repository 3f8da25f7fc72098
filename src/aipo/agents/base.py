"""What an agent is: a name and one coroutine from a query to a reply.

Owns the boundary between rollouts and agents. Must not know engines, tasks or training.
Invariant: an `AgentQuery` never holds the gold answer.
"""

from dataclasses import dataclass
from typing import Protocol

from aipo.core.types import AgentName


class AgentError(Exception):
    """The agent could not answer (transport, back end, refusal). Never a reward: see `ConsultOutcome`."""


@dataclass(frozen=True, slots=True)
class AgentQuery:
    """Everything an agent sees of a rollout."""

    problem: str
    """The problem's text."""
    rollout: str
    """What stands in the assistant's turn so far, the request excluded."""
    request: str
    """The text between the agent's tags, stripped."""
    seed: int
    """Seed for an agent's own randomness, unique per consultation, independent of concurrency."""


@dataclass(frozen=True, slots=True)
class AgentReply:
    """An agent's answer; an empty text is the outcome EMPTY."""

    text: str


class Agent(Protocol):
    """One of the three collaborative agents, whatever answers behind it."""

    @property
    def name(self) -> AgentName:
        """Which of the three it is."""
        ...

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Return the feedback. Raises `AgentError` when it cannot; the caller owns the deadline."""
        ...
