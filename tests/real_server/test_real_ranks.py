"""Two ranks under FSDP sample from two vLLM servers that rank 0 starts, and learn what one process does."""

import json
from pathlib import Path

import pytest

from support.policies import succeed
from support.ranks import assert_same_series, metrics, torchrun

COMMON = [
    "agents.enabled=[]",
    "train.reward=random",  # so that there is something to learn in every step
    "train.learning_rate=1e-3",
    "rollout.max_response_tokens=60",
    "run.rank_timeout_s=1100",
]


@pytest.mark.slow  # two minutes: scripts/vllm.sh runs it, .ci/run does not
def test_two_ranks_on_two_started_servers_learn_what_one_process_does(recipe: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    log = tmp_path / "two.log"
    several = ["engine.servers=2", "run.ranks=fsdp", f"run.output={two}"]
    process = torchrun(log, 2, "-m", "aipo", "train", recipe, *COMMON, *several)
    assert process.wait(timeout=1100) == 0, log.read_text()
    succeed("train", recipe, *COMMON, f"run.output={one}")
    assert_same_series(one, two)
    rows = [[json.loads(line) for line in (run / "rollouts.jsonl").open()] for run in (one, two)]
    for expected, found in zip(*rows, strict=True):
        assert [s["ids"] for s in found["segments"]] == [s["ids"] for s in expected["segments"]]
        assert found["weights_version"] == expected["weights_version"] == found["step"] - 1
    assert all(row["mismatch_max"] < 1e-4 and row["ungraded_share"] == 0 for row in metrics(two))
    for server in range(2):
        text = (two / f"policy-server-{server}.log").read_text()
        assert text.count("POST /v1/completions") > 2, f"server {server} was not sampled from"
    print("mismatch", [row["mismatch_max"] for row in metrics(two)])
    assert not list(Path("/dev/shm").glob("aipo-weights-*"))
