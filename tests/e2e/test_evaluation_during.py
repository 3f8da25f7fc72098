"""A run evaluates by itself, on validation problems, and keeps the best policy.

Proves: by default before training, every n steps and at the end, at about a tenth of the rollouts, said
beforehand; `at_steps` is what it was; the copy in `best/` is that of the best evaluation, survives a run that
is killed and is never chosen on the test split; what evaluations draw changes nothing of the training.
"""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from aipo.assembly.during import accuracies
from aipo.config.loader import load_settings
from aipo.evaluation.records import read_records
from support.checkpoints import lines, quick_folder
from support.kill_points import Zygote
from support.policies import counting_policy, counting_recipe, succeed

OWN = ["train.steps=4", "train.reward=random", "evaluate.curve_problems=4"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_policy(tmp_path_factory)


def recipe_of(folder: Path) -> Path:
    """The counting recipe without its `at_steps`."""
    folder.mkdir(exist_ok=True)
    recipe = counting_recipe(folder)
    text = recipe.read_text()
    assert "at_steps = []\n" in text
    recipe.write_text(text.replace("at_steps = []\n", ""))
    return recipe


@pytest.fixture(scope="module")
def trained(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("by-itself")
    own = [f"policy.model={policy}", f"run.output={folder / 'run'}", "evaluate.every_steps=2", *OWN]
    return folder / "run", succeed("train", recipe_of(folder), *own).output


def test_before_training_now_and_then_and_at_the_end(trained: tuple[Path, str]) -> None:
    run, output = trained
    found = [(row["step"], row["split"], row["mode"]) for row in lines(run, "evaluation.jsonl")]
    modes = ("unanswered", "banned")
    assert found == [(step, "validation", mode) for step in (0, 2, 4) for mode in modes]
    said = " ".join(output.split())
    assert (
        "evaluation: 4 validation problems" in said and "3 times 8 rollouts, beside 32 of each step" in said
    )
    assert "checkpoints: 1.0 MB each, every 10 minutes and at the end" in said


def test_the_best_is_that_of_the_best_evaluation(trained: tuple[Path, str]) -> None:
    run, output = trained
    scores = accuracies(read_records(run / "evaluation.jsonl"), load_settings(run / "settings.toml"))
    assert list(scores) == [0, 2, 4]
    best = max(scores, key=lambda step: (scores[step], -step))
    assert f"best on validation problems: step {best}, {scores[best]:.1%}" in " ".join(output.split())
    if best:
        assert json.loads((run / "best" / "best.json").read_text()) == {
            "step": best,
            "accuracy": scores[best],
        }
    else:
        assert not (run / "best").exists()


def test_evaluations_change_nothing_of_the_training(
    policy: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    own = [f"policy.model={policy}", f"run.output={tmp_path / 'run'}", "evaluate.at_steps=[]", *OWN]
    succeed("train", recipe_of(tmp_path), *own)
    for name in ("metrics.jsonl", "rollouts.jsonl", "policy/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (trained[0] / name).read_bytes(), name
    assert not (tmp_path / "run" / "evaluation.jsonl").exists()


def test_by_default_it_is_a_tenth(policy: Path, tmp_path: Path) -> None:
    """4 problems x 2 modes beside 32 rollouts of a step: every third step, and the last one."""
    own = [f"policy.model={policy}", f"run.output={tmp_path / 'run'}", *OWN, "train.keep_best=false"]
    succeed("train", recipe_of(tmp_path), *own)
    assert [row["step"] for row in lines(tmp_path / "run", "evaluation.jsonl")] == [0, 0, 3, 3, 4, 4]
    assert not (tmp_path / "run" / "best").exists()


def test_the_test_split_chooses_nothing(policy: Path, tmp_path: Path) -> None:
    own = [
        f"policy.model={policy}",
        f"run.output={tmp_path / 'run'}",
        *OWN,
        "evaluate.at_steps=[0, 1, 2, 3, 4]",
    ]
    succeed("train", recipe_of(tmp_path), *own, "evaluate.problems=2", "evaluate.samples_per_problem=2")
    assert {row["split"] for row in lines(tmp_path / "run", "evaluation.jsonl")} == {"test"}
    assert not (tmp_path / "run" / "best").exists()


@pytest.mark.timeout(600)
def test_a_kill_around_the_best_policy_ends_in_the_same_copy(policy: Path) -> None:
    zygote = Zygote()
    try:
        with quick_folder() as base:

            def start(name: str, **how: Any) -> int:
                folder = base / name
                recipe = recipe_of(folder)
                own = [f"policy.model={policy}", f"run.output={folder / 'run'}", *OWN, *BETTER]
                return zygote.run(folder / "log", "train", recipe, *own, **how).status

            assert start("whole", trace=str(base / "trace")) == 0
            kept = files(base / "whole" / "run")
            events = [json.loads(line) for line in (base / "trace").read_text().splitlines()]
            events = [e for e in events if e[0] in BEST_EVENTS]
            assert {name for name, _ in events} == BEST_EVENTS, "the copy is made at least once"
            for number, event in enumerate(events):
                assert start(f"killed-{number}", kill=event) == -signal.SIGKILL, event
                assert start(f"killed-{number}") == 0
                assert files(base / f"killed-{number}" / "run") == kept, event
    finally:
        zygote.close()


BETTER = ["evaluate.every_steps=1", "train.checkpoint_every_steps=2", "evaluate.curve_problems=8"]
BEST_EVENTS = {"save_policy", "Path.rename .policy.partial", "rmtree policy", "Path.replace best.partial"}


def files(run: Path) -> dict[str, bytes]:
    """The copy and what it was chosen by."""
    found = [run / "evaluation.jsonl", *sorted((run / "best").rglob("*"))]
    return {str(path.relative_to(run)): path.read_bytes() for path in found if path.is_file()}
