"""LoRA on a real vLLM server: after each update the adapters alone are loaded, and sampled with."""

import json
from pathlib import Path

from support.policies import succeed


def test_adapters_are_loaded_as_adapters_and_give_the_trainers_log_probabilities(
    recipe: Path, tmp_path: Path
) -> None:
    """With weights that move a lot, so that other adapters, or none, would show in the mismatch."""
    run = tmp_path / "run"
    lora = ["policy.lora_rank=4", "train.learning_rate=0.02", "train.reward=random", "train.steps=3"]
    succeed("train", recipe, "agents.enabled=[]", "rollout.max_response_tokens=60", *lora)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert all(row["mismatch_max"] < 1e-4 and row["ungraded_share"] == 0 for row in metrics)
    assert min(row["grad_norm"] for row in metrics) > 1e-3
    print("mismatch", [row["mismatch_max"] for row in metrics])
    log = (run / "policy-server.log").read_text()
    assert log.count('POST /v1/load_lora_adapter HTTP/1.1" 200') == 5
    assert "POST /collective_rpc" not in log
    rollouts = [json.loads(line) for line in (run / "rollouts.jsonl").open()]
    assert {(r["step"], r["weights_version"]) for r in rollouts} == {(1, 0), (2, 1), (3, 2)}
