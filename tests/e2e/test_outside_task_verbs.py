"""`task.name = "module:Class"`: every verb that takes a recipe works on a task that no package knows of.

The policy is random and learns nothing: a verb works where it ends well and speaks of the task's problems.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aipo.config.loader import load_settings
from aipo.config.toml import toml_text
from support.policies import random_policy, succeed

CLASS = "support.outside_task:Sums"
COMPARE = """
[compare]
name = "Of one's own"
base = "own.toml"
output = "compared"
seeds = [0]
records = "compared/records"

[[compare.methods]]
name = "grpo"
title = "GRPO"
overrides = { agents = { enabled = [] }, algorithm = { coefficient = "masked" } }

[[compare.methods]]
name = "aipo"
title = "AIPO"
"""


@pytest.fixture
def recipe(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))  # a comparison's runs are processes of their own
    table: dict[str, dict[str, object]] = {
        "run": {"output": "run", "threads": 1},
        "policy": {"model": str(random_policy(tmp_path_factory, "qwen2.5"))},
        "task": {"name": CLASS},
        "agents": {"backend": "support.python_agents:echo"},
        "consult": {"consulting_prompt": "Ask.", "solo_prompt": "Add.", "max_feedback_tokens": 8},
        "rollout": {"rollouts_per_prompt": 2, "max_prompt_tokens": 256, "max_response_tokens": 160},
        "train": {"steps": 1, "prompts_per_step": 2, "minibatches_per_step": 1},
        "evaluate": {"problems": 2, "samples_per_problem": 2, "pass_at": [1, 2], "at_steps": []},
        "warmstart": {"examples": 8, "epochs": 1, "check_problems": 2, "check_samples": 1},
    }
    own = tmp_path / "own.toml"
    own.write_text(toml_text(table))
    return own


def _compared(recipe: Path) -> str:
    both = recipe.with_name("both.toml")
    both.write_text(COMPARE)
    return succeed("compare", both, "--at-once", "1").output


def _warm(recipe: Path) -> str:
    start = f"warmstart.model={load_settings(recipe).policy.model}"
    return succeed("warmstart", recipe, "policy.model=warm/policy", start).output


VERBS: dict[str, tuple[Callable[[Path], str], str]] = {
    "train": (lambda recipe: succeed("train", recipe).output, "policy written to"),
    "evaluate": (lambda recipe: succeed("evaluate", recipe).output, "carry"),
    "rollout": (lambda recipe: succeed("rollout", recipe).output, "sums/1+1"),
    "compare": (_compared, "results.md"),
    "agents check": (lambda recipe: succeed("agents", "check", recipe).output, "3/3"),
    "doctor": (lambda recipe: succeed("doctor", recipe).output, "54 to train"),
    "tasks validate": (lambda recipe: succeed("tasks", "validate", recipe).output, "sums"),
    "warmstart": (_warm, "written to warm/policy"),
    "data export": (lambda recipe: succeed("data", "export", recipe).output, "54"),
    "evaluate modes": (
        lambda recipe: succeed("evaluate", recipe, 'evaluate.modes=["banned", "agents"]').output,
        "agents",
    ),
    "plan": (lambda recipe: succeed("plan", recipe).output, "memory"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_a_class_of_a_task(recipe: Path, verb: str) -> None:
    call, says = VERBS[verb]
    assert says in call(recipe)
