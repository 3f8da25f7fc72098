"""A wait that does not end is said, with for whom and since when, and ends the run with a valid checkpoint.

Proves, on real runs: an agent that hangs is named with its problem and the run stops by itself; an agent that
cannot be cancelled, and one that blocks the event loop, cannot keep the process; grading, the engine and what
follows a step are waited for by name; progress keeps the watchdog quiet.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from aipo.agents.base import AgentQuery, AgentReply
from aipo.agents.scripted import ScriptedAgent
from aipo.assembly.during import Schedule
from aipo.config.guards import GuardSettings
from aipo.grading import Grade
from aipo.tasks.cpu.leg_counting.task import LegCountingTask
from aipo.training import watchdog
from aipo.training.events import EXIT_STOPPED, StalledError
from aipo.training.experience import Experience
from aipo.training.waits import Waits
from aipo.training.watchdog import Watchdog
from support.checkpoints import quick_folder, said
from support.kill_points import Zygote
from support.policies import counting_policy, counting_recipe, run_cli

pytestmark = pytest.mark.timeout(600)
SMALL = [
    "train.steps=3",
    "train.checkpoint_every_steps=100",
    "train.prompts_per_step=2",
    "rollout.rollouts_per_prompt=4",
    "rollout.max_response_tokens=40",
    "agents.timeout_s=600",
    "guards.stall_report_s=0.5",
    "guards.stall_s=1.5",
]
Train = Callable[..., Result]


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.fixture
def train(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    policy = counting_policy(tmp_path_factory)

    def run(*arguments: str) -> Result:
        own = [f"policy.model={policy}", f"run.output={folder / 'run'}"]
        return run_cli("train", counting_recipe(folder), *own, *SMALL, *arguments)

    return run


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The step that is under way; the self-test is 0."""
    now = [0]
    sample_step = Experience.sample_step

    async def counted(own: Experience, number: int, *rest: Any) -> Any:
        now[0] = number
        return await sample_step(own, number, *rest)

    monkeypatch.setattr(Experience, "sample_step", counted)
    return now


def assert_stopped_before_step_2(result: Result, run: Path, waiting_for: str) -> None:
    assert result.exit_code == EXIT_STOPPED, result.output
    words = said(result)
    reported, _, stopped = words.partition("stopped: ")
    assert "nothing has moved for" in reported and waiting_for in reported
    assert "more than guards.stall_s = 1.5" in stopped and waiting_for in stopped and "since " in stopped
    assert waiting_for in " ".join((run / "stopped.txt").read_text().split())
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000001"]


