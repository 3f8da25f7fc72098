"""Records hold the probability of each FEEDBACK token under the policy that learnt from it."""

import json
from math import exp
from pathlib import Path

import pytest

from support.policies import counting_policy, counting_recipe, succeed


@pytest.fixture
def run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = {"model": str(counting_policy(tmp_path_factory))}
    recipe = counting_recipe(tmp_path, policy=policy, run={"output": str(tmp_path / "run")})
    one = ("train.steps=1", "train.minibatches_per_step=1", "algorithm.stripped_copies=false")
    succeed("train", recipe, *one)
    return tmp_path / "run"


def test_their_mean_is_the_steps_metric_and_nothing_else_has_one(run: Path) -> None:
    [metrics] = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    segments = [s for line in (run / "rollouts.jsonl").open() for s in json.loads(line)["segments"]]
    feedback = [s for s in segments if s["source"] == "feedback"]
    assert feedback and all(len(s["policy_log_probs"]) == len(s["ids"]) for s in feedback)
    assert not any("policy_log_probs" in s for s in segments if s["source"] != "feedback")
    p = [exp(log_p) for s in feedback for log_p in s["policy_log_probs"]]
    assert sum(p) / len(p) == pytest.approx(metrics["feedback_prob"], abs=1e-5)
    assert len(set(p)) > 1
