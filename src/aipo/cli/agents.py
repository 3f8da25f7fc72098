"""`aipo agents`: the verbs about agents.

Owns their help. Must not import what works behind them before it is called: `--help` is quick.
Invariant: every verb takes a recipe and dotted overrides, and ends with an exit code that says what happened.
"""

from typing import Annotated

import typer

from aipo.cli.options import Overrides, Recipe

app = typer.Typer(
    name="agents",
    help="Look after the agents that a recipe names.",
    no_args_is_help=True,
    add_completion=False,
)
Tries = Annotated[int, typer.Option("--tries", min=1, help="How many canaries each agent is sent.")]


@app.callback()
def agents() -> None:
    """Look after the agents that a recipe names."""


@app.command()
def check(recipe: Recipe, overrides: Overrides = None, tries: Tries = 3) -> None:
    """Ask each agent of a recipe a few harmless questions and print what came back.

    One row for each agent: latency, prompt + completion tokens, cost, the share of replies that could be
    parsed, and the reason of every failure. Nothing is trained and no policy is loaded. The exit code is 1
    when an agent failed.
    """
    from aipo.assembly.canary import check as run

    run(recipe, overrides or [], tries)
