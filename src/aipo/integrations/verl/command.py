"""The files of a run on verl: its configuration, the recipe, and a script that exports, checks and starts."""

from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from aipo.config.cluster import ClusterSettings
from aipo.config.loader import dump_settings
from aipo.config.settings import Settings
from aipo.integrations.verl.config import verl_config

CONFIG, SCRIPT = "aipo_verl.yaml", "run.sh"


def write_command(settings: Settings, cluster: ClusterSettings, output: Path) -> tuple[Path, Path]:
    """Write them into a folder; return the configuration and the script. Raises `VerlConfigError`."""
    table = verl_config(settings, cluster)
    output.mkdir(parents=True, exist_ok=True)
    (output / "recipe.toml").write_text(dump_settings(settings), encoding="utf-8")
    (output / CONFIG).write_text(yaml_of(table), encoding="utf-8")
    script = output / SCRIPT
    script.write_text(_script(output, cluster), encoding="utf-8")
    script.chmod(0o755)
    return output / CONFIG, script


def yaml_of(table: dict[str, Any]) -> str:
    """Return a configuration as the file's text."""
    head = "# verl's configuration, written by `aipo verl config`; the recipe stands beside it.\n"
    return head + yaml.safe_dump(table, sort_keys=False, allow_unicode=True)


def _script(output: Path, cluster: ClusterSettings) -> str:
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
