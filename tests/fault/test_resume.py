"""A run that is killed at any of its side effects goes on to the same bytes as one that was not.

Proves: SIGKILL before every kind of side effect of a run (sampling, update, each append, each write, rename
and removal of a checkpoint, evaluation, export) and nothing is lost, doubled or changed; every part of a
checkpoint is needed; a step that is made again asks no agent twice; a damaged checkpoint gives way to the one
before; a full disk, a torn line, a signal and a changed setting end as docs/recovery.md says.

AIPO_EVERY_KILL_POINT=1 kills at every single event instead of one of each kind.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from support.checkpoints import (
    RECORDS,
    assert_same,
    change_value,
    edit_state,
    lines,
    spoil,
)
from support.kill_points import SIDE_EFFECTS, Ran
from support.servers import chat_server

pytestmark = pytest.mark.timeout(900)
EVERY = ["train.checkpoint_every_steps=1", "train.keep_checkpoints=3"]
RESUMED = {"truncate"}  # side effects that only a run has that goes on
Start = Callable[..., Ran]


@pytest.fixture(scope="module")
def drawn(start: Start, base: Path) -> Path:
    """The same with agents of a user's own, who draw from the generators of the process."""
    ran = start("drawn", agents="drawing")
    assert ran.status == 0, ran.output
    return base / "drawn" / "run"


@pytest.fixture(scope="module")
def every(start: Start, base: Path) -> Path:
    """The run that nothing happened to, with a checkpoint after each step."""
    assert start("every", *EVERY).status == 0
    return base / "every" / "run"


class TestKill:
    def test_a_kill_at_any_side_effect_changes_nothing(self, start: Start, whole: Path, base: Path) -> None:
        events = [json.loads(line) for line in (base / "trace").read_text().splitlines()]
        if not os.environ.get("AIPO_EVERY_KILL_POINT"):
            # The last one of each kind; in the writer's thread the first one too: there the run goes on.
            ends = {name: [name, n] for name, n in events}
            events = [[name, n] for name, n in events if name.startswith("writer") and n == 1 < ends[name][1]]
            events += ends.values()
        functions = {name.removeprefix("writer: ").split()[0] for name, _ in events}
        assert {target.partition(":")[2] for target in SIDE_EFFECTS} - functions <= RESUMED, (
            "a wrapper is dead"
        )
        for number, event in enumerate(events):
            name = f"killed-{number}"
            assert start(name, kill=event).status == -signal.SIGKILL, event
            resumed = start(name)
            assert resumed.status == 0, (event, resumed.output)
            print(f"killed at {event}")  # shown if what follows fails
            assert_same(base / name / "run", whole)
            shutil.rmtree(base / name)

    def test_a_run_that_is_killed_again_and_again_arrives(
        self, start: Start, whole: Path, base: Path
    ) -> None:
        for event in (
            ["Experience.sample_step", 4],
            ["Journal.rewind", 1],
            ["truncate metrics.jsonl", 1],
            ["Changes.hold_from", 1],
            ["writer: Path.rename .step-.partial", 1],
            ["save_policy", 1],
            ["save_policy", 1],
        ):
            assert start("again", kill=event).status == -signal.SIGKILL, event
        assert start("again").status == 0
        assert_same(base / "again" / "run", whole)

    def test_the_generators_of_the_process_go_on_where_they_were(
        self, start: Start, drawn: Path, base: Path
    ) -> None:
        for name, event in (("early", ["Updater.apply", 2]), ("late", ["Updater.apply", 4])):
            assert start(f"drawn-{name}", agents="drawing", kill=event).status == -signal.SIGKILL
            assert start(f"drawn-{name}", agents="drawing").status == 0
            assert_same(base / f"drawn-{name}" / "run", drawn)

    def test_a_step_that_is_made_again_asks_and_pays_no_agent_twice(self, start: Start, base: Path) -> None:
        with chat_server() as server:
            remote = [
                "agents.backend=remote",
                f"agents.base_url={server.url()}",
                "agents.model=twin",
                f"agents.cache_folder={base / 'paid-cache'}",
                "train.checkpoint_every_steps=4",
            ]
            fresh = [*remote[:3], f"agents.cache_folder={base / 'whole-cache'}", *remote[4:]]
            assert start("paid-whole", *fresh).status == 0
            asked_whole = len([a for a in server.asked if "harmless" not in json.dumps(a.body)])
            server.forget()
            assert start("paid", *remote, kill=["Updater.apply", 3], written=True).status == -signal.SIGKILL
            assert len(server.asked) > 2
            assert start("paid", *remote).status == 0
            again = [json.dumps(asked.body, sort_keys=True) for asked in server.asked]
        runs = [base / name / "run" for name in ("paid", "paid-whole")]
        # Equal but for rounding: which rows share a forward pass depends on when replies arrive.
        for row, other in zip(lines(runs[0]), lines(runs[1]), strict=True):
            assert row == pytest.approx(other, abs=1e-4)
        consulted = sum(len(r["consultations"]) for r in lines(runs[0], "rollouts.jsonl"))
        assert consulted > 3
        canaries = 3  # what each start asks each agent, to see whether it is there
        assert len(again) <= asked_whole + canaries
        assert any(row.get("agent_cached_share") == 1 for row in lines(runs[0], "timings.jsonl")[:2])


