"""Rewards from outside the package through every verb: what is learnt, recorded, measured and shown.

The policy knows nothing and solves nothing: with verdicts alone nothing could be learnt from it.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from aipo.config.toml import toml_text
from aipo.core.algorithms import ALGORITHMS
from aipo.evaluation.records import read_records
from support import outside_rewards
from support.policies import random_policy, run_cli, succeed

SPREAD, BREVITY = "support.outside_rewards:spread", "support.outside_rewards:brevity"


@pytest.fixture
def recipe(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name, numbers in (("train", range(1, 41)), ("test", range(41, 44))):
        rows = [{"problem": f"What is {a} + {a}?", "answer": 2 * a, "level": a % 3} for a in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table: dict[str, dict[str, Any]] = {
        "run": {"output": str(tmp_path / "run"), "threads": 1},
        "policy": {"model": str(random_policy(tmp_path_factory, "qwen2.5"))},
        "task": {
            "name": "jsonl",
            "match": "exact",
            "reward": {SPREAD: 1.0, BREVITY: 0.5},
            "train_file": str(tmp_path / "train.jsonl"),
            "test_file": str(tmp_path / "test.jsonl"),
        },
        "agents": {"enabled": []},
        "rollout": {"rollouts_per_prompt": 3, "max_prompt_tokens": 1024, "max_response_tokens": 16},
        "train": {"steps": 2, "prompts_per_step": 2, "minibatches_per_step": 1, "learning_rate": 1e-3},
        "evaluate": {
            "problems": 3,
            "samples_per_problem": 2,
            "pass_at": [1, 2],
            "at_steps": [2],
            "modes": ["unanswered"],
        },
    }
    path = tmp_path / "reward.toml"
    path.write_text(toml_text(table))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_graded_rewards_are_learnt_recorded_evaluated_and_shown(tmp_path: Path, recipe: Path) -> None:
    outside_rewards.SEEN.clear()
    succeed("train", recipe)
    assert all(row["level"] in (0, 1, 2) for _, row, _ in outside_rewards.SEEN)  # the file's own column
    rollouts = lines(tmp_path / "run" / "rollouts.jsonl")
    assert {row["verdict"] for row in rollouts} == {"incorrect"}
    for row in rollouts:
        assert row["reward"] == pytest.approx(row["rewards"][SPREAD] + 0.5 * row["rewards"][BREVITY])
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert all(row["zero_variance_share"] == 0 and row["grad_norm"] > 0 for row in metrics)
    assert all(row["reward_solo"] == 0 for row in metrics)
    first = [row for row in rollouts if row["step"] == 1]
    mean = sum(row["reward"] for row in first) / len(first)
    assert metrics[0]["graded_reward_solo"] == pytest.approx(mean)
    assert f"graded_reward/{SPREAD}" in metrics[0]
    evaluated = [r for record in read_records(tmp_path / "run" / "evaluation.jsonl") for r in record.results]
    assert all(result.reward is not None and result.correct == 0 for result in evaluated)
    succeed("report", tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Rewards of your own on the test split" in page and "Reward of your own" in page
    said = succeed("evaluate", recipe, f"run.output={tmp_path / 'alone'}").output
    assert "all, unanswered, reward" in said
    samples = lines(tmp_path / "alone" / "samples.jsonl")
    assert "), reward " in succeed("rollout", recipe, "-n", "1").output
    assert len(samples) == 6 and all(isinstance(sample["reward"], float) for sample in samples)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_algorithm_learns_from_graded_rewards(tmp_path: Path, recipe: Path, name: str) -> None:
    succeed("train", recipe, f"algorithm.name={name}", "train.steps=1", "evaluate.at_steps=[]")
    (metrics,) = lines(tmp_path / "run" / "metrics.jsonl")
    assert metrics["grad_norm"] > 0


def test_a_reward_of_the_verdict_is_a_run_without_one(tmp_path: Path, recipe: Path) -> None:
    plain = ["evaluate.at_steps=[]", "train.steps=1"]
    succeed("train", recipe, *plain, "task.reward={}", f"run.output={tmp_path / 'none'}")
    succeed("train", recipe, *plain, "task.reward=verdict", f"run.output={tmp_path / 'verdict'}")
    none, verdict = (lines(tmp_path / name / "rollouts.jsonl") for name in ("none", "verdict"))
    assert none == [{k: v for k, v in row.items() if k != "reward"} for row in verdict]
    assert "reward" not in none[0]


def test_a_threshold_makes_verdicts(tmp_path: Path, recipe: Path) -> None:
    succeed("train", recipe, f"task.reward={SPREAD}", "task.reward_threshold=0.5", "evaluate.at_steps=[]")
    rollouts = lines(tmp_path / "run" / "rollouts.jsonl")
    assert len({row["verdict"] for row in rollouts}) == 2
    assert all((row["verdict"] == "correct") == (row["reward"] >= 0.5) for row in rollouts)


def test_a_reward_that_fails_stops_the_run_with_its_reason(tmp_path: Path, recipe: Path) -> None:
    result = run_cli("train", recipe, "task.reward=support.outside_rewards:raises")
    said = " ".join(result.output.split())
    assert result.exit_code != 0 and "no such column" in said
    result = run_cli("train", recipe, "task.reward=support.outside_rewards:SEEN", "run.output=x")
    said = " ".join(result.output.split())
    assert result.exit_code == 2 and "task.reward = 'support.outside_rewards:SEEN' is a list" in said
