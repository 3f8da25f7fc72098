"""verl's own trainer runs AIPO on a CPU for three steps: fsdp2, vLLM's CPU build, the oracle's agents.

What verl and vLLM lack on a CPU stands in `cpu_for_verl.py`. Everything else is real: the commands `aipo
warmstart`, `aipo data export`, `aipo verl config`, `verl.trainer.main_ppo`, Ray, the transfer queue, and new
weights into the server after each step. A second run takes the third step, from the first one's checkpoint,
and `aipo report`, `aipo verl export` and `aipo evaluate` read what they left.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("verl", reason="verl is not installed: scripts/verl.sh makes its environment")
pytest.importorskip(
    "transfer_queue", reason="verl's transfer queue is not installed: scripts/verl.sh makes its environment"
)
pytestmark = [pytest.mark.verl, pytest.mark.timeout(2400)]

from aipo.training.journal import read_lines  # noqa: E402
from support.policies import counting_recipe, succeed  # noqa: E402

ROLLOUT, ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
ON_A_CPU = (
    "actor_rollout_ref.model.enable_gradient_checkpointing=False",
    f"{ACTOR}.use_torch_compile=False",
    f"{ACTOR}.fsdp_config.use_torch_compile=False",
    f"{ACTOR}.fsdp_config.dtype=float32",
    f"{ROLLOUT}.free_cache_engine=False",
    f"+{ROLLOUT}.enable_sleep_mode=False",
    f"{ROLLOUT}.enforce_eager=True",
    f"{ROLLOUT}.dtype=float32",
    f"{ROLLOUT}.enable_chunked_prefill=False",
    f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes=64",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    "ray_kwargs.ray_init.num_cpus=16",
    "+ray_kwargs.ray_init.num_gpus=1",
    "+ray_kwargs.ray_init.object_store_memory=300000000",
    "+ray_kwargs.ray_init.include_dashboard=False",
    "reward.num_workers=1",
    "data.dataloader_num_workers=0",
    "trainer.device=cpu",
    "trainer.logger=[console,file]",
)
ENVIRONMENT = {
    "VERL_USE_EXTERNAL_MODULES": "cpu_for_verl",
    "VERL_PLATFORM": "cpu",
    "PYTHONPATH": str(Path(__file__).parent),
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def _shared_memory() -> Iterator[None]:
    """Remove what a run that was killed leaves behind: up to gigabytes."""
    before = set(SHARED_MEMORY.glob("verl_weights_*"))
    yield
    for left in set(SHARED_MEMORY.glob("verl_weights_*")) - before:
        left.unlink(missing_ok=True)


def run_verl(
    folder: Path, name: str, *overrides: str
) -> tuple[subprocess.CompletedProcess[bytes], list[dict[str, Any]]]:
    """Run verl's trainer on the configuration in `folder`; return its metrics, a line a step."""
    metrics = folder / f"{name}.jsonl"
    command = ["verl.trainer.main_ppo", "--config-path", str(folder), "--config-name", "aipo_verl"]
    own = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    with (folder / f"{name}.txt").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", *command, *ON_A_CPU, *overrides],
            env=own | ENVIRONMENT | {"VERL_FILE_LOGGER_PATH": str(metrics)},
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=1500,
            check=False,
        )
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return done.returncode, [json.loads(line)["data"] for line in lines]


def scheduler_of(checkpoints: Path, step: int) -> int:
    """Return how often the learning rate's schedule had been asked when this checkpoint was written."""
    path = checkpoints / f"global_step_{step}" / "actor" / "extra_state_world_size_1_rank_0.pt"
    return int(torch.load(path, weights_only=False)["lr_scheduler"]["last_epoch"])


def prompts_of(dump: Path) -> set[str]:
    """Return the prompts of a step."""
    return {json.loads(line)["input"] for line in dump.read_text().splitlines()}


@pytest.mark.usefixtures("_shared_memory")
def test_verls_trainer_consults_learns_from_feedback_and_validates_alone(tmp_path: Path) -> None:
    # vLLM's CPU attention takes heads of multiples of 32
    shape: dict[str, object] = {"hidden_size": 64, "heads": 2, "kv_heads": 1}
    recipe = counting_recipe(tmp_path, warmstart=shape, train={"stratum_mix": {}, "warmup_steps": 0})
    succeed("warmstart", recipe, f"run.output={tmp_path / 'warmstart'}")
    changes = (
        f"policy.model={tmp_path / 'warmstart' / 'policy'}",
        f"run.output={tmp_path / 'run'}",
        "evaluate.curve_samples_per_problem=2",
    )
    succeed("data", "export", recipe, *changes, "--output", tmp_path / "data")
    on = [f"data_folder={tmp_path / 'data'}", "gpus_per_node=1", "tokens_per_gpu=2048", "agent_processes=1"]
    on += ["sequences_per_server=64", "validate_every_steps=3", "server_memory_share=0.3"]
    cluster = [part for change in on for part in ("--on", change)]
    succeed("verl", "config", recipe, *changes, *cluster, "--output", tmp_path)

    dump = f"trainer.rollout_data_dir={tmp_path / 'rollouts'}"
    code, metrics = run_verl(tmp_path, "first", "trainer.total_training_steps=2", "trainer.save_freq=1", dump)
    assert code == 0, (tmp_path / "first.txt").read_text()[-4000:]
    more = ("trainer.save_freq=1", "trainer.val_before_train=false", dump)
    code, resumed = run_verl(tmp_path, "resumed", *more)  # "auto" is verl's own default
    assert code == 0, (tmp_path / "resumed.txt").read_text()[-4000:]

    before, *steps = [*metrics, *resumed]
    assert [step["training/global_step"] for step in steps] == [1, 2, 3]
    for step in steps:
        assert step["aipo/rollouts"] == 32 and step["aipo/ungraded_share"] == 0
        # vLLM and the trainer agree on the policy, also after the weights have moved
        assert step["training/rollout_probs_diff_mean"] < 0.02
        assert 0.8 < step["aipo/ratio_mean"] < 1.2
    assert sum(step["aipo/outcomes/answered"] for step in steps) > 0
    assert sum(step["aipo/copies"] for step in steps) > 0
    assert any(step.get("aipo/feedback_prob", 0) > 0 for step in steps)
    assert any(step["actor/grad_norm"] > 0 for step in steps)
    alone = "val-aux/leg_counting/easy/aipo_solo/acc_success_only/mean@2"
    assert alone in before and alone in steps[-1]
    # scheduler and data go on where they were
    updates = [scheduler_of(tmp_path / "run" / "checkpoints", step) for step in (2, 3)]
    assert updates[0] > 0 and updates[1] * 2 == updates[0] * 3
    seen = [prompts_of(tmp_path / "rollouts" / f"{step}.jsonl") for step in (1, 2, 3)]
    assert all(seen) and not seen[2] & (seen[0] | seen[1])
    # and our own verbs take what it leaves
    records = read_lines(tmp_path / "run" / "journal" / "metrics.jsonl")
    assert [line["step"] for line in records] == [1, 2, 3]
    succeed("report", tmp_path / "run", "--output", tmp_path / "report.html")
    policy = tmp_path / "exported"
    succeed("verl", "export", tmp_path / "run", "--output", policy)
    few = ("evaluate.problems=2", "evaluate.samples_per_problem=2", "evaluate.pass_at=[1]")
    evaluated = (*changes, *few, f"run.output={tmp_path / 'evaluated'}")
    succeed("evaluate", recipe, *evaluated, "--checkpoint", policy)
