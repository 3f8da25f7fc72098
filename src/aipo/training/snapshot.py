"""What a checkpoint holds of the model, its tokenizer and its optimiser: where it lives, its copy, its size.

A copy shares no memory with what the next step changes.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aipo.config.settings import Settings
from aipo.training.sharded import Whole


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What learns, and what of it a checkpoint restores."""

    model: PreTrainedModel
    """The whole policy, whose weights are saved."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """Saved beside the weights, so that others can load them; None: it is not."""
    optimiser: Any
    """torch's, or one that reads and writes like it: `sharded.WholeOptimiser`."""
    scheduler: Any
    policy: Whole
    """Where the trained weights are."""

    @cached_property
    def tokenizer_files(self) -> Mapping[str, bytes]:
        """The tokenizer's files. Written once: while rollouts use it, no other thread may touch it."""
        if self.tokenizer is None:
            return {}
        with TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            return {
                str(path.relative_to(folder)): path.read_bytes()
                for path in sorted(Path(folder).rglob("*"))
                if path.is_file()
            }


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state after a step, ready to be written."""

    step: int
    periodic: bool
    """False: written because the run stopped; it goes with the next one, and no roll back leads to it."""
    state: str
    """JSON of all that is not a tensor."""
    model: PreTrainedModel
    """For its configuration; its weights are not read."""
    weights: dict[str, Tensor]
    learner: dict[str, Any]
    """State of optimiser and scheduler."""
    tokenizer_files: Mapping[str, bytes]

    def write(self, folder: Path) -> None:
        """Write the files of a checkpoint into an empty folder."""
        policy = folder / "policy"
        self.model.save_pretrained(policy, state_dict=dict(self.weights))
        for name, content in self.tokenizer_files.items():
            (policy / name).parent.mkdir(parents=True, exist_ok=True)
            (policy / name).write_bytes(content)
        torch.save(self.learner, folder / "optimiser.pt")
        (folder / "state.json").write_text(self.state)


def snapshot(learner: Learner, state: Mapping[str, Any], periodic: bool, copy: bool) -> Snapshot:
    """Return the state as it is now, in the memory of the CPU; without `copy`, what is there is shared.

    Weights that are never trained are not copied. Tied weights stay tied.
    """
    model = learner.model
    names = model.named_parameters(remove_duplicate=False)
    frozen = {name for name, parameter in names if not parameter.requires_grad}
    copies = _Copies(copy)
    weights = {n: each if n in frozen else copies.of(each) for n, each in model.state_dict().items()}
    moments = {"optimiser": learner.optimiser.state_dict(), "scheduler": learner.scheduler.state_dict()}
    return Snapshot(
        step=state["step"],
        periodic=periodic,
        state=json.dumps(state),
        model=model,
        weights=weights,
        learner=copies.of(moments),
        tokenizer_files=learner.tokenizer_files,
    )


class _Copies:
    """Copies nested values to the CPU; what shares memory does so in the copy."""

    def __init__(self, copy: bool) -> None:
        self._copy = copy
        self._done: dict[tuple[object, ...], Tensor] = {}

    def of(self, value: Any) -> Any:
        """Return the copy of a value."""
        if isinstance(value, Mapping):
            return {key: self.of(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.of(each) for each in value)
        if not isinstance(value, Tensor):
            return value
        place = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if not value.numel() or place not in self._done:
            self._done[place] = value.detach().to("cpu", copy=self._copy)
        return self._done[place]


def bytes_of_checkpoint(model: PreTrainedModel) -> int:
    """Return about how large a checkpoint is: the weights, or the adapters alone, and AdamW's two moments."""
    parameters = list(model.parameters())
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    adapters = getattr(model, "_hf_peft_config_loaded", False)
    return 2 * trained + (trained if adapters else sum(p.numel() * p.element_size() for p in parameters))


def room_for_checkpoints(model: PreTrainedModel, settings: Settings) -> str:
    """Return one line: how large a checkpoint is, when one is written, and what room there is for them.

    What earlier ones take counts as room. Raises `ValueError` where two do not fit: the newest must stay
    until the next one is whole.
    """
    folder, train = settings.run.output, settings.train
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    there = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
    one, room = bytes_of_checkpoint(model), shutil.disk_usage(place).free + there
    every, minutes = train.checkpoint_every_steps, train.checkpoint_every_minutes
    when = f"every {every} steps" if every else f"every {minutes:g} minutes"
    line = (
        f"checkpoints: {_size(one)} each, {when} and at the end, {train.keep_checkpoints} kept beside the "
        f"one being written: {_size((train.keep_checkpoints + 1) * one)}; room at {place}: {_size(room)}"
    )
    if room < 2 * one:
        raise ValueError(
            f"run.output = {str(folder)!r}: {line}. Two must fit, since the newest stays until the next is "
            "whole; make room, choose another disk, or train adapters (policy.lora_rank)"
        )
    return line


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
