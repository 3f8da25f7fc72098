"""`aipo verl check`: is the plugin loaded, and would this configuration run?

Owns what is asked and printed. Must not start Ray. Invariant: the exit code is 1 when an answer is no.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import typer

from aipo.console import EXIT_BAD_INPUT, console, errors

PLUGIN = "aipo.integrations.verl.plugin"


def check(config: Path | None) -> None:
    """Import verl as it is imported everywhere, look into its registries, read the configuration."""
    found = [*_plugin(), *([] if config is None else _configuration(config))]
    for line in found:
        errors.print(f"error: {line}", style="bold red", markup=False)
    if found:
        raise typer.Exit(1)
    console.print("verl finds the plugin" + (f", and {config} is fine" if config else ""), markup=False)


def _plugin() -> list[str]:
    from aipo.integrations.verl.nodes import PluginError, missing, refuse_version

    try:
        refuse_version()
        found = missing()
    except (PluginError, ImportError) as error:
        return [str(error)]
    if not found:
        return []
    try:
        import_module(PLUGIN)
    except Exception as error:  # whatever an import can raise is what this verb is asked to show
        found.append(f"{PLUGIN}: {error!r}")
    return found


def _configuration(path: Path) -> list[str]:
    from aipo.integrations.verl.plan import PlanError
    from aipo.integrations.verl.refusals import RefusedError, refuse

    if not path.is_file():
        errors.print(f"error: {path}: no such file; `aipo verl config` writes one", markup=False)
        raise typer.Exit(EXIT_BAD_INPUT)
    if find_spec("hydra") is None:
        return ["hydra is not installed, which comes with verl; pip install 'aipo[verl]'"]
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    try:
        with initialize_config_dir(str(path.parent.resolve()), version_base=None):
            refuse(compose(path.stem))
    except (RefusedError, PlanError, HydraException) as error:
        return [f"{path}: {error}"]
    return []
