"""The judges of `task.reward`: made from the settings as the agents are, and asked once before they count.

A canary is a right and a wrong answer to one question, never from a cache. A judge that does not answer is an
error before anything is spent; one that does not tell them apart is a warning, as its rubric may be of
something else than what is right.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aipo.agents.backends import AgentSetupError
from aipo.agents.spec import AgentSpec
from aipo.assembly.agents import build_own
from aipo.config.judge import JudgeSettings
from aipo.config.settings import Settings, TaskSettings
from aipo.core.types import Condition, StopReason, Verdict
from aipo.rollout.reward import TASK_REWARDS
from aipo.rollout.rewarded import Judge, JudgeMaker, Judgement, MadeAgent, RewardedRollout
from aipo.tasks.base import Problem
from aipo.training.events import Reporter

CANARY = Problem(
    id="canary",
    text="A train covers 60 km in 1.5 hours. What is its average speed in km/h?",
    gold="40",
)
RIGHT = "Speed is distance over time: 60 / 1.5 = 40. The answer is 40 km per hour."
WRONG = "Speed is distance over time: 60 / 1.5 = 90. The answer is 90 km per hour."
_UNSEEN = RewardedRollout(
    condition=Condition.SOLO,
    verdict=Verdict.UNGRADED,
    reason="",
    response="",
    stop=StopReason.END,
    consultations=(),
    sources=(),
)


@dataclass(frozen=True, slots=True)
class Judges:
    """`aipo.rollout.rewarded.MakeAgent` from a run's settings, with what is written down of each."""

    settings: Settings
    use_cache: bool = True
    record: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """For `agents.json`, of those that were made."""

    def __call__(self, own: JudgeSettings, spec: AgentSpec) -> MadeAgent:
        """Return whoever judges. Raises `AgentSetupError` with field, value and fix."""
        keep = self.use_cache and own.cache
        table = f"task.{spec.name}"
        made = build_own(self.settings, own, table, spec, timeout_s=own.timeout_s, cache=keep)
        self.record[spec.name] = made.record
        return MadeAgent(made.agent, made.fields)


def judges_of(task: TaskSettings) -> list[str]:
    """Return the names in `task.reward` that stand for judges made from settings."""
    return [name for name in task.reward if isinstance(TASK_REWARDS[name], JudgeMaker)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedJudge:
    """What one judge said of a right and of a wrong answer."""

    name: str
    right: Judgement
    wrong: Judgement
    latency_s: float
    """Of both, asked at the same time."""
    record: Mapping[str, Any]

    @property
    def reasons(self) -> list[str]:
        """Why it gave no score, each once; empty: it gave two."""
        return list(dict.fromkeys(each.detail for each in (self.right, self.wrong) if each.value is None))

    @property
    def said(self) -> str:
        """What it made of the two, in words."""
        if self.right.value is None or self.wrong.value is None:
            return "; ".join(self.reasons)
        return f"a right answer {self.right.value:.2f}, a wrong one {self.wrong.value:.2f}"

    @property
    def warning(self) -> str:
        """What to say where it does not tell them apart; '' where it does, or gave no score."""
        if self.right.value is None or self.wrong.value is None or self.right.value > self.wrong.value:
            return ""
        return (
            f"task.reward: {self.name} gave {self.said}. If its rubric is about what is right, it teaches "
            "nothing or the wrong thing: name a stronger model in task.judge.model, or write a clearer "
            "task.judge.rubric"
        )


def try_judges(settings: Settings) -> list[TriedJudge]:
    """Show each judge of `task.reward` the two answers. Raises `ValueError`s where one cannot be made."""
    judges = Judges(settings, use_cache=False)
    found = ((name, TASK_REWARDS[name]) for name in settings.task.reward)
    made = {name: each.make(settings.task, judges) for name, each in found if isinstance(each, JudgeMaker)}
    return asyncio.run(_try_all(made, judges.record)) if made else []


async def _try_all(judges: Mapping[str, Judge], record: Mapping[str, Mapping[str, Any]]) -> list[TriedJudge]:
    return list(await asyncio.gather(*(_try(n, judge, record.get(n, {})) for n, judge in judges.items())))


async def _try(name: str, judge: Judge, record: Mapping[str, Any]) -> TriedJudge:
    begun = time.monotonic()
    right, wrong = await asyncio.gather(*(judge.judge(CANARY, said, _UNSEEN) for said in (RIGHT, WRONG)))
    latency_s = time.monotonic() - begun
    return TriedJudge(name=name, right=right, wrong=wrong, latency_s=latency_s, record=record)


def refuse_silent_judges(settings: Settings, reporter: Reporter) -> None:
    """Raise `AgentSetupError` where a judge gives no score; warn where it does not tell right from wrong."""
    if not settings.agents.check_at_start:
        return
    tried = try_judges(settings)
    if reasons := [f"task.reward {one.name}: {reason}" for one in tried for reason in one.reasons]:
        raise AgentSetupError(
            "a judge does not answer; nothing was trained:\n  "
            + "\n  ".join(reasons)
            + "\nstart its server, correct task.judge.base_url, task.judge.model or task.judge.api_key_env, "
            "look with `aipo agents check RECIPE`, or set agents.check_at_start = false"
        )
    for warning in filter(None, (one.warning for one in tried)):
        reporter.warn(warning)
