"""A judge in Python, in the place of a model: it counts characters."""

from dataclasses import dataclass

from aipo.agents.base import AgentQuery, AgentReply
from aipo.agents.spec import AgentSpec
from aipo.config.agents import AgentFields


@dataclass(frozen=True)
class Lengths:
    """Gives a point for each character, up to ten."""

    name: str

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Return the score of the response, which stands between two lines."""
        response = "\n".join(query.rollout.splitlines()[1:-1])
        return AgentReply(text=f"It is long.\nSCORE: {min(10, len(response))}")


def lengths(spec: AgentSpec, fields: AgentFields) -> Lengths:
    """Make one: `task.judge.backend = "support.judges:lengths"`."""
    return Lengths(spec.name)
