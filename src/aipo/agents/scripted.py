"""Scripted agents: a task's oracle behind the agent interface, made as unreliable as a rehearsal needs.

What goes wrong depends only on the query's seed, so a rehearsal can be repeated.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from aipo.agents.base import AgentError, AgentQuery, AgentReply

Feedback = Callable[[str, str, str, str], str]
"""(agent, problem, rollout, request) -> words, as `aipo.tasks.base.Oracle.feedback`."""

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Unreliability:
    """How a scripted agent misbehaves; the default does not."""

    error_rate: float = 0.0
    """Share of replies that are wrong: one of their numbers is replaced by another."""
    failure_rate: float = 0.0
    """Share of consultations that raise `AgentError`."""
    latency_s: float = 0.0
    """Seconds before a reply or a failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedAgent:
    """`aipo.agents.base.Agent` that asks an oracle."""

    name: str
    oracle: Feedback
    unreliability: Unreliability = Unreliability()
    approves: bool = False
    """Whether it checks: what it says may then approve of the rollout."""

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Return the oracle's words, wrong ones now and then. Raises `AgentError` at the rate asked for."""
        rng = Random(query.seed)
        if self.unreliability.latency_s:
            await asyncio.sleep(self.unreliability.latency_s)
        if rng.random() < self.unreliability.failure_rate:
            raise AgentError(f"{self.name}: scripted failure")
        text = self.oracle(self.name, query.problem, query.rollout, query.request)
        if rng.random() < self.unreliability.error_rate:
            text = _with_wrong_number(text, rng)
        return AgentReply(text=text, approves=_approves(text) if self.approves else None)


def _approves(verdict: str) -> bool:
    """An oracle that checks says `ok` and nothing else where it finds nothing wrong."""
    return verdict.strip() == "ok"


def _with_wrong_number(text: str, rng: Random) -> str:
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return text
    found = rng.choice(numbers)
    width = len(found.group())
    wrong = rng.choice(
        [n for n in range(10 ** (width - 1) if width > 1 else 0, 10**width) if str(n) != found.group()]
    )
    return text[: found.start()] + str(wrong) + text[found.end() :]
