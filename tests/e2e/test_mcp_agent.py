"""A tool of an MCP server as an agent, through the verbs: the server is a real one, over stdio."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from support import mcp_server_path
from support.policies import counting_policy, counting_recipe, succeed

pytestmark = pytest.mark.skipif(find_spec("mcp") is None, reason="the package mcp is not installed")
COMPARISON = """
[compare]
name = "With a tool"
base = "counting.toml"
output = "{output}"
seeds = [0]
overrides = ["train.steps=1"]

[[compare.methods]]
name = "aipo"
title = "AIPO"
tune = false
"""


@pytest.fixture
def recipe(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    between = {"tool": "between", "argument": "text", "arguments": {"left": "8 ", "right": " 8"}}
    server = {"command": sys.executable, "args": [str(mcp_server_path())], **between}
    return counting_recipe(
        tmp_path,
        run={"output": str(tmp_path / "run")},
        policy={"model": str(counting_policy(tmp_path_factory))},
        agents={"backend": "mcp", **{name: {"mcp": server} for name in ("verify", "knowledge", "reasoning")}},
        train={"steps": 2, "checkpoint_every_steps": 1},
    )


def test_it_is_checked_trains_is_evaluated_and_shown(recipe: Path, tmp_path: Path) -> None:
    assert succeed("agents", "check", recipe).output.count(" ok") == 3
    succeed("train", recipe)
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and sum(row["outcomes/answered"] for row in rows) > 0
    assert all(row["outcomes/agent_error"] == 0 for row in rows)
    (entry,) = json.loads((run / "agents.json").read_text())
    assert entry["agents"]["knowledge"]["mcp"]["tool"] == "between"
    given = ["--benchmarks", "leg_counting", "--problems", "4", "--samples", "2", "--output", tmp_path / "e"]
    succeed("evaluate", run / "policy", *given, "--with-agents", recipe)
    found = [json.loads(line) for line in (tmp_path / "e" / "samples.jsonl").read_text().splitlines()]
    assert sum(sample["consultations"] for sample in found) > 0
    assert "answered '8" in " ".join(succeed("rollout", recipe, "-n", "6").output.split())


def test_it_is_compared(recipe: Path, tmp_path: Path) -> None:
    page = tmp_path / "compare.toml"
    page.write_text(COMPARISON.format(output=tmp_path / "compared"))
    succeed("compare", page)
    assert list((tmp_path / "compared").rglob("metrics.jsonl"))
