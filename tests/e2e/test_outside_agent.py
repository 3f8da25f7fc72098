"""A fourth agent from outside the package: it trains, resumes, is evaluated, reported and drawn.

Proves that an agent is one entry: `support.critic` holds all of it, and no file of `src/` has its name.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from aipo.comparison.report import Report
from support.critic import CRITIC
from support.policies import counting_policy, counting_recipe, run_cli, succeed

pytestmark = pytest.mark.timeout(600)  # the first test makes the policy; others may use the cores
ROOT = Path(__file__).parents[2]
SPEC, BACKEND = "support.critic:CRITIC", "support.critic:LastWords"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy with the critic's tags in its vocabulary: it asks it as often as it asks Knowledge."""
    made, folder = counting_policy(tmp_path_factory), tmp_path_factory.mktemp("critic") / "policy"
    tokenizer, model = AutoTokenizer.from_pretrained(made), AutoModelForCausalLM.from_pretrained(made)
    tags = ["<critic>", "</critic>"]
    tokenizer.add_tokens(tags, special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weights = model.get_input_embeddings().weight.data
    for tag in tags:
        as_knowledge = tag.replace("critic", "knowledge")
        weights[tokenizer.convert_tokens_to_ids(tag)] = weights[tokenizer.convert_tokens_to_ids(as_knowledge)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recipe(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    return counting_recipe(
        folder,
        run={"output": str(folder / "run")},
        policy={"model": str(policy)},
        agents={"enabled": [SPEC], "critic": {"backend": BACKEND}},
        # A coin decides what counts as correct: the tiny policy makes nothing of what the critic says.
        train={"steps": 2, "checkpoint_every_steps": 1, "minibatches_per_step": 1, "reward": "random"},
        algorithm={"feedback_advantage": "signed"},
    )


@pytest.fixture(scope="module")
def run(recipe: Path) -> Path:
    """A run of two updates that went on to a third."""
    succeed("train", recipe)
    assert (
        "going on from step 2"
        in succeed("train", recipe, "train.steps=3", "--allow-change", "train.steps").output
    )
    return recipe.parent / "run"


COMPARISON = """
[compare]
name = "With a critic"
base = "counting.toml"
warmstart = true
output = "{output}"
seeds = [0]
overrides = ["train.steps=2"]

[[compare.methods]]
name = "aipo"
title = "AIPO"
tune = false
"""


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_trains_and_goes_on(run: Path) -> None:
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["consultations/critic"] > 0 and row["outcomes/answered"] > 0 for row in rows)
    assert sum(row["credited_tokens"] for row in rows) > 0  # its words are learnt from
    (entry,) = json.loads((run / "agents.json").read_text())
    assert entry["agents"] == {"critic": {"backend": BACKEND, "type": "LastWords"}}


def test_it_is_evaluated(run: Path, recipe: Path, tmp_path: Path) -> None:
    succeed("evaluate", recipe, "train.steps=3", 'evaluate.modes=["agents"]')
    given = ["--benchmarks", "leg_counting", "--problems", "4", "--samples", "2", "--output", tmp_path / "e"]
    succeed("evaluate", run / "policy", *given, "--with-agents", recipe)
    found = [json.loads(line) for line in (tmp_path / "e" / "samples.jsonl").read_text().splitlines()]
    assert sum(sample["consultations"] for sample in found) > 0


def test_other_verbs_take_it(recipe: Path) -> None:
    assert "critic" in succeed("agents", "check", recipe).output
    assert "<critic>" in succeed("rollout", recipe, "-n", "2").output


def test_it_is_reported_in_its_colour(run: Path) -> None:
    succeed("report", run)
    page = (run / "report.html").read_text()
    assert f"light-dark({', '.join(CRITIC.colour)})" in page
    assert '"agent":"critic"' in page and '"label":"critic"' in page


def test_it_is_compared_and_drawn(
    recipe: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))  # runs are processes of their own
    (tmp_path / "counting.toml").write_text(recipe.read_text())
    (tmp_path / "compare.toml").write_text(COMPARISON.format(output=tmp_path / "out"))
    shutil.copytree(policy, tmp_path / "out" / "warmstart" / "policy")
    succeed("compare", tmp_path / "compare.toml", "--at-once", "1")
    made = (tmp_path / "out").rglob("runs/*.json")
    (record,) = [path for path in made if json.loads(path.read_text())["metrics"]]  # the warm start has none
    figures = [Report(record.parents[1], [1])]
    kept = json.loads(record.read_text())
    assert kept["metrics"].pop("consultations/critic")[-1] > 0
    record.write_text(json.dumps(kept))
    figures.append(Report(record.parents[1], [1]))
    for name, report in zip("ab", figures, strict=True):
        (tmp_path / name).mkdir()
        report.figures(tmp_path / name)
    drawn = [(tmp_path / name / "training.svg").read_bytes() for name in "ab"]
    assert drawn[0] == (tmp_path / "out" / "training.svg").read_bytes() != drawn[1]


def test_a_table_of_its_own_is_refused_under_another_name(recipe: Path, tmp_path: Path) -> None:
    result = run_cli("train", recipe, f"run.output={tmp_path / 'a'}", "agents.critc.backend=dead")
    assert "`agents.critc`: unknown key; did you mean `agents.critic`?" in " ".join(result.output.split())
    result = run_cli("train", recipe, f"run.output={tmp_path / 'b'}", "agents.critic.backend=oracle")
    assert "has words of verify, knowledge, reasoning only" in " ".join(result.output.split())


def test_contributing_shows_this_very_code() -> None:
    code = (ROOT / "tests" / "support" / "critic.py").read_text()
    assert f"```python\n{code}```" in (ROOT / "CONTRIBUTING.md").read_text()