class TestDamage:
    @pytest.fixture
    def stopped(self, start: Start, base: Path) -> Iterator[Path]:
        """A run that was killed in its fourth step, with checkpoints of steps 1 to 3."""
        if not (base / "stopped-before").exists():
            assert start("damaged", *EVERY, kill=["Updater.apply", 4], written=True).status == -signal.SIGKILL
            shutil.copytree(base / "damaged", base / "stopped-before")
        shutil.rmtree(base / "damaged")
        shutil.copytree(base / "stopped-before", base / "damaged")
        yield base / "damaged" / "run"

    def go_on(self, start: Start, **how: Any) -> Ran:
        return start("damaged", *EVERY, **how)

    @pytest.mark.parametrize(
        "damage",
        ["bit of the weights", "half of the optimiser", "no state", "empty manifest", "no manifest"],
    )
    def test_a_damaged_checkpoint_gives_way_to_the_one_before(
        self, start: Start, stopped: Path, every: Path, damage: str
    ) -> None:
        newest = stopped / "checkpoints" / "step-000003"
        spoil(newest, damage)
        ran = self.go_on(start)
        assert ran.status == 0, ran.output
        said = " ".join(ran.output.split())
        if damage != "no manifest":  # that one was never finished: there is nothing to say
            assert "step-000003 cannot be read" in said and "going on from step 2" in said
        for name in ("metrics.jsonl", "rollouts.jsonl", "evaluation.jsonl", "policy/model.safetensors"):
            assert (stopped / name).read_bytes() == (every / name).read_bytes(), name

    def test_where_no_checkpoint_can_be_read_the_run_does_not_begin_anew(
        self, start: Start, stopped: Path
    ) -> None:
        for folder in (stopped / "checkpoints").iterdir():
            spoil(folder, "bit of the weights")
        before = (stopped / "metrics.jsonl").read_bytes()
        ran = self.go_on(start)
        assert ran.status == 2 and "no checkpoint can be read" in ran.output
        assert (stopped / "metrics.jsonl").read_bytes() == before

    def test_records_that_were_lost_are_noticed(self, start: Start, stopped: Path, every: Path) -> None:
        """After a power cut a file may be shorter than it was; the checkpoint counts its lines."""
        kept = (stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
        (stopped / "metrics.jsonl").write_text("".join(kept[:2]))
        ran = self.go_on(start)
        assert ran.status == 0 and "metrics.jsonl has 2 lines up to step 3" in " ".join(ran.output.split())
        assert lines(stopped) == lines(every)

    def test_a_torn_last_line_of_every_record_is_dropped(
        self, start: Start, stopped: Path, every: Path
    ) -> None:
        for name in (*RECORDS[:3], "timings.jsonl"):
            with (stopped / name).open("ab") as file:
                file.write(b'{"step": 3, "x": "\xc3')
        assert self.go_on(start).status == 0
        for name in RECORDS[:3]:
            assert (stopped / name).read_bytes() == (every / name).read_bytes(), name

    def test_other_code_and_libraries_are_said_and_not_refused(self, start: Start, stopped: Path) -> None:
        def change(state: dict[str, Any]) -> None:
            state["code"]["version"], state["libraries"]["torch"] = "0.0.1", "1.0"

        edit_state(stopped / "checkpoints" / "step-000003", change)
        ran = self.go_on(start)
        said = " ".join(ran.output.split())
        assert ran.status == 0
        assert "the code changed since step 3 (version: 0.0.1 -> " in said
        assert "the libraries changed since step 3 (torch: 1.0 -> " in said

    @pytest.mark.parametrize(
        "part",
        [
            "weights",
            "optimiser exp_avg",
            "optimiser exp_avg_sq",
            "optimiser step",
            "scheduler last_epoch",
            "experience batches_drawn",
            "expert_tokens raw",
            "expert_tokens distinct",
            "expert_tokens seen",
            "generators python",
            "generators numpy",
            "generators torch",
        ],
    )
    def test_every_value_of_a_checkpoint_matters(
        self, start: Start, drawn: Path, base: Path, part: str
    ) -> None:
        """Each is changed, its hash put right, and the run ends elsewhere: none is saved for nothing."""
        if not (base / "changed-before").exists():
            ran = start("changed", agents="drawing", kill=["Updater.apply", 3], written=True)
            assert ran.status == -signal.SIGKILL
            shutil.copytree(base / "changed", base / "changed-before")
        shutil.rmtree(base / "changed")
        shutil.copytree(base / "changed-before", base / "changed")
        run = base / "changed" / "run"
        change_value(run / "checkpoints" / "step-000002", part)
        ran = start("changed", agents="drawing")
        assert ran.status == 0, ran.output
        with pytest.raises(AssertionError):
            assert_same(run, drawn)

    def test_and_without_a_change_it_ends_where_it_should(
        self, start: Start, drawn: Path, base: Path
    ) -> None:
        """The control of the test above."""
        assert (
            start("control", agents="drawing", kill=["Updater.apply", 3], written=True).status
            == -signal.SIGKILL
        )
        edit_state(base / "control" / "run" / "checkpoints" / "step-000002", lambda state: None)
        assert start("control", agents="drawing").status == 0
        assert_same(base / "control" / "run", drawn)


class TestStop:
    def test_a_signal_ends_the_run_after_its_step_and_nothing_is_lost(
        self, start: Start, whole: Path, base: Path
    ) -> None:
        for number, name in ((signal.SIGTERM, "term"), (signal.SIGINT, "int")):
            rare = "train.checkpoint_every_steps=2"
            ran = start(name, rare, send=[int(number), "Updater.apply", 3])
            assert ran.status == 128 + number, ran.output
            assert f"SIG{name.upper()}: the run ends " in " ".join(ran.output.split())
            run = base / name / "run"
            assert [row["step"] for row in lines(run)] == [1, 2, 3]
            kept = sorted(path.name for path in (run / "checkpoints").iterdir())
            assert kept == ["step-000002", "step-000003"]
            assert f"signal {int(number)}" in (run / "stopped.txt").read_text()
            assert start(name, rare).status == 0
            assert_same(run, whole)

    def test_a_step_that_is_killed_after_a_signal_was_saved_before(
        self, start: Start, whole: Path, base: Path
    ) -> None:
        """Slurm sends SIGTERM, and SIGKILL some seconds later, whether the step is done or not."""
        how = {"send": [int(signal.SIGTERM), "Experience.sample_step", 4], "kill": ["Updater.apply", 4]}
        assert start("preempted", **how).status == -signal.SIGKILL
        run = base / "preempted" / "run"
        assert (run / "checkpoints" / "step-000003" / "manifest.json").exists()
        ran = start("preempted")
        assert ran.status == 0 and "going on from step 3" in ran.output
        assert_same(run, whole)

    def test_a_full_disk_stops_the_run_and_room_makes_it_go_on(
        self, start: Start, whole: Path, base: Path
    ) -> None:
        size = max(path.stat().st_size for path in whole.rglob("*.safetensors"))
        ran = start("full", file_limit_bytes=size // 2)
        assert ran.status == 3, ran.output
        said = " ".join(ran.output.split())
        assert "the checkpoint of step 2 could not be written" in said and "Make room" in said
        assert "stopped: the checkpoint of step 4 could not be written" in said
        assert not [path.name for path in (base / "full" / "run" / "checkpoints").iterdir()]
        assert start("full").status == 0
        assert_same(base / "full" / "run", whole)

    def test_a_disk_without_room_for_a_record_stops_the_run_too(
        self, start: Start, whole: Path, base: Path
    ) -> None:
        first = [row for row in (whole / "rollouts.jsonl").read_text().splitlines() if '"step": 1' in row]
        limit_bytes = sum(map(len, first)) // 2
        assert limit_bytes > (whole / "settings.toml").stat().st_size
        ran = start("no-room", file_limit_bytes=limit_bytes)
        assert ran.status == 3, ran.output
        assert "rollouts.jsonl' could not be written" in ran.output
        assert start("no-room").status == 0
        assert_same(base / "no-room" / "run", whole)

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a file system of its own")
    def test_a_file_system_that_is_really_full(self, start: Start, whole: Path, base: Path) -> None:
        folder = base / "tmpfs"
        folder.mkdir()
        size = sum(path.stat().st_size for path in (whole / "checkpoints").rglob("*") if path.is_file())
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
        )
        if mounted.returncode:
            pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
        try:
            ran = start("tmpfs")
            assert ran.status == 2 and "Two must fit" in ran.output, ran.output
            subprocess.run(["mount", "-o", f"remount,size={2 * size}", str(folder)], check=True)
            ran = start("tmpfs")
            assert ran.status == 3 and "could not be written" in ran.output, ran.output
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
            assert start("tmpfs").status == 0
            assert_same(folder / "run", whole)
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)


