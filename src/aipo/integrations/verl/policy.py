"""A policy out of a checkpoint of verl's, as the plain Hugging Face folder that every verb takes.

A checkpoint of all weights holds one already. Of adapters verl's own merger makes one, which rounds to
bfloat16, and the adapters are merged into it.
"""

from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any

LATEST = "latest_checkpointed_iteration.txt"


class CheckpointError(ValueError):
    """There is no checkpoint of verl's, or it cannot be exported; the message says what to do."""


def export_policy(checkpoint: Path, output: Path) -> Path:
    """Write the policy of a checkpoint to `output`, which must not exist; return where it came from.

    `checkpoint` is a run's folder, whose newest one is taken, or one `global_step_N`. Raises
    `CheckpointError`.
    """
    if output.exists():
        raise CheckpointError(f"{output} exists; name a new folder")
    actor = _actor(checkpoint)
    plain = actor / "huggingface"
    if list(plain.glob("*.safetensors")):
        copytree(plain, output)
        return plain
    with TemporaryDirectory(dir=output.parent if output.parent.is_dir() else None) as folder:
        merged = Path(folder) / "merged"
        _merge_shards(actor, merged)
        _save(merged, plain, output)
    return actor


def _actor(checkpoint: Path) -> Path:
    """Return the actor's folder of a checkpoint. Raises `CheckpointError`."""
    for root in (checkpoint / "checkpoints", checkpoint):
        if (root / LATEST).is_file():
            checkpoint = root / f"global_step_{(root / LATEST).read_text().strip()}"
            break
    actor = checkpoint if checkpoint.name == "actor" else checkpoint / "actor"
    if not list(actor.glob("model_world_size_*_rank_0.pt")):
        raise CheckpointError(
            f"{checkpoint}: no checkpoint of verl's; name run.output of the recipe, or a folder "
            "global_step_N in its checkpoints"
        )
    return actor


def _merge_shards(actor: Path, merged: Path) -> None:
    try:
        from verl.model_merger.base_model_merger import ModelMergerConfig
        from verl.model_merger.fsdp_model_merger import FSDPModelMerger
    except ImportError as error:
        raise CheckpointError(
            f"{actor}: its shards are merged by verl, which is not here ({error}); pip install 'aipo[verl]'"
        ) from error
    config = ModelMergerConfig(
        operation="merge",
        backend="fsdp",
        local_dir=str(actor),
        target_dir=str(merged),
        hf_model_config_path=str(actor / "huggingface"),
    )
    merger = FSDPModelMerger(config)
    merger.merge_and_save()
    merger.cleanup()


def _save(merged: Path, plain: Path, output: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(merged)
    adapter = merged / "lora_adapter"
    if adapter.is_dir():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(plain).save_pretrained(output)
