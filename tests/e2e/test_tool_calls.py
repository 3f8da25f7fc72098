"""Consulting by tool calls through the verbs: a run, its resume, evaluation without and with agents.

The policies are tiny and were taught to call; template, engine, agents and grading are the real ones.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from aipo.assembly.formats import build_format
from aipo.config.loader import load_settings
from support.policies import random_policy, run_cli, succeed
from support.tool_policies import make_tool_policy, tool_recipe
from support.tool_templates import tool_tokenizer

LIBRARIAN = "support.python_agents:LIBRARIAN"


def prepared(folder: Path, family: str) -> Path:
    recipe = tool_recipe(folder, family, LIBRARIAN)
    calls, _ = build_format(load_settings(recipe), tool_tokenizer(family))
    make_tool_policy(folder / "policy", family, calls.tools)
    return recipe


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("family", ["qwen", "llama"])
def test_a_run_consults_by_calls_resumes_and_is_evaluated(tmp_path: Path, family: str) -> None:
    recipe = prepared(tmp_path, family)
    run = tmp_path / "run"
    succeed("train", recipe, "train.steps=1")
    changed = ("--allow-change", "train.steps")
    assert "going on from step 1" in succeed("train", recipe, *changed).output
    metrics = lines(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2]
    assert all(row["first_ratio_error"] < 1e-4 and row["ungraded_share"] == 0 for row in metrics)
    rollouts = lines(run / "rollouts.jsonl")
    asked = [r for r in rollouts if any(c["outcome"] == "answered" for c in r["consultations"])]
    assert asked and {r["condition"] for r in asked} == {"consulting"}
    sources = [[s["source"] for s in r["segments"]] for r in asked]
    assert ["prompt", "policy", "scaffold", "feedback", "scaffold", "policy"] in sources
    assert any(r["verdict"] == "correct" for r in asked)
    for r in rollouts:
        offered = '"knowledge"' in r["segments"][0]["text"]
        assert offered is (r["condition"] == "consulting")
    succeed("evaluate", recipe, 'evaluate.modes=["unanswered", "banned", "agents"]')
    samples = lines(run / "samples.jsonl")
    asking = {s["condition"]: 0 for s in samples}
    for s in samples:
        asking[s["condition"]] += s["consultations"]
    assert asking.pop("agents") > 0 and set(asking.values()) == {0} and len(asking) == 2
    assert "knowledge asked 'legs?': answered '8 8'" in " ".join(
        succeed("rollout", recipe, "-n", "4").output.split()
    )
    evaluated = tmp_path / "evaluated"
    given = ["--benchmarks", "leg_counting", "--problems", "2", "--samples", "2", "--output", evaluated]
    succeed("evaluate", run / "policy", *given, "--with-agents", recipe)
    assert sum(s["consultations"] for s in lines(evaluated / "samples.jsonl")) > 0
    assert '"consult_format": "tools"' in (evaluated / "manifest.json").read_text()
    succeed("report", run)
    assert "tool_response" in (run / "report.html").read_text() or family == "llama"
    doctor = succeed("doctor", recipe).output
    assert "answered: '8 8'" in doctor and "tokens of each tag" in doctor


def test_a_template_without_tools_ends_it_before_anything_is_spent(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    recipe = tool_recipe(tmp_path, "qwen", LIBRARIAN)
    model = random_policy(tmp_path_factory, "qwen2.5")
    refused = run_cli("train", recipe, f"policy.model={model}")
    said = " ".join(refused.output.split())
    assert refused.exit_code == 2 and "offers no tools; set consult.format = 'tags'" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
