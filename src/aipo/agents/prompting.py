"""What an agent is sent: its prompt, filled with as much of the rollout as the settings show it.

What a text holds is never read as a template again, and what the context leaves out is in no message and in
no cache key.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256
from importlib.resources import files
from string import Template

from aipo.agents.base import AgentError, AgentFailure, AgentQuery

Message = dict[str, str]
HASH_DIGITS = 12


class Context(StrEnum):
    """What an agent sees of a rollout."""

    REQUEST = "request"
    PROBLEM = "problem+request"
    ALL = "problem+rollout+request"

    def seen(self, query: AgentQuery) -> AgentQuery:
        """Return the query with what is not shown left empty.

        >>> Context.PROBLEM.seen(AgentQuery(problem="2 + 2", rollout="so far", request="4?", seed=1))
        AgentQuery(problem='2 + 2', rollout='', request='4?', seed=1)
        """
        return replace(
            query,
            problem="" if self is Context.REQUEST else query.problem,
            rollout=query.rollout if self is Context.ALL else "",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPrompt:
    """One agent's prompt."""

    version: str
    system: str
    request: str
    hash: str
    """First digits of the SHA-256 of the whole file."""

    def messages(self, query: AgentQuery, system_role: bool = True) -> list[Message]:
        """Return the chat for a query of which only the seen parts are filled.

        Without a `system_role`, its text begins the user's message.

        Raises `AgentError` where there is nothing to look at: no request, and no rollout or problem shown.
        """
        parts = {"problem": query.problem, "rollout": query.rollout, "request": query.request}
        if not any(text.strip() for text in parts.values()):
            raise AgentError(
                "an empty request, and the agent's context shows it nothing else", AgentFailure.OTHER
            )
        kept = []
        for line in self.request.splitlines():
            mark, _, words = line.removeprefix("@").partition(" ") if line.startswith("@") else ("", "", line)
            present = bool(parts.get(mark.removeprefix("no_"), "").strip())
            if not mark or present is not mark.startswith("no_"):
                kept.append(words)
        user = Template("\n".join(kept).strip()).substitute(parts)
        if not system_role:
            return [{"role": "user", "content": f"{self.system}\n\n{user}".strip()}]
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


def prompt_of(text: str) -> AgentPrompt:
    """Return the prompt that a text holds: a version line (`# …`), the system message, `---`, the request.

    A line of the request that begins with `@problem`, `@rollout` or `@request` stays only where that part is
    shown and not empty, one with `@no_request` only where there is no request.
    """
    version, _, body = text.partition("\n")
    system, _, request = body.partition("\n---\n")
    digest = sha256(text.encode()).hexdigest()[:HASH_DIGITS]
    return AgentPrompt(
        version=version.removeprefix("# "), system=system.strip(), request=request.strip(), hash=digest
    )


def packaged_prompt(name: str) -> AgentPrompt:
    """Return a prompt of `prompts/`."""
    return prompt_of(files("aipo.agents").joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8"))
