"""`aipo recipes`: the recipes that come with the package."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="recipes", help="List and copy the packaged recipes.", no_args_is_help=True, add_completion=False
)
Name = Annotated[str, typer.Argument(help="Name of a packaged recipe, as `aipo recipes list` prints it.")]
To = Annotated[Path, typer.Option("--to", help="Folder to copy to.")]


@app.callback()
def recipes() -> None:
    """List and copy the packaged recipes."""


@app.command("list")
def list_() -> None:
    """List the packaged recipes and what each is for."""
    from aipo.cli.console import console
    from aipo.config.recipes import packaged_recipes, summary

    recipes = packaged_recipes()
    width = max(map(len, recipes))
    for name, path in recipes.items():
        console.print(f"{name:<{width}}  {summary(path)}", markup=False)


@app.command("copy")
def copy_(name: Name, to: To = Path("recipes")) -> None:
    """Copy a packaged recipe, with the recipes that it is based on, to be changed and run.

    Exit code 2 for an unknown name, and for a file that is there with another text.
    """
    from aipo.cli.console import console, plain_errors
    from aipo.config.recipes import copy_recipe

    with plain_errors():
        for path in copy_recipe(name, to):
            console.print(str(path), markup=False, highlight=False, soft_wrap=True)
