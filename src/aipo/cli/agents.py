"""`aipo agents`: the verbs about agents. What works behind one is imported when it is called."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from aipo.cli.options import Overrides, Recipe

if TYPE_CHECKING:
    from rich.table import Table

    from aipo.assembly.agents import AgentSet
    from aipo.assembly.canary import Tried

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

    One row for each agent: latency, prompt + completion tokens, cost, the share of replies that could be
    parsed, and the reason of every failure. Nothing is trained and no policy is loaded. The exit code is 1
    when an agent failed.
    """
    import asyncio

    from rich.text import Text

    from aipo.agents.backends import AgentSetupError
    from aipo.agents.named import AGENTS
    from aipo.assembly.agents import build_agents, oracle_of
    from aipo.assembly.canary import problems_to_ask_about, try_all
    from aipo.cli.console import console, plain_errors
    from aipo.config.loader import load_settings

    with plain_errors():
        settings = load_settings(recipe, overrides or [])
        if not settings.agents.enabled:
            raise AgentSetupError(
                "agents.enabled = []: there is no agent to check; name some, as in "
                f"agents.enabled = {json.dumps(list(AGENTS))}"
            )
        agent_set = build_agents(settings, oracle_of(settings), use_cache=False)
        problems, unreadable = problems_to_ask_about(settings)
        tried = asyncio.run(try_all(settings, agent_set.agents, tries, problems))
    console.print(_table(tried, agent_set))
    if unreadable:
        console.print(Text(f"asked about {problems[0].id}, for the task's cannot be read: {unreadable}"))
    for t in tried:
        if t.remark:
            console.print(Text(f"{t.agent}: {t.remark}", style="yellow"))
    failed = [t for t in tried if t.failures]
    for t in failed:
        for reason in t.reasons:
            console.print(Text(f"{t.agent}: {reason}", style="bold red"))
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _table(tried: "Sequence[Tried]", agent_set: "AgentSet") -> "Table":
    from statistics import median

    from rich.table import Table
    from rich.text import Text

    from aipo.agents.base import AgentFailure
    from aipo.core.types import ConsultOutcome

    table = Table(
        "agent", "back end", "model", "host", "prompt", "latency", "tokens", "cost", "parsed", "result"
    )
    for t in tried:
        about = agent_set.record[t.agent]
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
            f"{median(t.latencies_s):.2f} s",
            tokens,
            f"{sum(u.cost for u in usage):.6f}",
            f"{len(came)}/{replies}" if replies else "-",
            f"{len(t.failures)} of {number} failed" if t.failures else "silent" if t.remark else "ok",
        ]
        table.add_row(*map(Text, cells))  # as text: markup in a model's name is no markup
    return table
