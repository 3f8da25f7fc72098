"""A coefficient from outside the package, p^h, in `aipo train`, `aipo compare` and the report.

Its module stands in the folder that the commands are started in, as a user's would.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from aipo.config.loader import load_settings
from aipo.core.coefficients import curve
from aipo.core.registry import RegistryError
from aipo.report.weights import rule, weight
from aipo.training.algorithm import objective_settings
from support.policies import counting_policy, counting_recipe, run_cli, succeed

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "tests" / "support" / "power.py"
RECIPE = """
[compare]
name = "p^h"
base = "counting.toml"
warmstart = true
output = "out"
seeds = [0]
learning_rates = [1e-3]
overrides = ["train.steps=2"]

[[compare.methods]]
name = "power"
title = "p^h"
overrides = ["algorithm.coefficient=power:POWER", "algorithm.coefficient_options.h=0.25"]

[[compare.methods]]
name = "floored"
title = "floored"
overrides = []
"""
H = 0.25
OVERRIDES = ["algorithm.coefficient=power:POWER", f"algorithm.coefficient_options.h={H}"]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(MODULE, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_it_is_compared_and_reported_like_one_of_the_packages_own(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    counting_recipe(folder)
    (folder / "compare.toml").write_text(RECIPE)
    shutil.copytree(counting_policy(tmp_path_factory), folder / "out" / "warmstart" / "policy")
    succeed("compare", "compare.toml", "--at-once", "2")
    runs = {name: folder / "out" / name / "seed-0" for name in ("power", "floored")}
    assert all(len(run.joinpath("metrics.jsonl").read_text().splitlines()) == 2 for run in runs.values())
    first = {
        name: json.loads((run / "metrics.jsonl").read_text().splitlines()[0]) for name, run in runs.items()
    }
    assert first["power"]["feedback_tokens"] == first["floored"]["feedback_tokens"] > 0
    assert first["power"]["grad_norm"] != first["floored"]["grad_norm"]
    assert "p^h" in (folder / "out" / "results.md").read_text()
    succeed("report", runs["power"])
    page = (runs["power"] / "report.html").read_text()
    assert "power:POWER: W = h p^h; h = 0.25" in page


def test_its_words_and_its_weight_come_from_its_entry(folder: Path) -> None:
    settings = load_settings(None, OVERRIDES)
    assert rule(settings) == "power:POWER: W = h p^h; h = 0.25"
    for p in (1e-3, 0.1, 1.0):
        assert weight(p, settings, 1) == pytest.approx(H * p**H)
    p = torch.logspace(-4, 0, 9, dtype=torch.float64)
    values, weights = curve(p, objective_settings(settings.algorithm).coefficient)
    assert torch.allclose(values, p**H) and torch.allclose(weights, H * p**H)


def test_a_parameter_that_is_left_out_has_its_default_and_an_unknown_one_is_refused(folder: Path) -> None:
    alone = load_settings(None, OVERRIDES[:1])
    assert rule(alone) == "power:POWER: W = h p^h; h = 0.5"
    misspelt = load_settings(None, [OVERRIDES[0], "algorithm.coefficient_options.H=1"])
    with pytest.raises(RegistryError, match=r"algorithm.coefficient_options.H = 1 .*it has h"):
        objective_settings(misspelt.algorithm)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "algorithm.coefficient=flored",
            "`algorithm.coefficient` = 'flored' is not known; did you mean 'floored'?",
        ),
        ("algorithm.name=grop", "`algorithm.name` = 'grop' is not known; did you mean 'grpo'?"),
        ("algorithm.coefficient=nowhere:POWER", "algorithm.coefficient = 'nowhere:POWER' cannot be imported"),
        (
            "algorithm.coefficient=power:power",
            "algorithm.coefficient = 'power:power' is a function, not a Coefficient",
        ),
    ],
)
def test_a_name_that_stands_for_nothing_is_one_error_before_anything_is_computed(
    folder: Path, override: str, said: str
) -> None:
    recipe = counting_recipe(folder)
    result = run_cli("train", recipe, "policy.model=no-such-folder", override)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.split())


def test_contributing_shows_the_very_code() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition("### Add a coefficient\n")[2].partition("\n### ")[0]
    assert MODULE.read_text(encoding="utf-8") in section
