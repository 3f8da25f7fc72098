"""`aipo train` with a vLLM server that aipo starts, which is killed in the middle, and goes on afterwards."""

import json
import os
import signal
from pathlib import Path

import pytest

from aipo.cli import screen
from aipo.engines.vllm_server import VllmServer
from aipo.training.events import Progress
from support.policies import run_cli, succeed


def test_a_killed_server_stops_the_run_and_the_same_command_trains_to_the_end(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At temperature 0.8, and without request tags in half of the rollouts: the started server reports
    processed log-probabilities, and they are the trainer's."""
    run = tmp_path / "run"
    changes = ("rollout.temperature=0.8", "rollout.banned_fraction=0.5", "agents.enabled=[]")
    command = ("train", recipe, *changes)
    started: list[VllmServer] = []
    original = VllmServer.launch
    monkeypatch.setattr(VllmServer, "launch", lambda server: (started.append(server), original(server))[1])

    def kill(_: object, progress: Progress) -> None:
        process = started[0]._process
        assert process is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    with monkeypatch.context() as patch:
        patch.setattr(screen.StepLines, "__call__", kill)
        result = run_cli(*command)
    said = " ".join(result.output.split())
    assert result.exit_code == 3, result.output
    assert "step 2: 100% of the rollouts could not be graded" in said and "cannot be reached" in said
    assert (run / "checkpoints" / "step-000001" / "manifest.json").exists()
    log = (run / "policy-server.log").read_text()
    assert "Application startup complete" in log and "processed_logprobs" in log
    succeed(*command)
    assert len(started) == 2 and all(server._process is None for server in started)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [row["step"] for row in metrics] == [1, 2]
    assert all(row["mismatch_max"] < 1e-4 and row["ungraded_share"] == 0 for row in metrics)
    print("mismatch", [row["mismatch_max"] for row in metrics])
    rollouts = [json.loads(line) for line in (run / "rollouts.jsonl").open()]
    assert {(r["step"], r["weights_version"]) for r in rollouts} == {(1, 0), (2, 1)}
    assert (run / "policy" / "model.safetensors").exists()
    assert not list(Path("/dev/shm").glob("aipo-weights-*"))
