"""What the policy's text holds of a consultation: a request, or what cannot be understood as one."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """A well-formed request."""

    agent: str
    text: str
    """What is asked, stripped; may be empty, see `Format.parse`."""
    start: int
    """Where the request begins in the parsed text: its open tag, or what opens a tool call."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """An end that closes no usable request."""

    reason: str
    start: int
    """Where the request begins in the parsed text; where its end begins if nothing opens it."""
