"""Agents in Python for the paper's names: an object, and a function that makes one for any agent."""

from dataclasses import dataclass

from aipo.agents.base import AgentQuery, AgentReply
from aipo.agents.spec import AgentSpec
from aipo.config.agents import AgentFields


@dataclass(frozen=True)
class Echo:
    """Answers with one fixed text."""

    name: str
    text: str

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Return the text."""
        return AgentReply(text=self.text)


LIBRARIAN = Echo("knowledge", "8 8")
"""`agents.knowledge.backend = "support.python_agents:LIBRARIAN"`."""


def echo(spec: AgentSpec, fields: AgentFields) -> Echo:
    """Make one: `agents.backend = "support.python_agents:echo"`."""
    return Echo(spec.name, "0 0")


def nobody(spec: AgentSpec, fields: AgentFields) -> str:
    """Make something that is no agent."""
    return spec.name


def query_of(request: str, rollout: str = "") -> AgentQuery:
    """Return a question about nothing in particular."""
    return AgentQuery(problem="a problem", rollout=rollout, request=request, seed=0)
