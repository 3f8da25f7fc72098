"""Sums whose oracle has words for two words in a request alone; the task says so, or keeps it to itself."""

from collections.abc import Sequence
from dataclasses import replace

from aipo.tasks.base import Ask, Problem, TaskSpec, Wording
from support.outside_task import Sums


class Particular:
    """An oracle that answers `carry?` and nothing else."""

    def __init__(self, wording: Wording) -> None:
        """Keep nothing."""

    def feedback(self, agent: str, problem: str, rollout: str, request: str) -> str:
        """Return a word, or none."""
        return "yes" if request.strip() == "carry?" else ""


def _asking(problem: Problem, agent: str) -> Sequence[str | Ask]:
    return ["I begin. ", Ask(agent, "carry?")]


def _wrongly(problem: Problem, agent: str) -> Sequence[str | Ask]:
    return [Ask(agent, "what?")]


UNSAID = TaskSpec(
    name="sums", make=lambda settings, sandbox: Sums(), oracle=Particular, agents=("knowledge",)
)
"""`task.name = "support.silent_oracle:UNSAID"`: nobody knows what it is asked."""
SAID = replace(UNSAID, asking=_asking)
WRONG = replace(UNSAID, asking=_wrongly)
"""It says that it is asked what its oracle does not know."""
