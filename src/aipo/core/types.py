"""The vocabulary of the method as enums: sources, verdicts, outcomes.

An outcome is a name, never a number: no float in this code base encodes a failure.
"""

from enum import IntEnum, StrEnum
from typing import Final

VERIFY: Final = "verify"
KNOWLEDGE: Final = "knowledge"
REASONING: Final = "reasoning"
PAPER_AGENTS: Final[tuple[str, ...]] = (VERIFY, KNOWLEDGE, REASONING)
"""The names of the paper's three agents, for code that means one of them; there may be others."""


class Source(IntEnum):
    """Who put a token into the sequence; every mask and denominator derives from this value."""

    PROMPT = 0
    POLICY = 1
    """Sampled by the policy, its requests and their tags included."""
    FEEDBACK = 2
    """An agent's words, inserted inline, together with both feedback tags; alone in a tool's message."""
    SCAFFOLD = 3
    """The system's: notices ("no consultations left"), tags of elicited requests, what wraps a tool's
    message; never trained. Padding has this source too."""


class Verdict(StrEnum):
    """What grading says of a rollout. UNGRADED is an infrastructure failure and never a reward."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNGRADED = "ungraded"


class ConsultOutcome(StrEnum):
    """How one consultation ended. Only ANSWERED inserts an agent's words."""

    ANSWERED = "answered"
    REFUSED_LIMIT = "refused_limit"
    MALFORMED = "malformed"
    TIMEOUT = "timeout"
    AGENT_ERROR = "agent_error"
    EMPTY = "empty"


class StopReason(StrEnum):
    """Why a rollout, or one stretch of generation inside it, ended."""

    END = "end"
    """The policy sampled an end-of-turn token."""
    STOP_STRING = "stop_string"
    """The sampled text reached a stop string; the engine only, never a whole rollout."""
    LENGTH = "length"
    """The token limit was reached: the rollout is truncated."""


class Condition(StrEnum):
    """Whether a rollout of a group may consult. Baselines are split along this line."""

    CONSULTING = "consulting"
    SOLO = "solo"


class SoloMode(StrEnum):
    """How requests are treated where no agent is reachable; always named with a result."""

    UNANSWERED = "unanswered"
    """A request gets no reply; the policy writes on."""
    BANNED = "banned"
    """The request tags cannot be sampled."""


class LeakPolicy(StrEnum):
    """What is done with feedback that states the final answer."""

    ALLOW = "allow"
    MASK = "mask"
    """The answer is hidden in it; what is left is feedback."""
    DROP = "drop"
    """None of it is fed back: the outcome is EMPTY."""