def test_an_agent_that_hangs_is_named_and_the_same_command_goes_on(
    train: Train, folder: Path, step: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = ScriptedAgent.answer

    async def hangs(self: ScriptedAgent, query: AgentQuery) -> AgentReply:
        if step[0] == 2:
            await asyncio.sleep(3600)
        return await answer(self, query)

    monkeypatch.setattr(ScriptedAgent, "answer", hangs)
    begun = time.monotonic()
    result = train()
    assert time.monotonic() - begun < 120
    assert_stopped_before_step_2(result, folder / "run", "problem '")
    assert "agent " in said(result)
    monkeypatch.undo()
    assert train().exit_code == 0
    assert not (folder / "run" / "stopped.txt").exists()


def test_grading_that_hangs_is_named(
    train: Train, folder: Path, step: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = LegCountingTask.grade

    async def hangs(self: LegCountingTask, problem: Any, response: str) -> Grade:
        if step[0] == 2:
            await asyncio.sleep(3600)
        return await exact(self, problem, response)

    monkeypatch.setattr(LegCountingTask, "grade", hangs)
    assert_stopped_before_step_2(train(), folder / "run", "grading: problem ")


def test_what_follows_a_step_is_saved_before_it_hangs(
    train: Train, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is recorded, its evaluation is still due: the same command makes that first."""
    due: list[int] = []

    async def hangs(self: Schedule, parts: Any, step: int, reporter: Any) -> None:
        due.append(step)
        if step == 1 and due.count(1) == 1:
            await asyncio.sleep(3600)

    monkeypatch.setattr(Schedule, "evaluate", hangs)
    assert_stopped_before_step_2(train(), folder / "run", "what follows a step: step 1")
    assert train().exit_code == 0
    assert due == [0, 1, 1, 2, 3], "0: before training"


@pytest.mark.parametrize("agents", ["deaf", "blocking"])
def test_a_run_that_cannot_stop_by_itself_is_ended(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, zygote: Zygote, agents: str
) -> None:
    own = [f"policy.model={counting_policy(tmp_path_factory)}", f"run.output={folder / 'run'}"]
    limits = ["guards.stall_exit_s=1", "agents.timeout_s=1" if agents == "deaf" else "agents.timeout_s=600"]
    ran = zygote.run(folder / "log", "train", counting_recipe(folder), *own, *SMALL, *limits, agents=agents)
    assert ran.status == EXIT_STOPPED, ran.output
    assert "agent " in ran.output and "problem '" in ran.output and "stopped: nothing has moved" in ran.output
    assert "agent " in (folder / "run" / "stopped.txt").read_text()


class TestWatchdog:
    LIMITS = GuardSettings(stall_report_s=0.1, stall_s=0.6, stall_exit_s=0.2)

    def test_progress_keeps_it_quiet(self) -> None:
        waits, lines = Waits(), list[str]()
        with Watchdog(waits, self.LIMITS, lines.append, lines.append), waits.track("sampling", "step 1"):
            for _ in range(20):
                time.sleep(0.04)
                waits.progress()
        assert not lines and waits.stopped_by is None

    def test_a_phase_that_takes_long_gives_signs_of_life_less_and_less_often(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watchdog, "SIGN_S", 0.2)
        waits, lines, signs = Waits(), list[str](), list[str]()
        with Watchdog(waits, self.LIMITS, lines.append, lines.append, sign=signs.append):
            for step in (1, 2):
                with waits.track("sampling", f"step {step}"):
                    deadline_s = time.monotonic() + (0.7 if step == 1 else 0.05)
                    while time.monotonic() < deadline_s:
                        time.sleep(0.01)
                        waits.progress()
        assert not lines
        assert [sign.partition(",")[0] for sign in signs] == ["step 1: sampling"] * 2

    def test_it_says_who_is_waited_for_the_longest_and_how_many_more(self) -> None:
        waits, lines = Waits(), list[str]()

        async def run() -> None:
            with waits.cancelled_by_stop(), waits.track("grading", "problem a"):
                await asyncio.sleep(0.02)
                with ExitStack() as later:
                    later.enter_context(waits.track("agent verify", "problem 'x'"))
                    for name in "bcd":
                        later.enter_context(waits.track("grading", f"problem {name}"))
                    await asyncio.sleep(30)

        named = pytest.raises(StalledError, match="problem a .*problem b .*problem c .* and 1 more")
        with Watchdog(waits, self.LIMITS, lines.append, lines.append), named:
            asyncio.run(run())
        assert len(lines) >= 2, "the reports come less and less often, but they come"
        assert "grading: problem a (since " in lines[0] and "agent verify: problem 'x'" in lines[0]

    def test_it_ends_only_what_does_not_end_by_itself(self) -> None:
        for stuck_s, codes in ((0.0, []), (2.0, [EXIT_STOPPED])):
            waits, ended, words = Waits(), list[int](), list[str]()
            watching = Watchdog(waits, self.LIMITS, words.append, words.append, ended.append)
            with watching, waits.track("update", "step 1"):
                deadline_s = time.monotonic() + 5
                while waits.stopped_by is None and time.monotonic() < deadline_s:
                    time.sleep(0.01)
                time.sleep(stuck_s)
            assert ended == codes

    @pytest.mark.parametrize("words", ["raise", "never return"])
    def test_words_that_cannot_be_said_do_not_keep_a_stuck_run(
        self, words: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watchdog, "MOST_WORDS_S", 0.1)
        waits, ended, forever = Waits(), list[int](), threading.Event()

        def mute(_: str) -> None:
            if words == "raise":
                raise OSError(5, "the terminal is gone, or the disk is full")
            forever.wait(60)

        with Watchdog(waits, self.LIMITS, mute, mute, ended.append), waits.track("update", "step 1"):
            deadline_s = time.monotonic() + 5
            while not ended and time.monotonic() < deadline_s:
                time.sleep(0.01)
        forever.set()
        assert ended == [EXIT_STOPPED]
