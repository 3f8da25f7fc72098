"""Agents in Python named in a recipe, an object and a function that makes one.

A class that makes one goes through every verb in test_outside_agent.py.
"""

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


def test_the_check_takes_an_object_and_a_function(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    checked = succeed("agents", "check", recipe).output
    assert checked.count(ECHO) == 2 and checked.count(LIBRARIAN) == 1 and checked.count(" ok") == 3


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
