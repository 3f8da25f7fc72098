"""No part of a checkpoint can be missing without a word: every file, every field, every tensor.

Each is taken out of a real run's checkpoint and the hashes put right, as if it had never been saved. What
the values are for, `tests/fault/test_resume.py` shows: it changes them and the run ends elsewhere.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aipo.assembly.parts import Parts, assemble
from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.tasks.base import Split
from aipo.training.checkpoint import CheckpointError
from aipo.training.loop import Trainer
from support.checkpoints import quick_folder, rehash
from support.policies import counting_policy, counting_recipe, succeed

pytestmark = pytest.mark.timeout(600)
SMALL = [
    "train.steps=1",
    "train.prompts_per_step=2",
    "train.reward=random",
    "rollout.rollouts_per_prompt=4",
    "rollout.max_response_tokens=40",
]
Run = tuple[Settings, Parts]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A finished run of one step, and what is needed to go on with it."""
    with quick_folder() as folder:
        own = [f"policy.model={counting_policy(tmp_path_factory)}", f"run.output={folder / 'run'}", *SMALL]
        succeed("train", counting_recipe(folder), *own)
        settings = load_settings(folder / "counting.toml", own)
        with closing(assemble(settings)) as parts:
            yield settings, parts


@pytest.fixture
def checkpoint(run: Run) -> Iterator[Path]:
    """The run's checkpoint; as it was again afterwards."""
    folder = run[0].run.output / "checkpoints"
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    yield folder / "step-000001"
    shutil.rmtree(folder)
    kept.rename(folder)


def go_on(run: Run) -> int:
    settings, parts = run
    problems = parts.task.problems(Split.TRAIN)
    with closing(Trainer(settings, parts.model, parts.tokenizer, parts.sampler, problems)) as trainer:
        return trainer.step


def paths_of(table: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every field at every depth; the moments of each parameter are one of them."""
    if isinstance(table, list):
        table = dict(enumerate(table))
    if not isinstance(table, dict):
        return
    for name, value in table.items():
        if not isinstance(name, int):
            yield (*above, name)
        yield from paths_of(value, (*above, name))


def without(table: Any, path: tuple[Any, ...]) -> None:
    for name in path[:-1]:
        table = table[name]
    del table[path[-1]]


def assert_refused(run: Run, what: str) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint can be read") as caught:
        go_on(run)
    assert what in str(caught.value), f"{what!r} is not named: {caught.value}"


def test_the_whole_checkpoint_is_taken(run: Run, checkpoint: Path) -> None:
    rehash(checkpoint)
    assert go_on(run) == 1


def test_every_field_of_the_state_is_needed(run: Run, checkpoint: Path) -> None:
    before = (checkpoint / "state.json").read_text()
    paths = list(paths_of(json.loads(before)))
    assert len(paths) > 30
    for path in paths:
        state = json.loads(before)
        without(state, path)
        (checkpoint / "state.json").write_text(json.dumps(state))
        rehash(checkpoint)
        assert_refused(run, str(path[-1]))


def test_every_field_of_the_optimiser_and_the_scheduler_is_needed(run: Run, checkpoint: Path) -> None:
    before = (checkpoint / "optimiser.pt").read_bytes()
    saved = torch.load(checkpoint / "optimiser.pt", weights_only=True)
    last = max(saved["optimiser"]["state"])
    paths = [p for p in paths_of(saved) if p[:2] != ("optimiser", "state") or p[2:3] in ((), (last,))]
    assert len(paths) > 20
    for path in paths:
        (checkpoint / "optimiser.pt").write_bytes(before)
        saved = torch.load(checkpoint / "optimiser.pt", weights_only=True)
        without(saved, path)
        torch.save(saved, checkpoint / "optimiser.pt")
        rehash(checkpoint)
        assert_refused(run, str(path[-1]))


def test_every_tensor_of_the_policy_is_needed(run: Run, checkpoint: Path) -> None:
    file = checkpoint / "policy" / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        save_file({n: t for n, t in tensors.items() if n != name}, file, {"format": "pt"})
        rehash(checkpoint)
        assert_refused(run, name)


def test_every_field_of_the_manifest_and_every_file_is_needed(run: Run, checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for path in paths_of(manifest):
        spoilt = json.loads(json.dumps(manifest))
        without(spoilt, path)
        (checkpoint / "manifest.json").write_text(json.dumps(spoilt))
        assert_refused(run, "files" if path == ("files",) else path[1] if len(path) > 1 else path[0])
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    for name in manifest["files"]:
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).unlink()
        assert_refused(run, name)
        (checkpoint / name).write_bytes(content)


def test_a_file_that_is_not_whole_is_noticed_before_anything_is_loaded(run: Run, checkpoint: Path) -> None:
    _, parts = run
    before = {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}
    weights = checkpoint / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with torch.no_grad():
        next(parts.model.parameters()).add_(1.0)
    assert_refused(run, "policy/model.safetensors is not the file that was written")
    with torch.no_grad():
        next(parts.model.parameters()).sub_(1.0)
    after = parts.model.state_dict()
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)
