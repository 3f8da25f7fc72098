"""Checkpoints are written while the run goes on, and a crash at any moment of that loses no bit.

Proves: a run that is ahead of its half-written checkpoint and killed ends in the same bytes; a clock decides
which steps have checkpoints and nothing else; a write that fails is said and tried again, and stops the run
where it happens too often or at the end.
"""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from support.checkpoints import assert_same, lines, outcome
from support.kill_points import Ran

pytestmark = pytest.mark.timeout(900)
EVERY = ["train.checkpoint_every_steps=1", "train.keep_checkpoints=3"]
Start = Callable[..., Ran]


class TestAhead:
    @pytest.mark.parametrize(
        "held",
        [
            "Journal.sync",
            "PreTrainedModel.save_pretrained policy",
            "save optimiser.pt",
            "Path.write_text manifest.json",
        ],
    )
    def test_a_kill_while_a_checkpoint_is_half_written_and_the_run_is_ahead_of_it(
        self, start: Start, whole: Path, base: Path, held: str
    ) -> None:
        """The checkpoint of step 2 stands still, steps 3 and 4 go on, and the run is killed."""
        name = f"ahead-{held.split()[0]}"
        how = {"hold": [f"writer: {held}", 1, "Updater.apply", 99], "kill": ["Updater.apply", 4]}
        assert start(name, **how).status == -signal.SIGKILL
        run = base / name / "run"
        assert len(lines(run)) == 3, "the run did not wait for its checkpoint"
        assert not list((run / "checkpoints").glob("step-*/manifest.json"))
        assert start(name).status == 0
        assert_same(run, whole)

    def test_by_the_clock_a_run_ends_where_the_other_one_does(
        self, start: Start, whole: Path, base: Path
    ) -> None:
        """Which steps have checkpoints depends on a clock; nothing else does."""
        by_time = ["train.checkpoint_every_steps=0", "train.checkpoint_every_minutes=0"]
        rare = [by_time[0], "train.checkpoint_every_minutes=10"]
        assert start("clock", *by_time, kill=["Updater.apply", 4], written=True).status == -signal.SIGKILL
        assert list((base / "clock/run/checkpoints").glob("step-*/manifest.json"))
        assert start("clock", *by_time).status == 0
        assert start("rare", *rare, kill=["Updater.apply", 4]).status == -signal.SIGKILL
        assert not (base / "rare/run/checkpoints").exists(), "ten minutes are not over"
        assert start("rare", *rare).status == 0
        a, b, c = outcome(base / "clock" / "run"), outcome(base / "rare" / "run"), outcome(whole)
        for part in c:
            if "state" not in part:  # it names the hash of the settings
                assert a[part] == b[part] == c[part], part


class TestFailure:
    def test_a_write_that_fails_is_said_and_the_run_goes_on(
        self, start: Start, whole: Path, base: Path
    ) -> None:
        ran = start("bad-day", fail_writes=[1])
        assert ran.status == 0, ran.output
        said = " ".join(ran.output.split())
        assert "the checkpoint of step 2 could not be written" in said and "The run goes on" in said
        assert_same(base / "bad-day" / "run", whole)

    def test_too_many_that_fail_stop_the_run_and_so_does_the_last_one(self, start: Start, base: Path) -> None:
        ran = start("bad-days", *EVERY, fail_writes=[1, 2, 3])
        assert ran.status == 3 and "the checkpoint of step 3 could not be written" in ran.output, ran.output
        ran = start("bad-end", fail_writes=[2])
        assert ran.status == 3 and "the checkpoint of step 4 could not be written" in ran.output, ran.output
        assert start("bad-end").status == 0
