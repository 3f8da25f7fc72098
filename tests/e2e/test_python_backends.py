"""Agents in Python named in a recipe, an object and a function that makes one: every verb takes them.

A fourth agent with a back end of its own is in test_outside_agent.py, `aipo compare` too.
"""

import json
from pathlib import Path

import pytest

from support.policies import counting_policy, counting_recipe, run_cli, succeed

LIBRARIAN, ECHO = "support.python_agents:LIBRARIAN", "support.python_agents:echo"


@pytest.fixture
def recipe(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_recipe(
        tmp_path,
        run={"output": str(tmp_path / "run")},
        policy={"model": str(counting_policy(tmp_path_factory))},
        agents={"backend": ECHO, "knowledge": {"backend": LIBRARIAN}},
        train={"steps": 1},
    )


def test_every_verb_takes_them(tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    checked = succeed("agents", "check", recipe).output
    assert checked.count(ECHO) == 2 and checked.count(LIBRARIAN) == 1 and checked.count(" ok") == 3
    assert ": answered '8 8'" in succeed("rollout", recipe, "-n", "6").output
    succeed("train", recipe)
    (entry,) = json.loads((tmp_path / "run" / "agents.json").read_text())
    assert entry["agents"]["knowledge"] == {"backend": LIBRARIAN, "type": "Echo"}
    rollouts = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    said = {c["agent"]: c["reply"] for row in rollouts for c in row["consultations"] if c["reply"]}
    assert said["knowledge"] == "8 8"
    output = succeed("evaluate", recipe, 'evaluate.modes=["agents"]', f"run.output={tmp_path / 'e'}").output
    assert "agents, pass@1" in output
    given = ["--benchmarks", "leg_counting", "--problems", "4", "--samples", "1", "--output", tmp_path / "b"]
    succeed("evaluate", tmp_path / "run" / "policy", *given, "--with-agents", recipe)
    samples = [json.loads(line) for line in (tmp_path / "b" / "samples.jsonl").read_text().splitlines()]
    assert sum(sample["consultations"] for sample in samples) > 0


def test_what_is_no_agent_is_refused_before_anything_is_spent(tmp_path: Path, recipe: Path) -> None:
    for backend, reason in {
        "support.python_agents:dataclass": "could not make an agent of its spec and its settings: TypeError",
        "builtins:max": "could not make an agent",
        "support.python_agents:nobody": "which cannot answer",
        "support.python_agents:nothing": "cannot be imported",
        "no_such_module:x": "cannot be imported",
    }.items():
        result = run_cli("train", recipe, f"agents.knowledge.backend={backend}")
        said = " ".join(result.output.split())
        assert result.exit_code == 2 and reason in said and backend in said, said
    assert not (tmp_path / "run").exists()
