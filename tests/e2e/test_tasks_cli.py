"""`aipo tasks`: list, validate, generate and contamination, as a user calls them, with their exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest

from aipo.config.toml import toml_text
from aipo.tasks.base import Split
from aipo.tasks.benchmarks.catalogue import BENCHMARKS
from aipo.tasks.benchmarks.load import load
from support.policies import random_policy, run_cli, succeed


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("TERM", "dumb")


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def aime(path: Path, **changes: str) -> Path:
    return write(path, [{"problem": f"Find {n}.", "answer": str(n)} | changes for n in range(30)])


def test_the_list_names_every_benchmark_its_licence_and_the_local_file(tmp_path: Path) -> None:
    aime(tmp_path / "aime24.jsonl")
    result = run_cli("tasks", "list", "--data", str(tmp_path))
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.output.splitlines() if line.split()}
    assert [name for name in BENCHMARKS if name not in lines] == []
    assert "aime24.jsonl" in lines["aime24"] and "HuggingFaceH4/aime_2024" in lines["aime24"]
    assert (
        "MIT" in lines["math500"]
        and "test 500" in lines["math500"]
        and "math500.jsonl" not in lines["math500"]
    )
    assert "packaged" in lines["reasoning_gym"]
    assert run_cli("tasks", "list", "--data", str(tmp_path / "absent")).exit_code == 2


def test_a_file_that_grades_as_it_must_is_valid(tmp_path: Path) -> None:
    path = aime(tmp_path / "aime24.jsonl")
    for where in (["--file", str(path)], ["--data", str(tmp_path)]):
        result = run_cli("tasks", "validate", "aime24", *where)
        assert result.exit_code == 0, result.output
        assert "AIME 2024: 30 rows" in result.output
        assert result.output.count(" 30 ") >= 3


def test_a_verdict_that_is_not_as_it_must_be_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aipo.core.types import Verdict
    from aipo.grading import Grade

    monkeypatch.setattr(
        "aipo.tasks.benchmarks.task.grade_integer", lambda response, gold: Grade(Verdict.CORRECT, "always")
    )
    result = run_cli("tasks", "validate", "aime24", "--file", str(aime(tmp_path / "a.jsonl")))
    assert result.exit_code == 1
    assert "aime24/0: another row's gold: correct (always)" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["validate", "aime23"], "benchmark = 'aime23' is not known; did you mean 'aime25'?"),
        (["validate", "aime24", "--file", "absent.jsonl"], "absent.jsonl: cannot read"),
        (["generate", "gsm8k", "--output", "x"], "only reasoning_gym is generated"),
        (["generate", "reasoning_gym", "--output", "x", "--only", "rush_hour"], "no answer of its own"),
        (["contamination", "absent.jsonl", "absent.jsonl"], "absent.jsonl: cannot read"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments: list[str], words: str) -> None:
    result = run_cli("tasks", *arguments)
    assert result.exit_code == 2
    assert words in result.output and "Traceback" not in result.output


def test_a_file_of_the_wrong_length_is_bad_input(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"problem": "p", "answer": "1"}])
    result = run_cli("tasks", "validate", "aime24", "--file", str(path))
    assert result.exit_code == 2 and "1 rows; AIME 2024 has 30" in result.output


def test_contamination_counts_and_ends_with_1_when_there_is_some(tmp_path: Path) -> None:
    long = " ".join(f"word{n}" for n in range(20))
    train = write(
        tmp_path / "t.jsonl",
        [{"question": "What IS 2+2"}, {"question": f"Well, {long}"}, {"question": "new"}],
    )
    evaluation = write(
        tmp_path / "e.jsonl",
        [{"problem": "What is 2 + 2?"}, {"problem": f"{long} so?"}, {"problem": "other"}],
    )
    result = run_cli("tasks", "contamination", str(train), str(evaluation))
    assert result.exit_code == 1
    for words in (
        "exact            1",
        "13-gram          1 more",
        "in all           2, 66.7%",
        "evaluation row 2: 13-gram in training row 2",
    ):
        assert words in result.output
    clean = write(tmp_path / "c.jsonl", [{"problem": "something else"}])
    assert run_cli("tasks", "contamination", str(clean), str(evaluation)).exit_code == 0


def test_generated_items_are_frozen_and_can_be_trained_on(tmp_path: Path) -> None:
    options = ["--output", str(tmp_path), "--only", "aiw", "--only", "dice", "--train-per-task", "5"]
    first = run_cli("tasks", "generate", "reasoning_gym", *options, "--validation-per-task", "2")
    assert first.exit_code == 0, first.output
    rows = load(BENCHMARKS["reasoning_gym"], Split.TRAIN, tmp_path / "reasoning_gym_train.jsonl")
    assert [row.stratum for row in rows] == ["aiw"] * 5 + ["dice"] * 5
    again = run_cli("tasks", "generate", "reasoning_gym", *options)
    assert again.exit_code == 2 and "is frozen already" in again.output


def test_a_recipe_trains_and_is_evaluated_on_a_benchmark_by_its_name(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def rows(start: int, stop: int) -> list[dict[str, str]]:
        return [{"question": f"What is {n} + 1?", "final_answer": str(n + 1)} for n in range(start, stop)]

    train, validation = write(tmp_path / "t.jsonl", rows(0, 12)), write(tmp_path / "v.jsonl", rows(12, 15))
    recipe = tmp_path / "own.toml"
    table = {
        "run": {"output": str(tmp_path / "run")},
        "policy": {"model": str(random_policy(tmp_path_factory, "qwen2.5"))},
        "task": {"name": "deepmath_103k", "train_file": str(train), "validation_file": str(validation)},
        "agents": {"enabled": []},
        "rollout": {"rollouts_per_prompt": 2, "max_prompt_tokens": 1024, "max_response_tokens": 8},
        "train": {"steps": 1, "prompts_per_step": 2, "minibatches_per_step": 1},
        "evaluate": {"split": "validation", "problems": 3, "samples_per_problem": 2, "pass_at": [1]},
    }
    recipe.write_text(toml_text(table))
    succeed("train", recipe)
    rollouts = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").open()]
    assert all("inside \\boxed{}" in rollout["problem_text"] for rollout in rollouts)
    assert {rollout["verdict"] for rollout in rollouts} <= {"correct", "incorrect"}
    succeed("evaluate", recipe)
    assert (tmp_path / "run" / "evaluation.jsonl").exists()
    refused = run_cli("train", str(recipe), "task.name=math500", f"run.output={tmp_path}/other")
    assert refused.exit_code == 2 and "MATH500 is for evaluation only" in refused.output


def test_the_help_says_what_each_verb_needs_and_imports_nothing_heavy() -> None:
    for verb, words in {
        "list": "--data",
        "validate": "exit code is 1",
        "generate": "--train-per-task",
        "contamination": "13 words",
    }.items():
        result = run_cli("tasks", verb, "--help")
        assert result.exit_code == 0 and words in " ".join(result.output.split()), result.output


def test_a_file_of_ones_own_is_looked_at_before_a_run(tmp_path: Path) -> None:
    rows = [{"q": f"{n} + 1?", "answer": str(n + 1), "stratum": "hard"} for n in range(5)]
    good = write(tmp_path / "good.jsonl", rows)
    result = run_cli("tasks", "validate", str(good), "task.problem_field=q")
    assert result.exit_code == 0, result.output
    assert "hard 5" in result.output and "prompts were not measured" in result.output
    bad = write(
        tmp_path / "bad.jsonl", [*rows, {"q": "angle?", "answer": "9 +* ("}, {"q": None, "answer": 1}]
    )
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        toml_text(
            {"task": {"name": "jsonl", "train_file": str(good), "test_file": str(bad), "problem_field": "q"}}
        )
    )
    result = run_cli("tasks", "validate", str(recipe))
    assert result.exit_code == 1
    assert f"{bad}:6: gold '9 +* (' cannot be graded" in result.output
    assert f"{bad}:7: field 'q': None" in result.output
    assert (
        "'drop' leaves out 2 of 12 rows" in result.output
        and "5 rows also stand in a held-out" in result.output
    )


def test_what_is_no_file_and_no_benchmark_is_said(tmp_path: Path) -> None:
    for arguments, words in [
        (["absent.jsonl"], "absent.jsonl: cannot read"),
        (["math500", "task.match=exact"], "for a file or a recipe"),
        ([str(write(tmp_path / "a.jsonl", [])), "--data", str(tmp_path)], "are for benchmarks"),
    ]:
        result = run_cli("tasks", "validate", *arguments)
        assert result.exit_code == 2 and words in result.output
