"""`train.optimizer = "adamw8bit"` on the real bitsandbytes, which steps on a CPU too.

Proves: the moments of large tensors are bytes and as large as the estimate says, a run that was interrupted
ends with the bytes of one that was not, and what is learnt is near AdamW's. Not on a GPU.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aipo.assembly.memory import recipe_memory
from aipo.config.loader import load_settings
from support.policies import counting_policy, counting_recipe, succeed

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed; scripts/parity.sh has it")
pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]
SMALL = ["train.reward=random", "train.optimizer=adamw8bit"]


@pytest.fixture
def recipe(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = {"model": str(counting_policy(tmp_path_factory))}
    return counting_recipe(tmp_path, policy=policy, run={"output": str(tmp_path / "run")})


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors(each)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(run / "policy" / "model.safetensors")
    return found


def test_moments_are_bytes_and_an_interrupted_run_ends_with_the_same_ones(
    recipe: Path, tmp_path: Path
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    succeed("train", recipe, "train.steps=3", f"run.output={whole}", *SMALL)
    succeed("train", recipe, "train.steps=2", f"run.output={parted}", *SMALL)
    saved = torch.load(parted / "checkpoints" / "step-000002" / "optimiser.pt", weights_only=True)
    large = [t for t in tensors(saved["optimiser"]["state"]) if t.numel() >= 4096]
    assert large and {t.dtype for t in large} == {torch.uint8}
    estimated = recipe_memory(load_settings(recipe, SMALL)).optimiser
    blocks = [t for t in tensors(saved["optimiser"]["state"]) if t.dtype == torch.float32]
    assert sum(t.numel() for t in large) < estimated
    assert sum(t.nbytes for t in [*large, *blocks]) < 1.5 * estimated  # small tensors stay float32
    succeed("train", recipe, "train.steps=3", f"run.output={parted}", *SMALL, "--allow-change", "train.steps")
    assert (whole / "policy" / "model.safetensors").read_bytes() == (
        parted / "policy" / "model.safetensors"
    ).read_bytes()


def test_it_goes_where_adamw_goes(recipe: Path, tmp_path: Path) -> None:
    before = load_file(Path(load_settings(recipe).policy.model) / "model.safetensors")
    eight, full = tmp_path / "eight", tmp_path / "full"
    succeed("train", recipe, "train.steps=2", f"run.output={eight}", *SMALL)
    succeed("train", recipe, "train.steps=2", f"run.output={full}", *SMALL[:1])
    changes = [
        torch.cat([(weights_of(run)[name] - before[name]).flatten() for name in before])
        for run in (eight, full)
    ]
    assert torch.cosine_similarity(*changes, dim=0) > 0.9
    assert not torch.equal(*changes)
