"""What goes wrong slowly is said when it begins, once, with the ways out, and the same after a resume."""

import json
from pathlib import Path
from typing import Any

import pytest

from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.report.folders import read_runs
from aipo.report.scan import Scan
from aipo.report.summary import summary
from aipo.training.trends import Trends
from support.policies import counting_policy, counting_recipe, run_cli, succeed


def settings(*more: str) -> Settings:
    return load_settings(None, ["guards.trend_steps=2", "agents.enabled=['verify']", *more])


def said(name: str, values: list[float], *more: str) -> list[tuple[int, str]]:
    """The steps at which something of this number is said, and what."""
    return Trends(settings(*more)).replay({"step": i, name: v} for i, v in enumerate(values, 1))


def steps(name: str, values: list[float], *more: str) -> list[int]:
    return [step for step, _ in said(name, values, *more)]


def test_a_policy_that_does_not_ask_or_no_longer_does_is_told_of_once_with_the_ways_out() -> None:
    assert steps("consulting_share", [0.0, 0.0, 0.0, 0.1]) == [2]
    assert steps("consulting_share", [0.9, 0.9, 0.1, 0.05, 0.05]) == [4]
    assert steps("consulting_share", [0.0, 0.0, 0.5, 0.5, 0.0, 0.0]) == [2, 6], "it asked in between"
    assert steps("consulting_share", [0.2, 0.1, 0.1]) == []
    assert steps("consulting_share", [0.0] * 5, "guards.min_consulting_share=0") == []
    assert steps("consulting_share", [0.0] * 5, "agents.enabled=[]") == []
    never, fell = (said("consulting_share", of)[0][1] for of in ([0.0, 0.0], [0.9, 0.9, 0.0, 0.0]))
    for way in ("aipo warmstart", "consult.consulting_prompt", "consult.elicit.share", "algorithm.kl_weight"):
        assert way in never
    assert "after 90% at best" in fell and "at best" not in never


def test_entropy_that_sinks_below_a_share_of_its_beginning_is_told_of() -> None:
    assert steps("entropy", [1.0, 0.9, 0.25, 0.1, 0.1]) == [4]
    assert steps("entropy", [0.05, 0.04, 0.02, 0.02]) == [], "low, but as at the beginning"
    assert steps("entropy", [1.0, float("nan"), 0.1, 0.1]) == [4]
    assert steps("entropy", [1.0, 0.0, 0.0], "guards.min_entropy_share=0") == []
    assert "algorithm.entropy_weight" in said("entropy", [1.0, 0.1, 0.1])[0][1]


def test_solo_accuracy_that_was_better_is_told_of_for_each_stratum() -> None:
    assert steps("reward_solo", [0.8, 0.9, 0.9, 0.5, 0.5]) == [5]
    assert steps("reward_solo/near", [0.8, 0.9, 0.5, 0.5]) == [4]
    assert "of stratum 'near'" in said("reward_solo/near", [0.8, 0.9, 0.5, 0.5])[0][1]
    gaps = [0.8, 0.9, 0.5, 0.5, float("nan"), 0.5]
    assert steps("reward_solo/near", gaps) == [4], "a step without such a problem changes nothing"
    assert steps("reward_solo/far", [0.2, 0.2, 0.0, 0.0]) == [], "nothing to forget"
    assert steps("reward_solo", [0.8, 0.9, 0.0, 0.0], "guards.min_solo_share=0") == []
    assert steps("reward_consulting", [0.9, 0.9, 0.0, 0.0]) == []


def test_going_on_from_the_lines_of_a_run_says_what_an_uninterrupted_one_says() -> None:
    lines = [{"step": i, "entropy": 1.0 / i, "consulting_share": 0.5 / i} for i in range(1, 12)]
    whole = Trends(settings()).replay(lines)
    for cut in range(12):
        trends = Trends(settings())
        assert trends.replay(lines[:cut]) + trends.replay(lines[cut:]) == whole
    assert len(whole) == 2


RUN = [
    "train.steps=3",
    "rollout.rollouts_per_prompt=2",
    "rollout.max_response_tokens=40",
    "guards.trend_steps=2",
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_policy(tmp_path_factory)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_says_it_records_it_and_its_report_shows_it(policy: Path, tmp_path: Path) -> None:
    own = [f"policy.model={policy}", f"run.output={tmp_path / 'run'}", *RUN]
    never = "guards.min_consulting_share=1"
    result = succeed("train", counting_recipe(tmp_path), *own, never)
    assert "step 2: " in result.output and "guards.min_consulting_share = 1" in result.output
    assert [row.get("guards/consulting") for row in metrics(tmp_path / "run")] == [None, 1.0, None]
    (run,) = read_runs([tmp_path / "run"])
    assert any(
        line.startswith("Step 2: ") and "aipo warmstart" in line for line in summary(run, Scan())["warnings"]
    )


def test_with_stop_the_run_ends_after_that_step_and_goes_on_behind_it(policy: Path, tmp_path: Path) -> None:
    own = [f"policy.model={policy}", f"run.output={tmp_path / 'run'}", *RUN]
    own += ["guards.min_consulting_share=1", "guards.consulting=stop"]
    stopped = run_cli("train", counting_recipe(tmp_path), *own)
    assert stopped.exit_code == 3 and "name guards.consulting with --allow-change" in stopped.output
    assert len(metrics(tmp_path / "run")) == 2
    succeed("train", counting_recipe(tmp_path), *own)
    assert len(metrics(tmp_path / "run")) == 3


def test_a_run_that_learns_nothing_of_its_agents_says_so_in_its_first_lines(
    policy: Path, tmp_path: Path
) -> None:
    for name, more, found in (
        ("masked", ["algorithm.coefficient=masked"], "algorithm.coefficient = 'masked'"),
        ("no weight", ["algorithm.feedback_weight=0"], "algorithm.feedback_weight = 0"),
        ("aipo", [], ""),
        ("no agents", ["algorithm.coefficient=masked", "agents.enabled=[]"], ""),
    ):
        own = [f"policy.model={policy}", f"run.output={tmp_path / name}", *RUN, "train.steps=1"]
        output = succeed("train", counting_recipe(tmp_path), *own, *more).output
        assert ("learns none of it" in output) == bool(found), name
        assert found in output
