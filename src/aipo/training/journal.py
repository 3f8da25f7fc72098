"""The files of a run: settings, metrics, rollouts and timings, append-only and in step.

After a resume from step k no line of a later step is left, so files read as if nothing had happened.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from aipo.config.loader import dump_settings
from aipo.config.settings import Settings
from aipo.training.changes import SETTINGS as SETTINGS
from aipo.training.changes import Changes
from aipo.training.changes import RunFolderError as RunFolderError
from aipo.training.durable import hold_lock, sync, write_whole
from aipo.training.events import StopRunError, visible

METRICS, ROLLOUTS, TIMINGS = "metrics.jsonl", "rollouts.jsonl", "timings.jsonl"
EVALUATION = "evaluation.jsonl"
SERVER_LOG = "policy-server.log"
"""Of a policy server that was started for the run: before its folder is claimed, and also where it fails."""
AGENTS = "agents.json"
LOCK = ".lock"
STOPPED = "stopped.txt"
"""Why the run stopped; gone once it goes on."""
_RECORDS = (METRICS, ROLLOUTS, TIMINGS, EVALUATION)


class NotRecordedError(StopRunError):
    """A record could not be written: most likely the disk is full."""


class Journal:
    """Writes a run's files; as long as its process lives, no other one does."""

    def __init__(self, settings: Settings, may_change: Collection[str] = (), claim: bool = True) -> None:
        """Claim the output folder. Raises `RunFolderError` if it holds another run or foreign files, or if
        another process is writing to it. Settings named by `may_change` may differ from the run's. Whoever
        does not `claim` it, a rank but the first, must only read."""
        self.folder = settings.run.output
        self._counted = {name: _Counted() for name in (METRICS, EVALUATION)}
        self._lock: IO[str] | None = None
        if not claim:
            self.changes = Changes(settings, may_change)
            return
        begun = refuse_other_run(settings, may_change)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder)
        if not begun:
            write_whole(self.folder / SETTINGS, dump_settings(settings))
        self.changes = Changes(settings, may_change)

    def close(self) -> None:
        """Let go of the folder; the end of the process does so too."""
        if self._lock is not None:
            self._lock.close()

    def append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records, each with its `step`, to one of the run's files. Raises `NotRecordedError`."""
        text = "".join(json.dumps(record) + "\n" for record in records)
        try:
            with (self.folder / name).open("a") as file:
                file.write(text)
        except OSError as error:
            raise NotRecordedError(
                f"{str(self.folder / name)!r} could not be written ({error}); make room. The same command "
                "continues from the newest checkpoint, and a torn line is dropped then"
            ) from error

    def sync(self) -> None:
        """Wait until all records are on the disk: a checkpoint must not outlive the lines it counts on."""
        for name in _RECORDS:
            if (self.folder / name).exists():
                sync(self.folder / name)
        sync(self.folder)

    def lines_up_to(self, step: int) -> dict[str, int]:
        """Return how many lines the run itself has written for steps 1 to `step`, of files that must not
        shrink; rollouts and timings may be packed away by hand."""
        for name, counted in self._counted.items():
            counted.read_on(self.folder / name)
        return {name: counted.up_to(step) for name, counted in self._counted.items()}

    def rewind(self, step: int) -> None:
        """Drop every line of a later step, and a torn last line."""
        self._counted = {name: _Counted() for name in self._counted}
        for name in _RECORDS:
            path = self.folder / name
            if not path.exists():
                continue
            kept = b"".join(line + b"\n" for line in _lines(path) if _step_of(line, path) <= step)
            if path.read_bytes().startswith(kept):
                os.truncate(path, len(kept))  # needs no room, which may be why the run stopped
                continue
            aside = path.with_suffix(".partial")
            aside.write_bytes(kept)
            aside.replace(path)

    def say_stopped(self, why: str) -> None:
        """Leave the reason of a stop in the folder, for whoever comes back to it."""
        try:
            (self.folder / STOPPED).write_text(visible(why) + "\n")
        except OSError:
            return  # a full disk may be the reason; it is also on the screen

    def say_going_on(self) -> None:
        """Take back the reason of an earlier stop."""
        (self.folder / STOPPED).unlink(missing_ok=True)


class _Counted:
    """The steps of a file's lines, of which each is read once: a long run counts them at every checkpoint."""

    def __init__(self) -> None:
        self._steps: list[float] = []
        self._bytes = 0

    def read_on(self, path: Path) -> None:
        """Read what was written since the last time; a line without its end is left for the next."""
        size = path.stat().st_size if path.exists() else 0
        if size < self._bytes:
            self._steps, self._bytes = [], 0  # cut by somebody: count again
        if size == self._bytes:
            return
        with path.open("rb") as file:
            file.seek(self._bytes)
            whole, end, _ = file.read().rpartition(b"\n")
        self._steps += [_step_of(line, path) for line in whole.splitlines()]
        self._bytes += len(whole) + len(end)

    def up_to(self, step: int) -> int:
        """Return how many lines are of steps 1 to `step`."""
        return sum(0 < each <= step for each in self._steps)


def _locked(folder: Path) -> IO[str]:
    """Return the folder's lock, held until the process ends, however it ends. Raises `RunFolderError`."""
    if lock := hold_lock(folder / LOCK):
        return lock
    raise RunFolderError(
        f"run.output = {str(folder)!r} is being written to by another process; end it, wait for it or "
        "choose another folder"
    )


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
    write_whole(path, json.dumps([*kept, {"from_step": step + 1, "agents": agents}], indent=1) + "\n")
    return bool(kept)


def refuse_other_run(settings: Settings, may_change: Collection[str] = ()) -> bool:
    """Say whether the output folder holds this very run already, but for what `may_change` names.

    Raises `RunFolderError` if it holds another run or foreign files.
    """
    folder = settings.run.output
    stored = folder / SETTINGS
    if stored.exists():
        Changes(settings, may_change)
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
