"""From recipes and overrides to `Settings`, and back to text: load, dump, compare.

`load_settings` of what `dump_settings` wrote gives equal settings.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from aipo.config.layers import Layers, flatten, load_layers
from aipo.config.problems import SettingsError, auto_in_either, dotted
from aipo.config.settings import Section, Settings
from aipo.config.toml import toml_text, toml_value

__all__ = [
    "SettingsError",
    "diff_settings",
    "dump_settings",
    "load_settings",
    "parse_settings",
]


def load_settings(recipe: Path | str | None, overrides: Sequence[str] = ()) -> Settings:
    """Return the defaults, changed by a recipe (above the recipe its `base` names), changed by overrides.

    An override is `section.field=value`. Raises `SettingsError` that lists every problem of the load.

    >>> load_settings(None, ["train.steps=10", 'agents.enabled=["verify"]']).train.steps
    10
    """
    return load_layers(Settings, None if recipe is None else Path(recipe), overrides)


def dump_settings(settings: Section) -> str:
    """Return settings as TOML, every field resolved; what is none is left out, as TOML has no word for it."""
    return toml_text(settings.model_dump(mode="json", exclude_none=True))


def parse_settings(text: str) -> Settings:
    """Return what `dump_settings` wrote; fields that are newer than the text have their defaults.

    Raises `SettingsError` for fields that are gone.
    """
    layers = Layers(source="stored settings")
    layers.add_table(Settings, tomllib.loads(text), "stored settings")
    return layers.validate(Settings)


def diff_settings(a: Section, b: Section) -> list[str]:
    """Return `key: old -> new` for each field that differs.

    A field that is decided when a run begins does not differ where it is `auto` on one side.

    >>> diff_settings(Settings(), load_settings(None, ["train.steps=10"]))
    ['train.steps: 200 -> 10']
    """
    old, new = _spelled(a), _spelled(b)
    keys = dict.fromkeys([*old, *new])
    pairs = {key: (old.get(key, "(not set)"), new.get(key, "(not set)")) for key in keys}
    return [
        f"{dotted(key)}: {before} -> {after}"
        for key, (before, after) in pairs.items()
        if before != after and not auto_in_either(type(a), key, before, after)
    ]


def _spelled(settings: Section) -> dict[tuple[str, ...], str]:
    """Return the TOML of each field that is set."""
    table = settings.model_dump(mode="json", exclude_none=True)
    return {key: toml_value(value) for key, value, _ in flatten(type(settings), table)}
