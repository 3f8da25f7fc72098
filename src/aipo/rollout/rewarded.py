"""What rewards of one's own see of a rollout, and what they may be: a function, or a judge that is asked.

A judge is somebody else, behind a server as a rule: it keeps its own deadline and says what it took. What it
cannot tell is no number, with the reason.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aipo.agents.base import NOTHING_USED, Agent, Usage
from aipo.agents.spec import AgentSpec
from aipo.config.agents import AgentFields
from aipo.config.judge import JudgeSettings
from aipo.config.settings import TaskSettings
from aipo.core.types import Condition, Source, StopReason, Verdict
from aipo.rollout.episode import Consultation
from aipo.tasks.base import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardedRollout:
    """What a reward sees of a rollout beside its text."""

    condition: Condition
    verdict: Verdict
    """The task's own; UNGRADED where it has none."""
    reason: str
    """Why the task graded so."""
    response: str
    """The assistant's whole turn, agents' words included, without the end token."""
    stop: StopReason
    """`LENGTH`: the response was cut."""
    consultations: tuple[Consultation, ...]
    """Each with its agent, request, outcome and reply, in order."""
    sources: tuple[Source, ...]
    """Who wrote each token of the response, the end token included."""

    @property
    def tokens(self) -> int:
        """All tokens of the response."""
        return len(self.sources)

    @property
    def policy_tokens(self) -> int:
        """Tokens that the policy wrote."""
        return self.sources.count(Source.POLICY)

    @property
    def feedback_tokens(self) -> int:
        """Tokens of agents' words, and of the tags around them."""
        return self.sources.count(Source.FEEDBACK)


Value = float | None
RewardFunction = Callable[[str, Mapping[str, Any], RewardedRollout], Value | Awaitable[Value]]
"""(what the policy wrote, the problem's row, the rollout) -> a number, or None where it cannot tell; may be a
coroutine function. The row has the columns of the problem's file, and `id`, `problem`, `answer`, `stratum`
and `solution` where the file has no column of that name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a judge came to."""

    value: float | None
    """None: there is no reward, for the reason in `detail`."""
    detail: str = ""
    said: str = ""
    """What the judge wrote, for records; its beginning where that is long."""
    usage: Usage = NOTHING_USED
    """What was used, also where nothing came of it."""


class Judge(ABC):
    """A reward that somebody is asked for. It keeps its own deadline: `task.reward_timeout_s` is not its."""

    @abstractmethod
    async def judge(self, problem: Problem, response: str, rollout: RewardedRollout) -> Judgement:
        """Judge what the policy wrote. Raises nothing but the cancellation of the caller's own task."""


@dataclass(frozen=True, slots=True)
class MadeAgent:
    """Whoever stands behind a judge."""

    agent: Agent
    fields: AgentFields
    """Its settings, resolved."""


class MakeAgent(Protocol):
    """Makes whoever stands behind a judge, as agents are made."""

    def __call__(self, own: JudgeSettings, spec: AgentSpec) -> MadeAgent:
        """Return it, with its cache. Raises `ValueError` for settings that it cannot be made from."""
        ...


@dataclass(frozen=True, slots=True)
class JudgeMaker:
    """The entry of a judge among the rewards: it is made from the settings of its run."""

    make: Callable[[TaskSettings, MakeAgent], Judge]
