"""`aipo compare`: from a recipe to a table and figures; interrupted, continued, repeated, from records alone.

Proves: Ctrl-C ends its runs and the same command continues; tuning happens on validation and the chosen rate
is used; what is there is not run again; `--records` gives the same report byte for byte. One comparison is
made for the whole module: runs are processes of their own, and each costs seconds of imports.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import Result

from aipo.comparison.records import read_run
from aipo.config.loader import diff_settings, load_settings, parse_settings
from aipo.evaluation.records import read_records
from support.policies import counting_policy, counting_recipe, run_cli, start_cli, succeed

pytestmark = pytest.mark.timeout(600)  # the first test makes the comparison: about 40 s on a quiet core
REPORT = ("results.md", "results.csv", "boundary.svg", "training.svg")
RECIPE = """
[compare]
name = "A tiny comparison"
base = "counting.toml"
warmstart = true
output = "{output}"
seeds = [0]
learning_rates = [1e-4, 1e-3]
tuning_steps = 1
overrides = ["train.steps=2", "train.record_rollouts_every_steps=2"]

[[compare.methods]]
name = "grpo"
title = "GRPO"
tune = false
overrides = {{ agents = {{ enabled = [] }}, algorithm = {{ coefficient = "masked" }} }}

[[compare.methods]]
name = "aipo"
title = "AIPO"

[[compare.methods]]
name = "longer"
title = "GRPO, then one more"
tune = false
starts_from = "grpo"
overrides = ["agents.enabled=[]", "algorithm.coefficient=masked", "train.steps=1"]
"""
METHODS = ("warm start", "GRPO", "AIPO", "GRPO, then one more")


class Comparison:
    """A finished comparison, and what was seen on the way."""

    def __init__(self, folder: Path, policy: Path) -> None:
        counting_recipe(folder)
        self.output = folder / "out"
        self.recipe = folder / "compare.toml"
        self.recipe.write_text(RECIPE.format(output=self.output))
        # The warm start is there already; `aipo warmstart` made it.
        shutil.copytree(policy, self.output / "warmstart" / "policy")
        self.interrupted_with = self._interrupt()
        self.left_running = self._children()
        self.logs_after_interrupt = sorted(path.name for path in self.output.rglob("*.log"))
        self.result = succeed("compare", self.recipe, "--at-once", "2")

    def _interrupt(self) -> int:
        """Start the comparison and press Ctrl-C once a run has begun to train."""
        process = start_cli("compare", self.recipe, "--at-once", "1")
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not list(self.output.rglob("settings.toml")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        return process.wait(timeout=60)

    def _children(self) -> list[str]:
        """Command lines of processes that still work on this comparison."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.output) in command and int(entry.parent.name) != os.getpid():
                found.append(command)
        return found

    def again(self, *arguments: str | Path) -> Result:
        return run_cli("compare", self.recipe, *arguments)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return Comparison(tmp_path_factory.mktemp("comparison"), counting_policy(tmp_path_factory))


def test_ctrl_c_ends_its_runs_and_the_same_command_finishes_them(comparison: Comparison) -> None:
    assert comparison.interrupted_with == 130
    assert comparison.left_running == []
    assert len(comparison.logs_after_interrupt) == 1
    assert comparison.result.exit_code == 0
    assert "report:" in comparison.result.output


def test_one_table_names_every_method_in_both_solo_modes(comparison: Comparison) -> None:
    with (comparison.output / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == set(METHODS)
    assert {row["mode"] for row in rows} == {"unanswered", "banned"}
    report = (comparison.output / "results.md").read_text()
    for word in ("# A tiny comparison", "GRPO", "AIPO", "warm start", "chosen on the validation split"):
        assert word in report
    for figure in ("boundary", "training"):
        assert f"]({figure}.svg)" in report
        assert {(comparison.output / f"{figure}{suffix}").exists() for suffix in (".svg", ".png")} == {True}


def test_records_hold_every_evaluation_and_how_it_came_about(comparison: Comparison) -> None:
    records = comparison.output / "records"
    runs = {run.method: run for run in map(read_run, (records / "runs").glob("*.json"))}
    assert set(runs) == set(METHODS)
    for run in runs.values():
        assert {e.split for e in run.evaluations} == {"test"}
        assert {e.mode for e in run.evaluations} == {"unanswered", "banned"}
    assert {m: [row["step"] for row in run.metrics] for m, run in runs.items()} == {
        "warm start": [],
        "GRPO": [1, 2],
        "AIPO": [1, 2],
        "GRPO, then one more": [1, 2, 3],
    }
    assert len({run.warmstart for run in runs.values()}) == 1 and runs["AIPO"].warmstart
    facts = json.loads((records / "facts.json").read_text())
    assert [(t["method"], t["learning_rate"]) for t in facts["tuning"]] == [("AIPO", 1e-4), ("AIPO", 1e-3)]
    assert (facts["baseline"], facts["methods"], facts["missing"]) == ("GRPO", list(METHODS), 0)


def test_a_record_is_all_that_the_run_measured(comparison: Comparison) -> None:
    run = read_run(comparison.output / "records" / "runs" / "aipo-0.json")
    folder = comparison.output / "aipo" / "seed-0"
    measured = read_records(folder / "evaluation.jsonl")
    assert [(e.step, e.mode, e.results) for e in run.evaluations] == [
        (e.step, e.mode, e.results) for e in measured
    ]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["reward_solo"] for row in run.metrics] == pytest.approx([row["reward_solo"] for row in rows])
    assert diff_settings(parse_settings(run.settings), load_settings(folder / "settings.toml")) == []


