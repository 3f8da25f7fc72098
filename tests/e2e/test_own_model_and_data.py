"""A model and a problem file of the user's own: the same commands, on folders from `save_pretrained`.

Proves: random-weight Qwen2.5 and Llama 3 policies with a byte-level BPE tokenizer train by plain RLVR, are
evaluated and exported, on GSM8K rows (or rows written here where ../shared is not there); `aipo rollout`
shows what they write. Nothing can be learnt without their weights; that everything runs is what is shown.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from aipo.config.loader import load_settings
from aipo.config.toml import toml_text
from support.policies import Architecture, gsm8k_rows, random_policy, run_cli, succeed

Recipe = Callable[[Architecture], Path]
ARCHITECTURES = pytest.mark.parametrize("architecture", ["qwen2.5", "llama3"])


@pytest.fixture
def recipe(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Write a recipe for plain RLVR on a random policy."""
    files = {}
    for split, number in (("train", 40), ("test", 3)):
        files[split] = tmp_path / f"{split}.jsonl"
        files[split].write_text("".join(json.dumps(row) + "\n" for row in gsm8k_rows(number, split)))

    def write(architecture: Architecture) -> Path:
        table = {
            "run": {"output": str(tmp_path / "run")},
            "policy": {"model": str(random_policy(tmp_path_factory, architecture))},
            "task": {
                "name": "jsonl",
                "train_file": str(files["train"]),
                "test_file": str(files["test"]),
                "problem_field": "question",
                "answer_field": "answer",
                "answer_after": "####",
            },
            "agents": {"enabled": []},
            "rollout": {"rollouts_per_prompt": 4, "max_prompt_tokens": 1024, "max_response_tokens": 24},
            "train": {"steps": 2, "prompts_per_step": 2, "minibatches_per_step": 1, "learning_rate": 1e-3},
            "evaluate": {"problems": 2, "samples_per_problem": 2, "pass_at": [1, 2]},
        }
        path = tmp_path / "own.toml"
        path.write_text(toml_text(table))
        return path

    return write


@ARCHITECTURES
def test_the_tokenizer_is_loaded_as_it_was_saved(recipe: Recipe, architecture: Architecture) -> None:
    folder = load_settings(recipe(architecture)).policy.model
    loaded, saved = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(f"{folder}/tokenizer.json")
    for row in gsm8k_rows(20):
        text = f"{row['question']}<verify>{row['answer']}</verify>"
        assert loaded.encode(text, add_special_tokens=False) == saved.encode(text).ids
        assert loaded.decode(loaded.encode(text)) == text


@ARCHITECTURES
def test_train_and_export(recipe: Recipe, architecture: Architecture, tmp_path: Path) -> None:
    succeed("train", recipe(architecture))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["first_ratio_error"] < 1e-5 for row in rows)
    assert all(row["policy_tokens"] > 0 and row["feedback_tokens"] == 0 for row in rows)
    assert all(row["ungraded_share"] == 0 for row in rows)
    rollouts = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").open()]
    assert {rollout["condition"] for rollout in rollouts} == {"solo"}
    assert not rollouts[0]["gold"].startswith("#")
    policy = tmp_path / "run" / "policy"
    tokenizer, model = AutoTokenizer.from_pretrained(policy), AutoModelForCausalLM.from_pretrained(policy)
    assert type(model).__name__.startswith("Qwen2" if architecture == "qwen2.5" else "Llama")
    # No verdict differed, so no gradient moved the weights: what was sampled at the last step still has the
    # recorded log-probabilities under the exported policy.
    solo = rollouts[-1]["segments"]
    prompt, own = solo[0]["ids"], solo[1]["ids"]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + own])).logits[0].log_softmax(-1)
    found = [float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(own)]
    assert found == pytest.approx(solo[1]["log_probs"], abs=1e-4)
    assert tokenizer.decode(own, skip_special_tokens=False) == solo[1]["text"]


@ARCHITECTURES
def test_evaluate_in_both_solo_modes(recipe: Recipe, architecture: Architecture, tmp_path: Path) -> None:
    result = succeed("evaluate", recipe(architecture), "--method", "random weights")
    assert "random weights" in result.output
    records = [json.loads(line) for line in (tmp_path / "run" / "evaluation.jsonl").open()]
    assert [record["mode"] for record in records] == ["unanswered", "banned"]
    for record in records:
        assert record["split"] == "test"
        assert [(r["samples"], r["ungraded"]) for r in record["results"]] == [(2, 0), (2, 0)]


@ARCHITECTURES
def test_look_at_rollouts_which_says_how_far_it_is(
    recipe: Recipe, architecture: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aipo.cli.rollout.LINES_EVERY_S", 0.001)
    result = succeed("rollout", recipe(architecture), "--problems", "1")
    assert "sampling: 0 of 1 problems, 0 s" in result.output
    first = gsm8k_rows(1)[0]
    assert str(first["question"])[:30] in " ".join(result.output.split())
    assert "solo: incorrect" in result.output
    assert not (tmp_path / "run").exists()


def test_a_problem_that_does_not_fit_is_named_before_the_run_begins(recipe: Recipe, tmp_path: Path) -> None:
    result = run_cli("train", recipe("qwen2.5"), "rollout.max_prompt_tokens=40")
    assert result.exit_code == 2
    assert "raise rollout.max_prompt_tokens = 40" in result.output
    assert not (tmp_path / "run").exists()


COMPARISON = """
[compare]
name = "Two learning rates on a file"
base = "own.toml"
output = "{folder}/compared"
seeds = [0]
overrides = ["train.steps=1"]
methods = [
    {{ name = "small", overrides = ["train.learning_rate=1e-4"] }},
    {{ name = "large", overrides = ["train.learning_rate=1e-2"] }},
]
"""


def test_a_file_has_one_stratum_and_all_figures_and_tables_show_it(recipe: Recipe, tmp_path: Path) -> None:
    recipe("qwen2.5")
    comparison = tmp_path / "compare.toml"
    comparison.write_text(COMPARISON.format(folder=tmp_path))
    succeed("compare", comparison)
    page = (tmp_path / "compared" / "results.md").read_text()
    assert "![pass@k of all problems](boundary.svg)" in page
    assert "Paired differences to small, all problems, pass@1" in page and "| large | 1 |" in page
    succeed("report", tmp_path / "compared", "--output", tmp_path / "report.html")
    shown = (tmp_path / "report.html").read_text()
    for words in ("pass@k · all · unanswered", "Paired differences to large, all problems, test split"):
        assert words in shown
