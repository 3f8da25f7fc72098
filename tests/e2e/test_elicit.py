"""A policy that never asks by itself: with elicited consultations its runs have feedback to learn from.

Proves: a random policy consults in no rollout without them; with them rollouts consult, the policy is
credited with none of the system's tags, feedback is learnt from, all other rollouts stay as they were, and a
run that went on has the bytes of one that did not stop.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aipo.config.toml import toml_text
from support.checkpoints import assert_same, lines
from support.policies import counting_policy, counting_recipe, gsm8k_rows, random_policy, run_cli, succeed

Recipe = Callable[..., Path]
TAGS = {f"<{slash}{name}>" for name in ("verify", "knowledge", "reasoning") for slash in ("", "/")}


@pytest.fixture
def recipe(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Write a recipe for a random policy whose agents say the last word that it wrote."""
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in gsm8k_rows(20)))

    def write(name: str, **elicit: Any) -> Path:
        table = {
            "run": {"output": str(tmp_path / name), "threads": 1},
            "policy": {"model": str(random_policy(tmp_path_factory, "qwen2.5"))},
            "task": {
                "name": "jsonl",
                "train_file": str(file),
                "problem_field": "question",
                "answer_field": "answer",
                "answer_after": "####",
            },
            "agents": {"backend": "support.critic:LastWords"},
            "consult": {"max_feedback_tokens": 8, "elicit": elicit},
            "rollout": {"rollouts_per_prompt": 8, "max_prompt_tokens": 2048, "max_response_tokens": 60},
            "algorithm": {"feedback_advantage": "signed"},
            # A coin decides what counts as correct: a random policy solves nothing.
            "train": {"steps": 2, "prompts_per_step": 2, "minibatches_per_step": 1, "reward": "random"},
        }
        path = tmp_path / f"{name}.toml"
        path.write_text(toml_text(table))
        return path

    return write


def answered(rollouts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [c for r in rollouts for c in r["consultations"] if c["outcome"] == "answered"]


def test_a_policy_that_never_asks_consults_and_learns_from_what_it_is_told(
    recipe: Recipe, tmp_path: Path
) -> None:
    succeed("train", recipe("alone"))
    succeed("train", recipe("elicited", share=0.6, max_request_tokens=6))
    alone, elicited = (lines(tmp_path / name, "rollouts.jsonl") for name in ("alone", "elicited"))
    assert not answered(alone)
    told = answered(elicited)
    assert told and all(c["elicited"] for c in told)
    first = lines(tmp_path / "elicited")[0]
    assert first["elicited_share"] > 0.3 and first["own_consulting_share"] == 0
    assert first["elicited_consultations_per_rollout"] > 0 and first["elicit_share"] == 0.6
    assert "feedback_prob" in first and "feedback_prob" not in lines(tmp_path / "alone")[0]
    assert not any("elicit" in name for name in lines(tmp_path / "alone")[0])
    # The agents' words moved the weights: the same rollouts with lambda = 0 lead elsewhere.
    succeed("train", recipe("deaf", share=0.6, max_request_tokens=6), "algorithm.feedback_weight=0")
    weights = [(tmp_path / name / "policy/model.safetensors").read_bytes() for name in ("elicited", "deaf")]
    assert weights[0] != weights[1]
    deaf = lines(tmp_path / "deaf", "rollouts.jsonl")
    assert [r["segments"] for r in deaf[:2]] and told[0]["request"] == answered(deaf)[0]["request"]
    for record in elicited:
        for segment in record["segments"]:
            assert not segment.get("opened") or (segment["source"] == "scaffold" and segment["text"] in TAGS)
    # Who is left alone writes what it would have written.
    before = {r["rollout"]: r for r in alone if r["step"] == 1}
    untouched = [r for r in elicited if r["step"] == 1 and not any(s.get("opened") for s in r["segments"])]
    assert len(untouched) > 8
    for record in untouched:
        assert record["response"] == before[record["rollout"]]["response"]
    assert all(
        r["condition"] == "consulting" for r in elicited if any(s.get("opened") for s in r["segments"])
    )
    succeed("report", tmp_path / "elicited")


def test_a_run_that_went_on_has_the_bytes_of_one_that_did_not_stop(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = counting_recipe(
        tmp_path,
        run={"output": str(tmp_path / "run")},
        policy={"model": str(counting_policy(tmp_path_factory))},
        consult={"elicit": {"share": 0.8, "until": 1.0, "window_steps": 2, "credit": True}},
        train={"steps": 3, "checkpoint_every_steps": 1, "keep_checkpoints": 3},
        evaluate={"at_steps": [1, 3], "problems": 1, "samples_per_problem": 2, "pass_at": [1]},
    )
    succeed("train", path)
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "run", whole)
    for folder in ("run/checkpoints/step-000003", "run/checkpoints/step-000002", "run/policy"):
        shutil.rmtree(tmp_path / folder)
    assert "going on from step 1" in succeed("train", path).output
    assert_same(tmp_path / "run", whole)
    # This policy asks by itself, so the share falls, and what it falls by is in the checkpoint.
    metrics = lines(whole)
    own = [row["own_consulting_share"] for row in metrics]
    assert own[0] > 0
    assert [row["elicit_share"] for row in metrics[:2]] == [0.8, pytest.approx(0.8 * (1 - own[0]))]
    state = json.loads((whole / "checkpoints/step-000003/state.json").read_text())
    assert state["experience"]["own_consulting_shares"] == own[-2:]


def test_agents_that_cannot_be_asked_are_refused_before_anything_is_sampled(
    recipe: Recipe, tmp_path: Path
) -> None:
    result = run_cli("train", recipe("refused", share=0.5, agents=["critic"]))
    assert result.exit_code == 2
    assert "consult.elicit.agents = 'critic' is not in agents.enabled" in result.output.replace("\n", " ")
    assert not (tmp_path / "refused").exists()