def test_a_method_that_goes_on_from_another_begins_with_its_policy_and_adds_up(
    comparison: Comparison,
) -> None:
    settings = (comparison.output / "longer" / "seed-0" / "settings.toml").read_text()
    assert f'model = "{comparison.output / "grpo" / "seed-0" / "policy"}"' in settings
    runs = {n: read_run(comparison.output / "records" / "runs" / f"{n}-0.json") for n in ("grpo", "longer")}
    assert runs["longer"].metrics[:2] == runs["grpo"].metrics
    assert {e.step for e in runs["longer"].evaluations} == {2, 3}
    assert runs["longer"].wall_s > runs["grpo"].wall_s


def test_the_rate_that_was_best_on_validation_is_the_one_that_is_used(comparison: Comparison) -> None:
    facts = json.loads((comparison.output / "records" / "facts.json").read_text())
    best = max(facts["tuning"], key=lambda point: point["criterion"])["criterion"]
    chosen = read_run(comparison.output / "records" / "runs" / "aipo-0.json").learning_rate
    assert chosen in [t["learning_rate"] for t in facts["tuning"] if t["criterion"] == best]
    settings = (comparison.output / "aipo" / "seed-0" / "settings.toml").read_text()
    assert f"learning_rate = {chosen}" in settings
    tuning = (comparison.output / "tuning" / "aipo" / f"{chosen:g}" / "settings.toml").read_text()
    assert 'split = "validation"' in tuning and "seed = 1000" in tuning


def test_run_again_it_does_nothing_anew(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    def times() -> dict[Path, int]:
        kept = comparison.output / "records", comparison.output
        return {
            path: path.stat().st_mtime_ns
            for path in comparison.output.rglob("*")
            if path.is_file() and path.parent not in kept
        }

    before, report = times(), (comparison.output / "results.csv").read_bytes()
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr("aipo.comparison.run._commit", lambda: "unknown")
    result = comparison.again()
    assert result.exit_code == 0, result.output
    assert times() == before
    assert (comparison.output / "results.csv").read_bytes() == report


def test_what_is_recorded_is_not_run_again_on_a_machine_without_the_runs(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that came along is the records and the warm start."""
    records = shutil.copytree(comparison.output / "records", tmp_path / "records")
    shutil.copytree(comparison.output / "warmstart", tmp_path / "out" / "warmstart")
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr("aipo.comparison.run._commit", lambda: "unknown")
    elsewhere = [f"compare.output={tmp_path / 'out'}", f"compare.records={records}"]
    result = comparison.again(*elsewhere)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "results.csv").read_bytes() == (comparison.output / "results.csv").read_bytes()
    (records / "runs" / "aipo-0.json").unlink()
    out_of_time = comparison.again("--minutes", "0.0001", *elsewhere)
    assert out_of_time.exit_code == 0, out_of_time.output
    assert "1 runs are left: the same command continues" in out_of_time.output
    assert "**incomplete**: 1 planned runs" in (tmp_path / "out" / "results.md").read_text()


def test_records_alone_give_the_same_report(comparison: Comparison, tmp_path: Path) -> None:
    copy = shutil.copytree(comparison.output / "records", tmp_path / "records")
    result = comparison.again("--records", copy, f"compare.output={tmp_path / 'report'}")
    assert result.exit_code == 0, result.output
    for name in REPORT:
        regenerated = (tmp_path / "report" / name).read_bytes()
        assert regenerated == (comparison.output / name).read_bytes(), name


def test_finished_runs_are_read_without_a_recipe(comparison: Comparison) -> None:
    result = run_cli("compare", *(comparison.output / method / "seed-0" for method in ("grpo", "aipo")))
    assert result.exit_code == 0, result.output
    assert "unanswered" in result.output and "banned" in result.output
    rows = [line.split()[0] for line in result.output.splitlines() if "seed-0" in line.split("  ")[0]]
    assert [Path(row).parent.name for row in rows] == ["grpo", "aipo"]  # both are called seed-0
    assert (comparison.output / "grpo" / "boundary.png").exists()


def test_a_focus_that_no_problem_has_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    counting_recipe(tmp_path)
    recipe = tmp_path / "compare.toml"
    recipe.write_text(RECIPE.format(output=tmp_path / "out"))
    result = run_cli("compare", recipe, 'compare.focus=["hrad"]')
    assert result.exit_code == 2
    assert "no test problem has the stratum hrad; choose from easy, hard" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_a_folder_without_evaluations_is_refused(tmp_path: Path) -> None:
    result = run_cli("compare", tmp_path)
    assert result.exit_code == 2
    assert "no evaluation.jsonl; first run `aipo evaluate`" in result.output


def test_results_of_another_recipe_are_refused_and_kept(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    runs = comparison.output / "aipo" / "seed-0" / "metrics.jsonl"
    before = runs.read_bytes()
    result = comparison.again("algorithm.floor=0.2")
    assert result.exit_code == 2
    assert "the record of a run with other settings" in result.output
    assert "algorithm.floor: 0.1 -> 0.2" in result.output
    assert runs.read_bytes() == before
