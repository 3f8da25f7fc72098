"""`aipo verl`: the verbs about running a recipe on verl.

Owns their help and what they print. Must not import what works behind them before it is called.
Invariant: every verb ends with an exit code that says what happened: 0 as it must be, 1 not so, 2 bad input.
"""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aipo.cli.options import Overrides, Recipe

if TYPE_CHECKING:
    from aipo.config.cluster import ClusterSettings

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
CONFIG, SCRIPT = "aipo_verl.yaml", "run.sh"


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
    from aipo.config.cluster import load_cluster
    from aipo.config.loader import dump_settings, load_settings
    from aipo.console import console, plain_errors

    with plain_errors():
        settings, where = load_settings(recipe, overrides or []), load_cluster(cluster, on or [])
        from aipo.integrations.verl.config import verl_config

        table = verl_config(settings, where)
    output.mkdir(parents=True, exist_ok=True)
    (output / "recipe.toml").write_text(dump_settings(settings), encoding="utf-8")
    (output / CONFIG).write_text(_yaml(table), encoding="utf-8")
    script = output / SCRIPT
    script.write_text(_script(output, where), encoding="utf-8")
    script.chmod(0o755)
    console.print(f"{output / CONFIG}, {script}: start with\n\n  bash {script}", markup=False)


@app.command()
def check(config: Config = None) -> None:
    """Check that verl finds the plugin in this environment, and that nothing in a configuration spoils it.

    verl itself says nothing when a plugin fails to load. The exit code is 1 when something is missing.
    """
    from aipo.cli.verl_check import check as run

    run(config)


def _yaml(table: dict[str, Any]) -> str:
    import yaml

    head = "# verl's configuration, written by `aipo verl config`; the recipe stands beside it.\n"
    return head + yaml.safe_dump(table, sort_keys=False, allow_unicode=True)


def _script(output: Path, cluster: "ClusterSettings") -> str:
    """Return the command; further arguments are verl's own overrides."""
    start = "ray start --head" if cluster.nodes > 1 else ""
    lines = [
        "#!/usr/bin/env bash",
        f"# Written by `aipo verl config`: {cluster.nodes} node(s) of {cluster.gpus_per_node} GPUs.",
        "# Arguments are overrides of verl's, as in trainer.total_training_steps=2.",
        "set -euo pipefail",
        f"here={quote(str(output.resolve()))}",
        f"data={quote(str(cluster.data_folder))}",
        '[[ -f "$data/train.parquet" ]] || aipo data export "$here/recipe.toml" --output "$data"',
        f'aipo verl check "$here/{CONFIG}"',
    ]
    if start:
        lines.insert(4, f"# First `{start}` on one node, `ray start --address HEAD:6379` on the others.")
    name = CONFIG.removesuffix(".yaml")
    lines.append(f'exec python -m verl.trainer.main_ppo --config-path "$here" --config-name {name} "$@"')
    return "\n".join(lines) + "\n"
