"""Checkpoints: everything that the next step depends on, written aside and renamed.

Owns the folder `checkpoints/` of a run. Must not know the loop.
Invariant: a folder that has its manifest is complete; one that lacks it is ignored.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

MANIFEST = "manifest.json"
SCHEMA = 1


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names it and the fix."""


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def save(
        self,
        step: int,
        model: PreTrainedModel,
        optimiser: torch.optim.Optimizer,
        scheduler: Any,
        state: Mapping[str, Any],
    ) -> Path:
        """Write the state after `step` and drop the oldest."""
        final = self._folder / f"step-{step:06d}"
        aside = self._folder / f".step-{step:06d}.partial"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        model.save_pretrained(aside / "policy")
        torch.save(
            {"optimiser": optimiser.state_dict(), "scheduler": scheduler.state_dict()}, aside / "optimiser.pt"
        )
        (aside / "state.json").write_text(json.dumps(state))
        for path in aside.rglob("*"):
            if path.is_file():
                _fsync(path)
        manifest = {"schema": SCHEMA, "step": step, "torch": torch.__version__}
        (aside / MANIFEST).write_text(json.dumps(manifest))
        _fsync(aside / MANIFEST)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        for old in self.steps()[: -self._keep]:
            shutil.rmtree(self._folder / f"step-{old:06d}")
        return final

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, oldest first."""
        return sorted(
            int(path.parent.name.removeprefix("step-")) for path in self._folder.glob(f"step-*/{MANIFEST}")
        )

    def restore(
        self, step: int, model: PreTrainedModel, optimiser: torch.optim.Optimizer, scheduler: Any
    ) -> dict[str, Any]:
        """Load a checkpoint into the given objects and return the rest of its state. Raises
        `CheckpointError`."""
        folder = self._folder / f"step-{step:06d}"
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            if manifest["schema"] != SCHEMA:
                raise CheckpointError(f"{folder}: schema {manifest['schema']}, this version reads {SCHEMA}")
            weights = type(model).from_pretrained(folder / "policy", dtype=model.dtype).state_dict()
            model.load_state_dict(weights)
            saved = torch.load(folder / "optimiser.pt", weights_only=True)
            optimiser.load_state_dict(saved["optimiser"])
            scheduler.load_state_dict(saved["scheduler"])
            state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        except CheckpointError:
            raise
        except Exception as error:  # what a spoilt file raises depends on where it is spoilt
            raise CheckpointError(
                f"{folder} cannot be read ({error}); remove it to fall back on an older one"
            ) from error
        return state


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
