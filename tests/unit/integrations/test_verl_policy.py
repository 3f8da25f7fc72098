"""`aipo verl export` finds the policy of a checkpoint of verl's, or says what is wrong."""

from pathlib import Path

import pytest

from aipo.integrations.verl.policy import CheckpointError, export_policy
from support.policies import run_cli, succeed


def checkpoint(run: Path, step: int) -> Path:
    """Write what verl writes, as far as it is looked at."""
    actor = run / "checkpoints" / f"global_step_{step}" / "actor"
    plain = actor / "huggingface"
    plain.mkdir(parents=True)
    (actor / "model_world_size_1_rank_0.pt").touch()
    (plain / "config.json").write_text("{}")
    (plain / "model.safetensors").write_text(f"weights of {step}")
    (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(step))
    return actor.parent


def test_a_runs_newest_checkpoint_or_the_named_one_is_taken(tmp_path: Path) -> None:
    first = checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 2)
    succeed("verl", "export", tmp_path, "--output", tmp_path / "newest")
    assert (tmp_path / "newest" / "model.safetensors").read_text() == "weights of 2"
    export_policy(first, tmp_path / "first")
    assert (tmp_path / "first" / "model.safetensors").read_text() == "weights of 1"


def test_what_cannot_be_exported_is_an_error_with_the_fix(tmp_path: Path) -> None:
    result = run_cli("verl", "export", tmp_path, "--output", tmp_path / "none")
    assert result.exit_code == 2 and "global_step_N" in result.output.replace("\n", " ")
    checkpoint(tmp_path, 1)
    with pytest.raises(CheckpointError, match="exists; name a new folder"):
        export_policy(tmp_path, tmp_path)
