"""A canary: one harmless question to each agent, before anything depends on the answers.

A canary is never answered from a cache, and every failure has a reason.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from aipo.agents.backends import AgentSetupError
from aipo.agents.base import Agent, AgentQuery
from aipo.agents.spec import AgentSpec
from aipo.assembly.agents import AgentSet
from aipo.assembly.parts import build_task
from aipo.config.settings import Settings
from aipo.core.seeds import seed_of
from aipo.core.types import ConsultOutcome
from aipo.rollout.asking import Answer, ask
from aipo.tasks.base import Split

CANARY = AgentQuery(
    problem="A train covers 60 km in 1.5 hours. What is its average speed?",
    rollout="60 / 1.5 = 45 km per hour.",
    request="",
    seed=0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What one agent did with its canaries."""

    agent: str
    answers: tuple[Answer, ...]
    latencies_s: tuple[float, ...]
    may_be_silent: bool
    """An oracle has nothing to say of a rollout that has not begun."""

    @property
    def failures(self) -> list[Answer]:
        """The answers that are none."""
        fine = {ConsultOutcome.ANSWERED, *({ConsultOutcome.EMPTY} if self.may_be_silent else ())}
        return [a for a in self.answers if a.outcome not in fine]

    @property
    def reasons(self) -> list[str]:
        """Each different reason of a failure, once."""
        return list(dict.fromkeys(f"{a.outcome}: {a.detail}" for a in self.failures))


def refuse_silent_agents(settings: Settings, agent_set: AgentSet) -> None:
    """Ask each remote or local agent once. Raises `AgentSetupError` with the reasons of those that fail."""
    if not settings.agents.check_at_start or not agent_set.uncached:
        return
    tried = asyncio.run(try_all(settings, agent_set.uncached, 1))
    if reasons := [f"agents.{t.agent}: {reason}" for t in tried for reason in t.reasons]:
        raise AgentSetupError(
            "an agent does not answer; nothing was trained:\n  "
            + "\n  ".join(reasons)
            + "\nstart its server, correct agents.base_url, agents.model or agents.api_key_env, look with "
            "`aipo agents check RECIPE`, or set agents.check_at_start = false"
        )


async def try_all(settings: Settings, agents: Mapping[str, Agent], tries: int) -> list[Tried]:
    """Ask all agents at the same time, each its canaries one after the other."""
    problem = _problem_of(settings) if "oracle" in {settings.agents.of(a).backend for a in agents} else ""
    return list(
        await asyncio.gather(
            *(
                _try(settings, spec, agents[spec.name], tries, problem)
                for spec in settings.agents.specs()
                if spec.name in agents
            )
        )
    )


async def _try(settings: Settings, spec: AgentSpec, agent: Agent, tries: int, problem: str) -> Tried:
    name = spec.name
    scripted = settings.agents.of(name).backend == "oracle"
    query = replace(CANARY, request=spec.canary)
    if scripted:
        query = AgentQuery(problem=problem, rollout="", request="", seed=0)
    answers, latencies_s = [], []
    for index in range(tries):
        begun = time.monotonic()
        seeded = replace(query, seed=seed_of("canary", name, index))
        answers.append(await ask(agent, seeded, settings.agents.timeout_s))
        latencies_s.append(time.monotonic() - begun)
    return Tried(
        agent=name,
        answers=tuple(answers),
        latencies_s=tuple(latencies_s),
        may_be_silent=scripted or spec.may_be_silent,
    )


def _problem_of(settings: Settings) -> str:
    return build_task(settings.task, settings.sandbox).problems(Split.TRAIN)[0].text
