"""`aipo`: the verbs.

Owns the list of verbs and the process's environment. Must not import torch before it is needed: `--help` is
quick. Invariant: every verb takes a recipe and dotted overrides, and ends with an exit code that says what
happened.
"""

import os

# Two threads that wait actively for each other are slower than one (reference/lab.md, section 5).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import typer

from aipo import __version__
from aipo.cli.compare import compare
from aipo.cli.evaluate import evaluate
from aipo.cli.rollout import rollout
from aipo.cli.train import train
from aipo.cli.warmstart import warmstart

app = typer.Typer(
    name="aipo",
    help="AIPO: train a policy that consults agents while it learns and reasons alone afterwards.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for verb in (warmstart, train, evaluate, compare, rollout):
    app.command()(verb)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


if __name__ == "__main__":
    app()
