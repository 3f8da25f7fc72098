"""`aipo verl`: the verbs about running a recipe on verl.

What works behind a verb is imported when it is called. The exit code is 0, 1 where something is missing, or 2
for bad input.
"""

from pathlib import Path
from typing import Annotated

import typer

from aipo.cli.options import Overrides, Recipe

app = typer.Typer(
    name="verl",
    help="Run a recipe on verl, a cluster's worth of GPUs (docs/verl.md).",
    no_args_is_help=True,
    add_completion=False,
)
Cluster = Annotated[
    Path | None,
    typer.Option("--cluster", help="TOML of the cluster, for example recipes/verl/one_node.toml."),
]
On = Annotated[
    list[str] | None, typer.Option("--on", help="A change to the cluster, as in --on nodes=2. Repeatable.")
]
Output = Annotated[Path, typer.Option("--output", help="Folder for the configuration and the script.")]
Config = Annotated[
    Path | None,
    typer.Argument(help="The configuration that `aipo verl config` wrote, if there is one."),
]

Checkpoint = Annotated[Path, typer.Argument(help="A run's folder, or one global_step_N of its checkpoints.")]
Policy = Annotated[Path, typer.Option("--output", help="A new folder for the policy.")]


@app.callback()
def verl() -> None:
    """Run a recipe on verl, a cluster's worth of GPUs."""


@app.command()
def config(
    recipe: Recipe,
    overrides: Overrides = None,
    cluster: Cluster = None,
    on: On = None,
    output: Output = Path("runs/verl"),
) -> None:
    """Write verl's configuration of a recipe, and a script that exports the data, checks and runs it.

    A setting that would mean something else on verl, or nothing, is an error with its fix.
    """
    from aipo.cli.console import console, plain_errors
    from aipo.config.cluster import load_cluster
    from aipo.config.loader import load_settings

    with plain_errors():
        settings, where = load_settings(recipe, overrides or []), load_cluster(cluster, on or [])
        from aipo.integrations.verl.command import write_command

        written, script = write_command(settings, where, output)
    console.print(f"{written}, {script}: start with\n\n  bash {script}", markup=False)


@app.command()
def check(config: Config = None) -> None:
    """Check that verl finds the plugin in this environment, and that nothing in a configuration spoils it.

    verl itself says nothing when a plugin fails to load. The exit code is 1 when something is missing.
    """
    from aipo.cli.console import console, errors, plain_errors
    from aipo.integrations.verl.check import problems_of_configuration, problems_of_plugin

    with plain_errors():
        found = [*problems_of_plugin(), *([] if config is None else problems_of_configuration(config))]
    for line in found:
        errors.print(f"error: {line}", style="bold red", markup=False)
    if found:
        raise typer.Exit(1)
    console.print("verl finds the plugin" + (f", and {config} is fine" if config else ""), markup=False)


@app.command()
def export(checkpoint: Checkpoint, output: Policy) -> None:
    """Write the policy of a checkpoint of verl's as a plain Hugging Face folder, for every other verb.

    CHECKPOINT is a run's folder (`run.output`), whose newest one is taken, or a folder `global_step_N`.
    """
    from aipo.cli.console import console, plain_errors
    from aipo.integrations.verl.policy import export_policy

    with plain_errors():
        source = export_policy(checkpoint, output)
    console.print(f"{output}: the policy of {source}", markup=False)
