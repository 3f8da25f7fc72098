"""What an agent is asked in a check: a question about the first rows of the user's own task.

A task knows best what is asked of its agents (`TaskSpec.asking`, or the turn that its traces imitate). Of any
other, the first words of a solution are a restatement of the problem, and the question is the agent's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aipo.agents.base import AgentQuery
from aipo.agents.prompting import Context
from aipo.agents.spec import AgentSpec
from aipo.assembly.parts import build_task
from aipo.config.settings import Settings, TaskSettings
from aipo.tasks.base import Problem, Split, TaskSpec
from aipo.tasks.registry import task_spec

ROWS = 3
"""How many of the first problems are asked about, at most."""
STAND_IN = Problem(
    id="a made-up problem",
    text="A train covers 60 km in 1.5 hours. What is its average speed?",
    gold="40 km/h",
)
"""Asked about where no task is named, or its rows cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question to one agent, as a policy would have come to ask it."""

    problem: Problem
    written: str
    """What the policy has written before."""
    request: str
    by_the_task: bool
    """Whether the task says that this is asked: then every agent has words for it."""

    def query(self, seed: int, context: str = Context.ALL) -> AgentQuery:
        """Return what the agent is sent; one that sees the request alone finds the problem in it."""
        request = self.request
        if context == Context.REQUEST and not self.by_the_task:
            request = f"{request}\nThe problem: {self.problem.text}"
        return AgentQuery(problem=self.problem.text, rollout=self.written, request=request, seed=seed)


def first_split(task: TaskSettings) -> Split:
    """Return train where the task has training problems, else test."""
    spec = task_spec(task.name)
    if task.train_file or not spec.takes_files:
        return Split.TRAIN
    fetched = None if task.test_file else spec.benchmark
    return Split.TRAIN if fetched and fetched.hub and Split.TRAIN in fetched.parts else Split.TEST


def first_problems(settings: Settings) -> Sequence[Problem]:
    """Return the task's first problems, `STAND_IN` where none is named. Raises `ValueError`, `OSError`."""
    if not settings.task.name:
        return [STAND_IN]
    problems = build_task(settings.task, settings.sandbox).problems(first_split(settings.task))
    return problems[:ROWS] or [STAND_IN]


def question_of(agent: AgentSpec, task: TaskSpec | None, problem: Problem) -> Question:
    """Return what an agent is asked about a problem; `task` is None where nothing is known of it."""
    asked = _as_the_task_asks(agent, task, problem) if task else None
    if asked:
        return asked
    return Question(
        problem=problem,
        written=f"Let me first restate the problem: {problem.text}",
        request=agent.canary,
        by_the_task=False,
    )


def _as_the_task_asks(agent: AgentSpec, task: TaskSpec, problem: Problem) -> Question | None:
    """Return the first consultation of the agent in the turn that the task gives, None if there is none."""
    if task.asking is not None:
        turn = task.asking(problem, agent.name)
    elif task.consulted is not None:
        turn = task.consulted(problem)
    else:
        return None
    written = ""
    for piece in turn:
        if isinstance(piece, str):
            written += piece
        elif piece.agent == agent.name:
            return Question(problem=problem, written=written, request=piece.request, by_the_task=True)
    return None


def rehearsed(question: Question, agent: AgentSpec) -> Question:
    """Return the question in the words that a policy is taught to ask with, where the task has none of its
    own."""
    return question if question.by_the_task else replace(question, request=agent.rehearsal, written="")
