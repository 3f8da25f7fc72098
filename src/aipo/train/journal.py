"""The files of a run: settings, metrics, rollouts and timings, append-only and in step.

Owns the folder's layout. Must not know what the numbers mean.
Invariant: after a resume from step k no line of a later step is left, so files read as if nothing had
happened.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aipo.config.loader import diff_settings, dump_settings, load_settings
from aipo.config.settings import Settings

SETTINGS = "settings.toml"
METRICS, ROLLOUTS, TIMINGS = "metrics.jsonl", "rollouts.jsonl", "timings.jsonl"
EVALUATION = "evaluation.jsonl"


class RunFolderError(ValueError):
    """The output folder cannot be used; the message names the difference and the fix."""


class Journal:
    """Writes a run's files."""

    def __init__(self, settings: Settings) -> None:
        """Claim the output folder. Raises `RunFolderError` if it holds another run or foreign files."""
        self.folder = settings.run.output
        stored = self.folder / SETTINGS
        if stored.exists():
            if changed := diff_settings(load_settings(stored, []), settings):
                raise RunFolderError(
                    f"run.output = {str(self.folder)!r} holds a run with other settings; choose another "
                    "folder or go back to its settings:\n  " + "\n  ".join(changed)
                )
            return
        aside = stored.with_suffix(".partial")
        if self.folder.exists() and not (self.folder.is_dir() and set(self.folder.iterdir()) <= {aside}):
            raise RunFolderError(
                f"run.output = {str(self.folder)!r} is not empty and not a run; choose another folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        aside.write_text(dump_settings(settings))
        aside.rename(stored)

    def append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records, each with its `step`, to one of the run's files."""
        with (self.folder / name).open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def rewind(self, step: int) -> None:
        """Drop every line of a later step, and a torn last line."""
        for name in (METRICS, ROLLOUTS, TIMINGS, EVALUATION):
            path = self.folder / name
            if not path.exists():
                continue
            kept = [line for line in _lines(path) if _step_of(line, path) <= step]
            aside = path.with_suffix(".partial")
            aside.write_bytes(b"".join(line + b"\n" for line in kept))
            aside.replace(path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a run's file; a torn last line is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in _lines(path) if _step_of(line, path) < float("inf")]


def _lines(path: Path) -> list[bytes]:
    """Return the lines as bytes: a crash may tear a character, and in text U+2028 would end a line too."""
    return path.read_bytes().splitlines()


def _step_of(line: bytes, path: Path) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return float("inf")  # torn by a crash: the step it belongs to was not checkpointed
    except (KeyError, TypeError) as error:
        raise RunFolderError(f"{path}: a line has no step; it was not written by this program") from error
