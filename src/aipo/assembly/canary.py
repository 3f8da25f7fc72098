"""A canary: one harmless question to each agent about the user's own rows, before anything depends on it.

A canary is never answered from a cache, and every failure has a reason. Silence on one row proves nothing:
who says nothing is asked about the next, and has failed where it says nothing about any.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aipo.agents.backends import AgentSetupError
from aipo.agents.base import Agent
from aipo.agents.spec import AgentSpec
from aipo.assembly.agents import AgentSet
from aipo.assembly.questions import ROWS, STAND_IN, Question, first_problems, question_of
from aipo.config.settings import Settings
from aipo.core.seeds import seed_of
from aipo.core.types import ConsultOutcome
from aipo.rollout.asking import Answer, ask
from aipo.tasks.base import Problem
from aipo.tasks.registry import task_spec

ORACLE = "oracle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What one agent did with its canaries."""

    agent: str
    answers: tuple[Answer, ...]
    latencies_s: tuple[float, ...]
    about: tuple[str, ...]
    """The problem of each question, by its id."""
    may_be_silent: bool
    """Whether no words are a proper answer: of the agent's own, or of an oracle that was asked what its task
    does not say that it is asked."""

    @property
    def failures(self) -> list[Answer]:
        """The answers that are none; those without words only where there were words for no problem."""
        fine = {ConsultOutcome.ANSWERED}
        if self.may_be_silent or not self.silent:
            fine.add(ConsultOutcome.EMPTY)
        return [a for a in self.answers if a.outcome not in fine]

    @property
    def silent(self) -> bool:
        """Whether it had words for none of the problems, and did not fail otherwise."""
        return all(a.outcome is ConsultOutcome.EMPTY for a in self.answers)

    @property
    def reasons(self) -> list[str]:
        """Each different reason of a failure, once."""
        return list(dict.fromkeys(f"{a.outcome}: {a.detail}" for a in self.failures))

    @property
    def remark(self) -> str:
        """What is to be said of an agent that did not fail and said nothing; '' of any other."""
        if not self.silent or self.failures:
            return ""
        return f"has nothing to say about {', '.join(dict.fromkeys(self.about))}"


def refuse_silent_agents(settings: Settings, agent_set: AgentSet, problems: Sequence[Problem]) -> None:
    """Ask each remote or local agent about the first problems, one after the other until it has words.

    Raises `AgentSetupError` with the reasons of those that fail.
    """
    if not settings.agents.check_at_start or not agent_set.uncached:
        return
    tried = asyncio.run(try_all(settings, agent_set.uncached, 1, problems))
    if reasons := [f"agents.{t.agent}: {reason}" for t in tried for reason in t.reasons]:
        raise AgentSetupError(
            "an agent does not answer; nothing was trained:\n  "
            + "\n  ".join(reasons)
            + "\nstart its server, correct agents.base_url, agents.model or agents.api_key_env, look with "
            "`aipo agents check RECIPE`, or set agents.check_at_start = false"
        )


def problems_to_ask_about(settings: Settings) -> tuple[Sequence[Problem], str]:
    """Return the first problems of the task and ''; where they cannot be read, a stand-in and the reason.

    Raises `ValueError` for scripted agents, which have words of their own task alone.
    """
    try:
        return first_problems(settings), ""
    except (ValueError, OSError) as error:
        if ORACLE in {settings.agents.of(name).backend for name in settings.agents.names}:
            raise
        return [STAND_IN], str(error)


async def try_all(
    settings: Settings, agents: Mapping[str, Agent], tries: int, problems: Sequence[Problem]
) -> list[Tried]:
    """Ask all agents at the same time, each its canaries one after the other: problem after problem."""
    rows = problems[:ROWS] or [STAND_IN]
    task = None if rows[0] is STAND_IN or not settings.task.name else task_spec(settings.task.name)

    async def tried(spec: AgentSpec) -> Tried:
        questions = [question_of(spec, task, problem) for problem in rows]
        asking = _Trying(settings=settings, spec=spec, agent=agents[spec.name], questions=questions)
        return await asking.run(tries)

    return list(await asyncio.gather(*(tried(s) for s in settings.agents.specs() if s.name in agents)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trying:
    """The canaries of one agent."""

    settings: Settings
    spec: AgentSpec
    agent: Agent
    questions: Sequence[Question]

    async def run(self, tries: int) -> Tried:
        """Ask as often as wanted, and about every problem while it has words for none."""
        name, fields = self.spec.name, self.settings.agents.of(self.spec.name)
        answers: list[Answer] = []
        latencies_s: list[float] = []
        asked: list[Question] = []
        while len(answers) < tries or (
            len(answers) < len(self.questions) and all(a.outcome is ConsultOutcome.EMPTY for a in answers)
        ):
            question = self.questions[len(answers) % len(self.questions)]
            query = question.query(seed_of("canary", name, len(answers)), fields.context)
            begun = time.monotonic()
            answers.append(await ask(self.agent, query, self.settings.agents.timeout_s))
            latencies_s.append(time.monotonic() - begun)
            asked.append(question)
        unasked = fields.backend == ORACLE and not all(question.by_the_task for question in asked)
        return Tried(
            agent=name,
            answers=tuple(answers),
            latencies_s=tuple(latencies_s),
            about=tuple(question.problem.id for question in asked),
            may_be_silent=unasked or self.spec.may_be_silent,
        )
