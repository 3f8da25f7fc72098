"""`aipo agents`: the verbs about agents. What works behind one is imported when it is called."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aipo.cli.options import Overrides, Recipe

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from aipo.agents.base import Usage
    from aipo.assembly.agents import AgentSet
    from aipo.assembly.canary import Tried
    from aipo.assembly.judges import TriedJudge

app = typer.Typer(
    name="agents",
    help="Look after the agents that a recipe names.",
    no_args_is_help=True,
    add_completion=False,
)
EXIT_FAILED = 1
Tries = Annotated[int, typer.Option("--tries", min=1, help="How many questions each agent is sent.")]


@app.callback()
def agents() -> None:
    """Look after the agents that a recipe names."""


@app.command()
def check(recipe: Recipe, overrides: Overrides = None, tries: Tries = 3) -> None:
    """Ask each agent of a recipe a few harmless questions about the task's first problems.

    The judge of task.reward is shown a right and a wrong answer. One row for each: latency, prompt +
    completion tokens, cost, the share of replies that could be parsed, and the reason of every failure.
    Nothing is trained and no policy is loaded. The exit code is 1 when one of them failed.
    """
    import asyncio

    from rich.text import Text

    from aipo.agents.backends import AgentSetupError
    from aipo.agents.named import AGENTS
    from aipo.assembly.agents import build_agents, oracle_of
    from aipo.assembly.canary import problems_to_ask_about, try_all
    from aipo.assembly.judges import judges_of, try_judges
    from aipo.cli.console import console, plain_errors
    from aipo.config.loader import load_settings

    with plain_errors():
        settings = load_settings(recipe, overrides or [])
        if not settings.agents.enabled and not judges_of(settings.task):
            raise AgentSetupError(
                "agents.enabled = []: there is no agent to check; name some, as in "
                f"agents.enabled = {json.dumps(list(AGENTS))}"
            )
        agent_set = build_agents(settings, oracle_of(settings), use_cache=False)
        problems, unreadable = problems_to_ask_about(settings)
        tried = asyncio.run(try_all(settings, agent_set.agents, tries, problems))
        judges = try_judges(settings)
    console.print(_table(tried, agent_set, judges))
    if unreadable:
        console.print(Text(f"asked about {problems[0].id}, for the task's cannot be read: {unreadable}"))
    said = {**{t.agent: t.reasons for t in tried}, **{j.name: j.reasons for j in judges}}
    for name, reasons in said.items():
        for reason in reasons:
            console.print(Text(f"{name}: {reason}", style="bold red"))
    remarks = [f"{t.agent}: {t.remark}" for t in tried if t.remark]
    for remark in [*remarks, *(judge.warning for judge in judges if judge.warning)]:
        console.print(Text(remark, style="yellow"))
    if any(said.values()):
        raise typer.Exit(EXIT_FAILED)


def _table(tried: "Sequence[Tried]", agent_set: "AgentSet", judges: "Sequence[TriedJudge]") -> "Table":
    from statistics import median

    from rich.table import Table

    from aipo.agents.base import AgentFailure
    from aipo.core.types import ConsultOutcome

    table = Table(
        "agent", "back end", "model", "host", "prompt", "latency", "tokens", "cost", "parsed", "result"
    )
    for t in tried:
        number = len(t.answers)
        came = [a for a in t.answers if a.outcome in (ConsultOutcome.ANSWERED, ConsultOutcome.EMPTY)]
        unreadable = [a for a in t.answers if a.failure is AgentFailure.UNREADABLE]
        replies = len(came) + len(unreadable)
        who = _who(t.agent, agent_set.record[t.agent])
        spent = _spent(median(t.latencies_s), [a.usage for a in t.answers])
        parsed = f"{len(came)}/{replies}" if replies else "-"
        result = f"{len(t.failures)} of {number} failed" if t.failures else "silent" if t.remark else "ok"
        table.add_row(*who, *spent, parsed, result)
    for judge in judges:
        scores = sum(each.value is not None for each in (judge.right, judge.wrong))
        spent = _spent(judge.latency_s, [judge.right.usage, judge.wrong.usage])
        result = "failed" if judge.reasons else judge.said
        table.add_row(*_who(judge.name, judge.record), *spent, f"{scores}/2", result)
    return table


def _who(name: str, about: "Mapping[str, Any]") -> "list[Text]":
    from rich.text import Text

    known = [about["backend"], *(about.get(key) or "-" for key in ("model", "host", "prompt_sha256"))]
    return [Text(str(each)) for each in (name, *known)]  # as text: markup in a model's name is no markup


def _spent(latency_s: float, usage: "Sequence[Usage]") -> list[str]:
    tokens = f"{sum(u.prompt_tokens for u in usage)} + {sum(u.completion_tokens for u in usage)}"
    return [f"{latency_s:.2f} s", tokens, f"{sum(u.cost for u in usage):.6f}"]
