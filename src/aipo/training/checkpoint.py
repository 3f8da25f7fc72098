"""Checkpoints: everything that the next step depends on, written aside and renamed.

A folder that has its manifest is complete, and each of its files has the bytes that the manifest says; one
that lacks it is ignored.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from aipo.training.durable import sync, sync_tree
from aipo.training.model import restore_weights
from aipo.training.snapshot import Learner, Snapshot
from aipo.training.writer import NotSavedError

MANIFEST = "manifest.json"
SCHEMA = 2
_MANIFEST_KEYS = {"schema", "step", "periodic", "files"}


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names it and the fix."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not as it was written: an older one may do."""


class Checkpoints:
    """The checkpoints of one run: the newest `keep` periodic ones, and one of a stop that is newer."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        for replaced in folder.glob(".step-*.replaced"):  # a crash between two renames
            final = folder / replaced.name[1:].removesuffix(".replaced")
            shutil.rmtree(replaced) if final.exists() else replaced.rename(final)

    def save(self, snapshot: Snapshot, before: Callable[[], object] = lambda: None) -> Path:
        """Write a state, drop the oldest, return the folder. Raises `NotSavedError`.

        `before` runs first: it sees to what the checkpoint counts on. Called by the writer's thread too.
        """
        step = snapshot.step
        aside = self._folder / f".step-{step:06d}.partial"
        try:
            before()
            self._write(aside, snapshot)
            final = self._put(aside, step)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises RuntimeError: disk full
            shutil.rmtree(aside, ignore_errors=True)
            raise NotSavedError(
                f"the checkpoint of step {step} could not be written to {str(self._folder)!r} ({error}); "
                f"checkpoints that are there: {self.steps() or 'none'}. Make room, or lower "
                "train.keep_checkpoints; the same command continues from the newest of them"
            ) from error
        self.drop_old()
        return final

    def _write(self, aside: Path, snapshot: Snapshot) -> None:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        snapshot.write(aside)
        sync_tree(aside)
        files = {str(path.relative_to(aside)): _fingerprint(path) for path in _files(aside)}
        manifest = {"schema": SCHEMA, "step": snapshot.step, "periodic": snapshot.periodic, "files": files}
        (aside / MANIFEST).write_text(json.dumps(manifest))
        sync(aside / MANIFEST)
        sync(aside)

    def _put(self, aside: Path, step: int) -> Path:
        """Give a complete folder its name; at every moment the old or the new one can be found."""
        final = self._folder / f"step-{step:06d}"
        replaced = self._folder / f".{final.name}.replaced"
        if final.exists():
            final.rename(replaced)
        aside.rename(final)
        sync(self._folder)
        shutil.rmtree(replaced, ignore_errors=True)
        return final

    def drop_old(self) -> None:
        """Remove what is older than what is to be kept, and what a crash left half written or removed."""
        steps = self.steps()
        periodic = [step for step in steps if self._periodic(step)]
        for old in set(steps) - {steps[-1], *periodic[-self._keep :]}:
            folder = self._folder / f"step-{old:06d}"
            (folder / MANIFEST).unlink()  # half a folder must not look like a whole one
            shutil.rmtree(folder)
        for path in self._folder.iterdir():
            if path.name.startswith((".step-", "step-")) and not (path / MANIFEST).exists():
                shutil.rmtree(path, ignore_errors=True)

    def steps(self, periodic_only: bool = False) -> list[int]:
        """Return the steps of all complete checkpoints, oldest first."""
        steps = sorted(
            int(path.parent.name.removeprefix("step-")) for path in self._folder.glob(f"step-*/{MANIFEST}")
        )
        return [step for step in steps if self._periodic(step)] if periodic_only else steps

    def _periodic(self, step: int) -> bool:
        try:
            return bool(json.loads((self._folder / f"step-{step:06d}" / MANIFEST).read_text())["periodic"])
        except (ValueError, KeyError, OSError):
            return False

    def set_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint, so that it is neither restored nor counted; return its new place."""
        target = self._folder / f"damaged-step-{step:06d}"
        shutil.rmtree(target, ignore_errors=True)
        (self._folder / f"step-{step:06d}").rename(target)
        sync(self._folder)
        return target

    def restore(self, step: int, learner: Learner) -> dict[str, Any]:
        """Load a checkpoint into what learns and return the rest of its state.

        Nothing is loaded before every file was compared with the manifest. Raises `DamagedCheckpointError`,
        and `CheckpointError` for one of another version of the format.
        """
        folder = self._folder / f"step-{step:06d}"
        try:
            _check_files(folder, step)
            saved = torch.load(folder / "optimiser.pt", weights_only=True)
            same_fields({"optimiser", "scheduler"}, saved, "optimiser.pt")
            _check_optimiser(saved["optimiser"], learner.optimiser.state_dict())
            same_fields(learner.scheduler.state_dict(), saved["scheduler"], "optimiser.pt: scheduler")
            state: dict[str, Any] = json.loads((folder / "state.json").read_text())
            restore_weights(learner.model, folder / "policy")
            learner.optimiser.load_state_dict(saved["optimiser"])
            learner.scheduler.load_state_dict(saved["scheduler"])
        except CheckpointError:
            raise
        except Exception as error:  # what a spoilt file raises depends on where it is spoilt
            raise DamagedCheckpointError(
                f"{folder} cannot be read ({error}); remove it to fall back on an older one"
            ) from error
        return state


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _fingerprint(path: Path) -> dict[str, str | int]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}


def _check_files(folder: Path, step: int) -> None:
    """Raise where a file is missing or not the one that was written."""
    manifest = json.loads((folder / MANIFEST).read_text())
    if manifest["schema"] != SCHEMA:
        raise CheckpointError(
            f"{folder}: schema {manifest['schema']}, this version reads {SCHEMA}; go on with the version "
            "that wrote it, or begin anew in another run.output"
        )
    same_fields(_MANIFEST_KEYS, manifest, MANIFEST)
    if manifest["step"] != step:
        raise ValueError(f"its manifest is that of step {manifest['step']}")
    found = {str(path.relative_to(folder)) for path in _files(folder)}
    if missing := manifest["files"].keys() - found:
        raise ValueError(f"{sorted(missing)[0]} is missing")
    if unlisted := found - manifest["files"].keys():
        raise ValueError(f"{sorted(unlisted)[0]} is not in its manifest")
    for name, written in manifest["files"].items():
        if _fingerprint(folder / name) != written:
            raise ValueError(f"{name} is not the file that was written")


def _check_optimiser(saved: Mapping[str, Any], live: Mapping[str, Any]) -> None:
    """Raise where a field is missing that this optimiser has: torch would fill it in without a word."""
    same_fields(live, saved, "optimiser.pt: optimiser")
    if len(saved["param_groups"]) != len(live["param_groups"]):
        raise ValueError("optimiser.pt: another number of parameter groups")
    for own, other in zip(live["param_groups"], saved["param_groups"], strict=True):
        same_fields(own, other, "optimiser.pt: param_groups")
    fields: set[str] = set().union(*saved["state"].values())
    for index, of_parameter in saved["state"].items():
        same_fields(fields, of_parameter, f"optimiser.pt: state of parameter {index}")


def same_fields(expected: Iterable[str], found: Mapping[str, Any], where: str) -> None:
    """Raise `ValueError` that names what is missing, or what is there and nobody would read."""
    missing, unknown = set(expected) - found.keys(), found.keys() - set(expected)
    if missing or unknown:
        raise ValueError(
            f"{where} lacks {sorted(missing)}" if missing else f"{where} has unknown {sorted(unknown)}"
        )
