"""What an agent is: a name and one coroutine from a query to a reply.

An `AgentQuery` never holds the gold answer.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one consultation took of an agent."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """Price of these tokens, in the currency of the prices in the settings."""
    cached: bool = False
    """Whether the reply came from the disk: the tokens and the cost are then those of the first time."""

    def __add__(self, other: "Usage") -> "Usage":
        """Return what both took; from the disk if both were."""
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cost=self.cost + other.cost,
            cached=self.cached and other.cached,
        )


NOTHING_USED = Usage()


class AgentFailure(StrEnum):
    """Why an agent raised; the consultation's outcome is AGENT_ERROR in every case."""

    UNREACHABLE = "unreachable"
    """No whole reply came, retries included: connection, 429, 5xx, a body too long."""
    REFUSED = "refused"
    """The endpoint said that the request itself is wrong (4xx): a key, a model's name, a length."""
    UNREADABLE = "unreadable"
    """A reply came that is not in the agent's format."""
    OTHER = "other"


class AgentError(Exception):
    """The agent could not answer (transport, back end, refusal). Never a reward: see `ConsultOutcome`."""

    def __init__(
        self, reason: str, failure: AgentFailure = AgentFailure.OTHER, usage: Usage = NOTHING_USED
    ) -> None:
        """`usage`: what the failed consultation took all the same."""
        super().__init__(reason)
        self.failure, self.usage = failure, usage


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReply:
    """An agent's answer; an empty text is the outcome EMPTY."""

    text: str
    approves: bool | None = None
    """Verify only: whether it found nothing wrong; None where it does not say."""
    usage: Usage = NOTHING_USED
    log_probs: tuple[float, ...] = ()
    """log q of each token of `text` in the policy's own tokenizer, by an agent that shares it and reports
    them; read by the coefficient `agent` alone. Empty: q := 1."""


class Agent(Protocol):
    """One of the three collaborative agents, whatever answers behind it."""

    @property
    def name(self) -> str:
        """Which of the three it is."""
        ...

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Return the feedback. Raises `AgentError` when it cannot; the caller owns the deadline."""
        ...
