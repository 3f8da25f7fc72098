"""The files of a run: settings, metrics, rollouts and timings, append-only and in step.

Owns the folder's layout. Must not know what the numbers mean.
Invariant: after a resume from step k no line of a later step is left, so files read as if nothing had
happened.
"""

import fcntl
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from aipo.config.loader import diff_settings, dump_settings, load_settings
from aipo.config.settings import Settings

SETTINGS = "settings.toml"
METRICS, ROLLOUTS, TIMINGS = "metrics.jsonl", "rollouts.jsonl", "timings.jsonl"
EVALUATION = "evaluation.jsonl"
SERVER_LOG = "policy-server.log"
"""Of a policy server that was started for the run: before its folder is claimed, and also where it fails."""
AGENTS = "agents.json"
LOCK = ".lock"


class RunFolderError(ValueError):
    """The output folder cannot be used; the message names the difference and the fix."""


class Journal:
    """Writes a run's files; as long as its process lives, no other one does."""

    def __init__(self, settings: Settings) -> None:
        """Claim the output folder. Raises `RunFolderError` if it holds another run or foreign files, or if
        another process is writing to it."""
        self.folder = settings.run.output
        stored = self.folder / SETTINGS
        begun = refuse_other_run(settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder)
        if begun:
            return
        aside = stored.with_suffix(".partial")
        aside.write_text(dump_settings(settings))
        aside.rename(stored)

    def close(self) -> None:
        """Let go of the folder; the end of the process does so too."""
        self._lock.close()

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


def _locked(folder: Path) -> IO[str]:
    """Return the folder's lock, held until the process ends, however it ends. Raises `RunFolderError`."""
    lock = (folder / LOCK).open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise RunFolderError(
            f"run.output = {str(folder)!r} is being written to by another process; end it, wait for it or "
            "choose another folder"
        ) from None
    return lock


def record_agents(folder: Path, step: int, agents: Mapping[str, Mapping[str, Any]]) -> bool:
    """Write down who answers from the step after `step`; True if that is somebody else than before.

    The file is a list: one entry for each set of agents (a package's update may bring another prompt), the
    first step that it answered in, and what is known of each.
    """
    path = folder / AGENTS
    entries = json.loads(path.read_text()) if path.exists() else []
    if entries and entries[-1]["agents"] == agents:
        return False
    # What was written for steps that are run again now is no longer true.
    kept = [entry for entry in entries if entry["from_step"] <= step]
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps([*kept, {"from_step": step + 1, "agents": agents}], indent=1) + "\n")
    aside.replace(path)
    return bool(kept)


def refuse_other_run(settings: Settings) -> bool:
    """Say whether the output folder holds this very run already.

    Raises `RunFolderError` if it holds another run or foreign files.
    """
    folder = settings.run.output
    stored = folder / SETTINGS
    if stored.exists():
        if changed := diff_settings(load_settings(stored, []), settings):
            raise RunFolderError(
                f"run.output = {str(folder)!r} holds a run with other settings; choose another "
                "folder or go back to its settings:\n  " + "\n  ".join(changed)
            )
        return True
    ours = {folder / LOCK, stored.with_suffix(".partial"), *folder.glob(f"{Path(SERVER_LOG).stem}*.log")}
    if folder.exists() and not (folder.is_dir() and set(folder.iterdir()) <= ours):
        raise RunFolderError(
            f"run.output = {str(folder)!r} is not empty and not a run; choose another folder"
        )
    return False


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