class TestChanges:
    def test_a_changed_setting_is_refused_with_the_difference_and_the_way_out(
        self, start: Start, whole: Path
    ) -> None:
        ran = start("whole", "train.steps=5")
        assert ran.status == 2
        assert "train.steps: 4 -> 5" in ran.output and "--allow-change train.steps" in ran.output

    def test_a_change_that_is_allowed_is_written_down_with_its_step(
        self, start: Start, whole: Path, base: Path
    ) -> None:
        shutil.copytree(whole.parent, base / "longer")
        stored = base / "longer" / "run" / "settings.toml"
        stored.write_text(stored.read_text().replace(str(whole), str(base / "longer" / "run")))
        spelled = sha256(stored.read_text().encode()).hexdigest()[:16]
        edit_state(base / "longer/run/checkpoints/step-000004", lambda state: state.update(settings=spelled))
        more = ["train.steps=6", "train.learning_rate=5e-4"]
        only_one = start("longer", *more, "--allow-change", "train.steps")
        assert only_one.status == 2 and "train.learning_rate: 0.001 -> 0.0005" in only_one.output
        both = ["--allow-change", "train.steps,train.learning_rate"]
        assert start("longer", *more, *both).status == 0
        run = base / "longer" / "run"
        entry = json.loads((run / "changes.json").read_text())[0]
        assert entry["from_step"] == 5
        assert entry["changes"] == ["train.steps: 4 -> 6", "train.learning_rate: 0.001 -> 0.0005"]
        assert [row["step"] for row in lines(run)] == [1, 2, 3, 4, 5, 6]
        assert lines(run)[:4] == lines(whole)
        assert start("longer", *more).status == 0, "they are the run's settings now"

    @pytest.mark.parametrize(
        ("override", "name", "said"),
        [
            ("run.seed=5", "run.seed", "every draw of the run so far hangs on it"),
            ("policy.model=elsewhere", "policy.model", "weights are those of this policy"),
            ("train.prompts_per_step=3", "train", "place in the data"),
            ("train.steps=5", "train.stepz", "did you mean 'train.steps'"),
        ],
    )
    def test_what_would_make_the_checkpoint_useless_is_refused(
        self, start: Start, whole: Path, override: str, name: str, said: str
    ) -> None:
        ran = start("whole", override, "--allow-change", name)
        assert ran.status == 2 and said in " ".join(ran.output.split()), ran.output
