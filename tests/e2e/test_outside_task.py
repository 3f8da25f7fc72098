"""Tasks, benchmarks and engines from outside the package, by `module:attribute`: CONTRIBUTING's own examples.

Nothing of `src/` knows them. The policy knows nothing, so nothing is learnt: what is shown is that all verbs
work, and that solutions of a task, or of a column of a file, make LUFFY and SFT settings.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from aipo.config.loader import dump_settings, load_settings
from aipo.config.toml import toml_text
from aipo.evaluation.records import read_records
from support.outside_engine import SAMPLED
from support.policies import counting_recipe, random_policy, run_cli, succeed

LUFFY = ["rollout.experts_per_prompt=1", "rollout.rollouts_per_prompt=3", "algorithm.coefficient=shaped"]
SFT = ["rollout.experts_per_prompt=1", "rollout.rollouts_per_prompt=0", "algorithm.coefficient=likelihood"]
PLAIN = ["agents.enabled=[]", "algorithm.stripped_copies=false", "algorithm.feedback_advantage=signed"]


@pytest.fixture
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_policy(tmp_path_factory, "qwen2.5")


def write_recipe(folder: Path, policy: Path, task: dict[str, object]) -> Path:
    table: dict[str, dict[str, object]] = {
        "run": {"output": str(folder / "run"), "threads": 1},
        "policy": {"model": str(policy)},
        "task": task,
        "agents": {"enabled": []},
        "rollout": {"rollouts_per_prompt": 2, "max_prompt_tokens": 1024, "max_response_tokens": 24},
        "train": {"steps": 2, "prompts_per_step": 2, "minibatches_per_step": 1, "learning_rate": 1e-3},
        "evaluate": {"problems": 2, "samples_per_problem": 2, "pass_at": [1, 2], "at_steps": [2]},
    }
    path = folder / "outside.toml"
    path.write_text(toml_text(table))
    return path


def rows_with_solutions(folder: Path) -> dict[str, object]:
    rows = [{"problem": f"What is {a} + {a}?", "answer": 2 * a} for a in range(1, 41)]
    solved = [row | {"solution": f"Twice {row['answer']} halves: \\boxed{{{row['answer']}}}"} for row in rows]
    for name, written in (("train", solved), ("test", rows[:3])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    return {
        "name": "jsonl",
        "train_file": str(folder / "train.jsonl"),
        "test_file": str(folder / "test.jsonl"),
    }


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_a_task_of_ones_own_trains_evaluates_and_is_reported(tmp_path: Path, policy: Path) -> None:
    recipe = write_recipe(tmp_path, policy, {"name": "support.outside_task:Sums"})
    succeed("train", recipe, "train.stratum_mix={ carry = 0.5, plain = 0.5 }")
    evaluated = read_records(tmp_path / "run" / "evaluation.jsonl")
    assert {r.problem.split("/")[0] for record in evaluated for r in record.results} == {"sums"}
    assert {stratum for record in evaluated for stratum in record.strata} == {"carry", "plain"}
    succeed("report", tmp_path / "run")
    assert "sums/" in (tmp_path / "run" / "report.html").read_text()
    output = tmp_path / "evaluation"
    asked = ["--benchmarks", "support.outside_task:Sums", "--samples", "sums=1", "--problems", "2"]
    succeed("evaluate", policy, *asked, "--max-response-tokens", "8", "--output", output, "run.threads=1")
    assert "sums" in (output / "results.md").read_text()


@pytest.mark.parametrize("method", [LUFFY, SFT], ids=["LUFFY", "SFT"])
def test_experts_come_from_the_solutions_of_a_file(
    tmp_path: Path, policy: Path, method: Sequence[str]
) -> None:
    recipe = write_recipe(tmp_path, policy, rows_with_solutions(tmp_path))
    succeed("train", recipe, *PLAIN, *method, "train.steps=3", "evaluate.at_steps=[]")
    tokenizer = AutoTokenizer.from_pretrained(policy)
    solution = tokenizer.encode("Twice 8 halves: \\boxed{8}", add_special_tokens=False)
    assert metrics(tmp_path)[-1]["expert_tokens_raw"] >= 6 * len(solution)
    ids = torch.tensor([tokenizer.encode("What is 4 + 4?") + solution])

    def loss(folder: Path) -> float:
        model = AutoModelForCausalLM.from_pretrained(folder)
        return float(model(input_ids=ids, labels=ids).loss.detach())

    if method is SFT:
        assert loss(tmp_path / "run" / "policy") < loss(policy) - 0.01


def test_experts_of_a_task_without_solutions_are_refused(tmp_path: Path, policy: Path) -> None:
    task = rows_with_solutions(tmp_path) | {"solution_field": "worked"}
    result = run_cli("train", write_recipe(tmp_path, policy, task), *PLAIN, *SFT)
    said = " ".join(result.output.split())
    assert result.exit_code == 2 and "has no solution" in said and "task.solution_field" in said


def test_a_benchmark_of_ones_own_is_evaluated_from_a_file(tmp_path: Path, policy: Path) -> None:
    path = tmp_path / "amc23.jsonl"
    rows = [{"id": i, "question": f"Find {i} + 26.", "answer": f"{i + 26}.0"} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "evaluation"
    asked = ["--benchmarks", "support.outside_benchmark:AMC23", "--data", tmp_path, "--samples", "amc23=2"]
    succeed("evaluate", policy, *asked, "--max-response-tokens", "8", "--output", output, "run.threads=1")
    assert "AMC 2023" in (output / "results.md").read_text()
    succeed("tasks", "validate", "support.outside_benchmark:AMC23", "--file", path)


def test_an_engine_of_ones_own_samples_a_run(tmp_path: Path, policy: Path) -> None:
    recipe = write_recipe(tmp_path, policy, {"name": "support.outside_task:Sums"})
    SAMPLED.clear()
    succeed("train", recipe, "engine.name=support.outside_engine:COUNTING", "evaluate.at_steps=[]")
    sampled = sum(n for session, n in SAMPLED.items() if session)
    assert sampled >= sum(row["policy_tokens"] for row in metrics(tmp_path)) > 0


def test_the_table_of_a_start_is_read_by_aipo_warmstart_alone(tmp_path: Path, policy: Path) -> None:
    recipe = write_recipe(tmp_path, policy, {"name": "support.outside_task:Sums"})
    recipe.write_text(recipe.read_text() + "\n[warmstart]\nstepz = 3\n")
    assert "warmstart" not in dump_settings(load_settings(recipe, ["warmstart.layers=1"]))
    counting = counting_recipe(tmp_path, warmstart={"stepz": 3})
    said = " ".join(run_cli("warmstart", counting, f"run.output={tmp_path / 'w'}").output.split())
    assert "`warmstart.stepz`: unknown key; did you mean `warmstart.steps`?" in said
    said = " ".join(run_cli("warmstart", recipe, f"run.output={tmp_path / 'w'}").output.split())
    assert "`warmstart.stepz`: unknown key" in said
