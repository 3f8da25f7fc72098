"""The recipe as it stands in verl's configuration, table `aipo`: all that the plugin knows, it reads there.

Nothing of it is written down a second time, so that no two of verl's processes can disagree.
"""

from collections.abc import Mapping
from typing import Any

from aipo.config.layers import Layers
from aipo.config.settings import Settings
from aipo.training.schedule import shape_at

GENERATE_TIMEOUT_S = 3600.0
"""Deadline of one stretch of generation, unless `aipo.generate_timeout_s` says otherwise."""


def recipe_of(table: Mapping[str, Any]) -> Settings:
    """Return the recipe inside the table `aipo`. Raises `SettingsError`."""
    layers = Layers(source="aipo.recipe of verl's configuration")
    layers.add_table(Settings, table["recipe"], "aipo.recipe")
    return layers.validate(Settings)


def generate_timeout_s(table: Mapping[str, Any]) -> float:
    """Return the deadline of one stretch of generation, in the table `aipo`."""
    return float(table.get("generate_timeout_s", GENERATE_TIMEOUT_S))


def rows_per_prompt(settings: Settings) -> int:
    """Return how many rows verl makes of a prompt: rollouts, and behind them experts."""
    shape = shape_at(settings, 1)
    return shape.consulting + shape.solo + shape.experts
