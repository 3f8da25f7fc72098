"""Trackers by name: what is logged arrives, what is missing is refused before anything is spent."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.tracking import get_available_trackers

from aipo.training.trackers import check_trackers
from support.policies import counting_policy, counting_recipe, run_cli, succeed


@pytest.fixture
def recipe(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = {"model": str(counting_policy(tmp_path_factory))}
    return counting_recipe(tmp_path, policy=policy, run={"output": str(tmp_path / "run")})


def test_each_step_reaches_tensorboard(recipe: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    succeed("train", recipe, "train.steps=2", 'run.trackers=["tensorboard"]')
    [folder] = {path.parent for path in (tmp_path / "run" / "trackers" / "aipo").glob("events.*")}
    events = EventAccumulator(str(folder)).Reload()
    assert [e.step for e in events.Scalars("reward_solo")] == [1, 2]
    assert {"grad_norm", "entropy", "consultations_per_rollout"} <= set(events.Tags()["scalars"])


def test_an_unknown_tracker_is_refused_with_the_nearest_name(recipe: Path, tmp_path: Path) -> None:
    result = run_cli("train", recipe, 'run.trackers=["tensorbord"]')
    assert result.exit_code == 2 and "did you mean 'tensorboard'?" in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_refused_with_the_fix() -> None:
    missing = next(name for name in ("clearml", "aim", "swanlab") if name not in get_available_trackers())
    with pytest.raises(ValueError, match=f"pip install {missing}"):
        check_trackers([missing])


def test_at_a_terminal_there_is_one_screen_and_elsewhere_lines(recipe: Path) -> None:
    """In a real pseudo-terminal, with the command as users start it."""
    command = [sys.executable, "-m", "aipo", "train", str(recipe), "train.steps=3"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + 240
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 1)[0]:
            continue
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the other end is closed: the command is over
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert process.wait(60) == 0, seen.decode(errors="replace")
    text = seen.decode(errors="replace")
    assert "3/3" in text and "reward solo" in text and "remaining" in text
    assert "step 3/3" not in text  # that is how lines begin
    assert "policy written to" in text
