"""What a format of consulting is: how a request is written and read, whatever the tokens.

There are two, tags (`aipo.consult.protocol`) and the tool calls of a chat template (`aipo.consult.tools`).
How a reply becomes ids belongs to the codec of each.
"""

from typing import Protocol, runtime_checkable

from aipo.consult.requests import Malformed, Request


@runtime_checkable
class Format(Protocol):
    """How the policy asks. The texts of both directions are made and read here, nowhere else."""

    @property
    def enabled(self) -> tuple[str, ...]:
        """The agents that can be asked."""
        ...

    @property
    def examples(self) -> tuple[tuple[str, str], ...]:
        """Worked consultations that end the consulting prompt: a problem, and its solution with help."""
        ...

    @property
    def tools(self) -> str:
        """What a consulting prompt hands to the chat template: a JSON list of functions; '' for nothing."""
        ...

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Where generation stops: what ends a request."""
        ...

    @property
    def ends_with_turn(self) -> bool:
        """Whether a turn that the policy has ended may be a request."""
        ...

    @property
    def control_strings(self) -> tuple[str, ...]:
        """What no problem and no reply may hold as such; it is made inert there."""
        ...

    def parse(self, text: str) -> Request | Malformed | None:
        """Return the first request in what the policy sampled since the last insertion, or None."""
        ...

    def written(self, agent: str, request: str) -> str:
        """Return a request's text as the policy would write it, up to the turn's end."""
        ...

    def offer(self) -> str:
        """Return the packaged system prompt that offers the agents."""
        ...
