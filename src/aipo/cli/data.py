"""`aipo data`: the verbs about data for other engines."""

from pathlib import Path
from typing import Annotated

import typer

from aipo.cli.options import Overrides, Recipe

app = typer.Typer(
    name="data", help="Write problems for other engines.", no_args_is_help=True, add_completion=False
)
Output = Annotated[Path, typer.Option("--output", help="Folder for train.parquet and validation.parquet.")]
Agents = Annotated[
    bool, typer.Option("--with-agents", help="Validate with agents too, beside without: rows of their own.")
]


@app.callback()
def data() -> None:
    """Write problems for other engines."""


@app.command()
def export(
    recipe: Recipe,
    overrides: Overrides = None,
    output: Output = Path("data/verl"),
    with_agents: Agents = False,
) -> None:
    """Write a recipe's problems as verl reads them: one Parquet file to train on, one to validate on.

    Training rows go to the agent loop `aipo`, validation rows to `aipo_solo`, which reaches no agent. With a
    model in policy.model, every prompt is measured: one that is too long is an error, as in `aipo train`.
    """
    from aipo.cli.console import console, plain_errors
    from aipo.config.loader import load_settings
    from aipo.integrations.verl.export import export as write

    with plain_errors():
        console.print(write(load_settings(recipe, overrides or []), output, with_agents), markup=False)
