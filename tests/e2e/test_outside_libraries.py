"""Tasks of other people's libraries through every verb: drawn, trained on, evaluated, looked at."""

import json
from pathlib import Path
from typing import Any

from aipo.config.toml import toml_text
from support.policies import random_policy, run_cli, succeed
from support.verifiers_python import ENVIRONMENTS, REAL, needs_verifiers


def write_recipe(folder: Path, policy: Path, task: dict[str, Any]) -> Path:
    table: dict[str, dict[str, Any]] = {
        "run": {"output": str(folder / "run"), "threads": 1},
        "policy": {"model": str(policy)},
        "task": task,
        "agents": {"enabled": []},
        "rollout": {"rollouts_per_prompt": 3, "max_prompt_tokens": 1024, "max_response_tokens": 16},
        "train": {"steps": 2, "prompts_per_step": 2, "minibatches_per_step": 1},
        "evaluate": {"problems": 2, "samples_per_problem": 2, "at_steps": [2], "modes": ["unanswered"]},
    }
    path = folder / "recipe.toml"
    path.write_text(toml_text(table))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_data_set_of_reasoning_gym_through_every_verb(tmp_path: Path, tmp_path_factory: Any) -> None:
    few = {"train_problems": 8, "validation_problems": 3, "test_problems": 3}
    task = {"name": "gym", "options": {"dataset": "chain_sum", "max_terms": 3, **few}}
    recipe = write_recipe(tmp_path, random_policy(tmp_path_factory, "qwen2.5"), task)
    succeed("train", recipe)
    rollouts = lines(tmp_path / "run" / "rollouts.jsonl")
    assert len(rollouts) == 12 and all(row["problem"].startswith("chain_sum/train/") for row in rollouts)
    assert all(row["reward"] == 0 and row["reason"] == "no_answer" for row in rollouts)
    assert "graded_reward_solo" in lines(tmp_path / "run" / "metrics.jsonl")[0]
    looked = " ".join(run_cli("doctor", recipe).output.split())
    assert "gold correct, another answer incorrect" in looked and "8 to train" in looked
    assert "gym/chain_sum train 8 8 0" in " ".join(succeed("tasks", "validate", recipe).output.split())
    wrong = run_cli("train", recipe, "task.options.dataset=chain_sun", f"run.output={tmp_path / 'no'}")
    assert wrong.exit_code == 2 and "did you mean 'chain_sum'" in " ".join(wrong.output.split())


@needs_verifiers
def test_an_environment_of_verifiers_is_trained_on(tmp_path: Path, tmp_path_factory: Any) -> None:
    options = {"environment": "small-sums", "interpreter": REAL, "module_path": str(ENVIRONMENTS)}
    task = {"name": "verifiers", "options": options}
    recipe = write_recipe(tmp_path, random_policy(tmp_path_factory, "qwen2.5"), task)
    succeed("train", recipe, "evaluate.split=test")
    rollouts = lines(tmp_path / "run" / "rollouts.jsonl")
    assert len(rollouts) == 12 and all(row["problem"].startswith("small-sums/train/") for row in rollouts)
    assert all(row["verdict"] == "incorrect" and row["reward"] in (0.0, 0.5) for row in rollouts)
    assert all(row["reason"].startswith("rubric: right 0, short") for row in rollouts)
    looked = " ".join(run_cli("doctor", recipe).output.split())
    assert "to train, without reference answers" in looked, looked
    no = run_cli("train", recipe, "task.options.kind=tools", f"run.output={tmp_path / 'no'}")
    assert no.exit_code == 2 and "only a SingleTurnEnv is read" in " ".join(no.output.split())
