"""Metrics to wandb, trackio, tensorboard, mlflow and what else accelerate can write to.

None is required, and one that was asked for is there or the run does not start.

What a tracker gets is a copy: the run's records are the journal's. After a crash, steps behind the last
checkpoint are made and sent again.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from aipo.config.settings import Settings

FOLDER = "trackers"
"""Of a run: what trackers that write files write there."""
_PROJECT = "aipo"
_PACKAGES = {"comet_ml": "comet-ml"}
"""Where the package's name is not the tracker's."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise `ValueError` for a tracker that does not exist or is not installed.

    accelerate itself leaves out what is not installed without a word.
    """
    known, there = sorted(map(str, LOGGER_TYPE_TO_CLASS)), set(map(str, get_available_trackers()))
    for name in names:
        if name not in known:
            nearest = get_close_matches(name, known, 1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose among {', '.join(known)}"
            raise ValueError(f"run.trackers: there is no {name!r}; {hint}")
        if name not in there:
            package = _PACKAGES.get(name, name)
            raise ValueError(
                f"run.trackers: {name!r} is not installed; `pip install {package}`, or take it out"
            )


def start_trackers(accelerator: Accelerator, settings: Settings) -> None:
    """Tell the trackers of `accelerator` what run this is."""
    if not settings.run.trackers:
        return
    name = settings.run.output.name
    named: dict[str, Any] = {"wandb": {"name": name}, "trackio": {"name": name}, "mlflow": {"run_name": name}}
    given = {tracker: named[tracker] for tracker in settings.run.trackers if tracker in named}
    accelerator.init_trackers(
        _PROJECT, config=dict(_plain(settings.model_dump(mode="json"))), init_kwargs=given
    )


def _plain(table: dict[str, Any], prefix: str = "") -> list[tuple[str, str | int | float | bool]]:
    """Return `section.field` and value; what is no number, text or switch becomes text."""
    flat: list[tuple[str, str | int | float | bool]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            flat += _plain(value, f"{prefix}{key}.")
        else:
            flat.append((prefix + key, value if isinstance(value, bool | int | float | str) else str(value)))
    return flat
