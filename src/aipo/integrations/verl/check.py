"""What keeps verl from running a configuration with the plugin: nothing is started, Ray neither.

verl itself says nothing when a plugin fails to load.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from aipo.integrations.verl.nodes import PluginError, missing, refuse_version

PLUGIN = "aipo.integrations.verl.plugin"


def problems_of_plugin() -> list[str]:
    """Import verl as it is imported everywhere, look into its registries, return what is missing there."""
    try:
        refuse_version()
        found = missing()
    except (PluginError, ImportError) as error:
        return [str(error)]
    if not found:
        return []
    try:
        import_module(PLUGIN)
    except Exception as error:  # whatever an import can raise is what is asked for
        found.append(f"{PLUGIN}: {error!r}")
    return found


def problems_of_configuration(path: Path) -> list[str]:
    """Return what the plugin would refuse in a configuration. Raises `ValueError` where there is no file."""
    from aipo.config.problems import SettingsError
    from aipo.integrations.verl.refusals import RefusedError, refuse

    if not path.is_file():
        raise ValueError(f"{path}: no such file; `aipo verl config` writes one")
    if find_spec("hydra") is None:
        return ["hydra is not installed, which comes with verl; pip install 'aipo[verl]'"]
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    try:
        with initialize_config_dir(str(path.parent.resolve()), version_base=None):
            refuse(compose(path.stem))
    except (RefusedError, SettingsError, HydraException) as error:
        return [f"{path}: {error}"]
    return []
