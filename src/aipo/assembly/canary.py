"""A canary: one harmless question to each agent, before anything depends on the answers.

Owns what is asked and the table of what came back. Must not train.
Invariant: a canary is never answered from a cache, and every failure has a reason.
"""

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from aipo.agents.base import Agent, AgentFailure, AgentQuery
from aipo.assembly.agents import AgentSet, AgentSetupError, build_agents
from aipo.assembly.parts import build_task, oracle_of
from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.console import console, plain_errors
from aipo.core.seeds import seed_of
from aipo.core.types import KNOWLEDGE, REASONING, VERIFY, ConsultOutcome
from aipo.rollout.asking import Answer, ask
from aipo.tasks.base import Split

EXIT_FAILED = 1
QUESTIONS: Mapping[str, str] = {
    VERIFY: "Is this step right?",
    KNOWLEDGE: "How many legs does a spider have?",
    REASONING: "What should I do next?",
}
CANARY = AgentQuery(
    "Two spiders meet a dog. How many legs are there?", "Two spiders have 2 * 8 = 14 legs.", "", 0
)


@dataclass(frozen=True, slots=True)
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


def check(recipe: Path, overrides: Sequence[str], tries: int) -> None:
    """Ask each configured agent and print a table; see `aipo agents check --help`."""
    with plain_errors():
        settings = load_settings(recipe, overrides)
        if not settings.agents.enabled:
            raise AgentSetupError(
                "agents.enabled = []: there is no agent to check; name some, as in "
                'agents.enabled = ["verify", "knowledge", "reasoning"]'
            )
        crew = build_agents(settings, oracle_of(settings), use_cache=False)
        tried = asyncio.run(try_all(settings, crew.agents, tries))
        console.print(_table(tried, crew))
        failed = [t for t in tried if t.failures]
        for t in failed:
            for reason in t.reasons:
                console.print(Text(f"{t.agent}: {reason}", style="bold red"))
    if failed:
        raise typer.Exit(EXIT_FAILED)


def refuse_silent_agents(settings: Settings, crew: AgentSet) -> None:
    """Ask each remote or local agent once. Raises `AgentSetupError` with the reasons of those that fail."""
    if not settings.agents.check_at_start or not crew.uncached:
        return
    tried = asyncio.run(try_all(settings, crew.uncached, 1))
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
        await asyncio.gather(*(_try(settings, name, a, tries, problem) for name, a in agents.items()))
    )


async def _try(settings: Settings, name: str, agent: Agent, tries: int, problem: str) -> Tried:
    scripted = settings.agents.of(name).backend == "oracle"
    query = replace(CANARY, request=QUESTIONS[name])
    if scripted:
        query = AgentQuery(problem, "", "", 0)
    answers, latencies_s = [], []
    for index in range(tries):
        begun = time.monotonic()
        seeded = replace(query, seed=seed_of("canary", name, index))
        answers.append(await ask(agent, seeded, settings.agents.timeout_s))
        latencies_s.append(time.monotonic() - begun)
    return Tried(name, tuple(answers), tuple(latencies_s), may_be_silent=scripted)


def _problem_of(settings: Settings) -> str:
    return build_task(settings.task, settings.sandbox).problems(Split.TRAIN)[0].text


def _table(tried: Sequence[Tried], crew: AgentSet) -> Table:
    table = Table(
        "agent", "back end", "model", "host", "prompt", "latency", "tokens", "cost", "parsed", "result"
    )
    for t in tried:
        about = crew.record[t.agent]
        usage = [a.usage for a in t.answers]
        number = len(t.answers)
        tokens = f"{sum(u.prompt_tokens for u in usage)} + {sum(u.completion_tokens for u in usage)}"
        came = [a for a in t.answers if a.outcome in (ConsultOutcome.ANSWERED, ConsultOutcome.EMPTY)]
        unreadable = [a for a in t.answers if a.failure is AgentFailure.UNREADABLE]
        replies = len(came) + len(unreadable)
        cells = [
            str(t.agent),
            about["backend"],
            about.get("model") or "-",
            about.get("host") or "-",
            about.get("prompt_sha256") or "-",
            f"{statistics.median(t.latencies_s):.2f} s",
            tokens,
            f"{sum(u.cost for u in usage):.6f}",
            f"{len(came)}/{replies}" if replies else "-",
            f"{len(t.failures)} of {number} failed" if t.failures else "ok",
        ]
        table.add_row(*map(Text, cells))  # as text: markup in a model's name is no markup
    return table
