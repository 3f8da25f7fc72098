"""What a run leaves behind, how to compare two of them, and how to spoil or change a checkpoint.

Used where runs are stopped, killed and gone on with.
"""

import json
import os
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

RECORDS = ("metrics.jsonl", "rollouts.jsonl", "evaluation.jsonl", "agents.json")


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder in memory where there is one: each checkpoint waits for the disk several times."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(prefix="aipo-", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def outcome(run: Path) -> dict[str, Any]:
    """All that a run leaves but what a clock measured and where it stands."""
    found: dict[str, Any] = {name: (run / name).read_text() for name in RECORDS}
    found["policy"] = sha256((run / "policy" / "model.safetensors").read_bytes()).hexdigest()
    steps = sorted(path.name for path in (run / "checkpoints").iterdir())
    found["checkpoints"] = steps
    for step in steps:
        folder = run / "checkpoints" / step
        state = json.loads((folder / "state.json").read_text())
        found[f"{step}/state"] = {k: v for k, v in state.items() if k not in ("code", "settings")}
        found[f"{step}/weights"] = sha256((folder / "policy/model.safetensors").read_bytes()).hexdigest()
        found[f"{step}/optimiser"] = sha256((folder / "optimiser.pt").read_bytes()).hexdigest()
    found["files"] = sorted(path.name for path in run.iterdir())
    return found


def assert_same(run: Path, other: Path) -> None:
    a, b = outcome(run), outcome(other)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name] == b[name], name


def lines(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The records of a file; NaN is no JSON."""
    return [json.loads(line, parse_constant=pytest.fail) for line in (run / name).read_text().splitlines()]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "policy" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def said(result: Result) -> str:
    return " ".join(result.output.split())


def rehash(folder: Path) -> None:
    """Write the manifest that fits the files."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit_state(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    state = json.loads((folder / "state.json").read_text())
    change(state)
    (folder / "state.json").write_text(json.dumps(state))
    rehash(folder)


def spoil(folder: Path, damage: str) -> None:
    weights, optimiser = folder / "policy" / "model.safetensors", folder / "optimiser.pt"
    if damage == "bit of the weights":
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
    elif damage == "half of the optimiser":
        optimiser.write_bytes(optimiser.read_bytes()[: optimiser.stat().st_size // 2])
    elif damage == "no state":
        (folder / "state.json").unlink()
    elif damage == "empty manifest":
        (folder / "manifest.json").write_text("")
    else:
        (folder / "manifest.json").unlink()


def change_value(folder: Path, part: str) -> None:
    section, _, name = part.partition(" ")
    if section == "weights":
        weights = load_file(folder / "policy" / "model.safetensors")
        next(iter(weights.values())).view(-1)[0] += 1e-3
        save_file(weights, folder / "policy" / "model.safetensors", {"format": "pt"})
    elif section in ("optimiser", "scheduler"):
        saved = torch.load(folder / "optimiser.pt", weights_only=True)
        if section == "scheduler":
            saved["scheduler"][name] += 1
        else:
            for of_parameter in saved["optimiser"]["state"].values():
                of_parameter[name] += 1
        torch.save(saved, folder / "optimiser.pt")
    else:
        edit_state(folder, lambda state: change_state(state, section, name))
    rehash(folder)


def change_state(state: dict[str, Any], section: str, name: str) -> None:
    if section == "expert_tokens":
        table = state["experience"]["expert_tokens"]
        table[name] = table[name][:-1] if name == "seen" else table[name] + 1
    elif section == "experience":
        state["experience"][name] += 1
    else:
        other = {"python": 2, "numpy": 2}
        if name in other:  # the place in the list of words
            words = state["generators"][name]
            if name == "python":
                words[1][-1] = (words[1][-1] + 7) % 600
            else:
                words[other[name]] = (words[other[name]] + 7) % 600
        else:
            state["generators"]["torch"] = torch_state_of_seed_5()


def torch_state_of_seed_5() -> str:
    generator = torch.Generator().manual_seed(5)
    return b64encode(generator.get_state().numpy().tobytes()).decode()
