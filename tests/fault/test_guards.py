"""Numbers that would poison a run are left out, rolled back or stop it, as the settings say, and are counted.

Each fault is injected into the second step of a real run of `aipo train`: NaN from the sampler, in
log-probabilities, the loss, the gradient, advantages and weights; ratios and mismatches that explode; entropy
that is gone; groups that teach nothing; tasks and agents that fail. Proves for each policy: exit code, the
step's record, one paragraph, and that the same command continues from a valid checkpoint.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

from aipo.cli import screen
from aipo.core.advantages import Advantage
from aipo.core.types import Verdict
from aipo.engines import transformers as engine
from aipo.grading import Grade
from aipo.tasks.cpu.leg_counting.task import LegCountingTask
from aipo.training import experience, update
from aipo.training.events import Progress
from aipo.training.update import Updater
from support.checkpoints import lines, quick_folder, said, same, weights
from support.faults import Fault
from support.policies import counting_policy, counting_recipe, run_cli

pytestmark = pytest.mark.timeout(600)
SMALL = [
    "train.steps=3",
    "train.checkpoint_every_steps=1",
    "train.keep_checkpoints=5",
    "train.prompts_per_step=2",
    "train.minibatches_per_step=2",
    "train.reward=random",
    "train.max_ungraded_share=0.5",
    "rollout.rollouts_per_prompt=4",
    "rollout.max_response_tokens=40",
]
Train = Callable[..., Result]
Faulty = Callable[[str, int | None], None]


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.fixture
def run(folder: Path) -> Path:
    return folder / "run"


@pytest.fixture
def train(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    policy = counting_policy(tmp_path_factory)

    def run(*arguments: str, output: str = "run") -> Result:
        own = [f"policy.model={policy}", f"run.output={folder / output}"]
        return run_cli("train", counting_recipe(folder), *own, *SMALL, *arguments)

    return run


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Fault:
    return Fault(monkeypatch)


def nan_log_p(result: Any) -> Any:
    log_p, entropy = result
    return log_p + torch.nan, entropy


def nan_gradient(loss: torch.Tensor) -> torch.Tensor:
    return loss + (loss * 0).sqrt()  # 0, with a derivative of 0 times infinity


def nan_advantage(credits: Any) -> Any:
    return [replace(credits[0], advantage=Advantage(float("nan"), 0.0)), *credits[1:]]


def nan_sampled(drawn: Any) -> Any:
    tokens, log_probs = drawn
    return tokens, [float("nan"), *log_probs[1:]]


def shifted(nats: float) -> Callable[[Any], Any]:
    return lambda result: (result[0] + nats, result[1])


IN_THE_UPDATE = {
    "log-probabilities": (update, "token_log_probs", nan_log_p, "non_finite", "are not finite numbers"),
    "loss": (
        update,
        "objective_loss",
        lambda loss: loss * torch.nan,
        "non_finite",
        "the loss of a mini-batch",
    ),
    "gradient": (update, "objective_loss", nan_gradient, "non_finite", "the gradient norm of a mini-batch"),
    "ratio": (update, "token_log_probs", shifted(3.0), "divergence", "the mean ratio p/p_old"),
    "mismatch": (update, "token_log_probs", shifted(-2.0), "divergence", "trainer and sampler are"),
}


class TestUpdate:
    @pytest.mark.parametrize("where", IN_THE_UPDATE)
    def test_a_minibatch_is_left_out_and_counted(
        self, train: Train, fault: Fault, run: Path, where: str
    ) -> None:
        owner, name, change, guard, _ = IN_THE_UPDATE[where]
        fault.into(owner, name, change)
        result = train(f"guards.{guard}=skip")
        assert result.exit_code == 0, result.output
        rows = lines(run)
        assert [row[f"guards/{guard}"] for row in rows] == [0, 1, 0]
        assert [row["guards/skipped_minibatches"] for row in rows] == [0, 1, 0]
        assert [row["guards/skipped_steps_in_a_row"] for row in rows] == [0, 1, 0]
        assert rows[1]["policy_tokens"] < rows[0]["policy_tokens"], "its other mini-batch was learnt from"
        assert not same(weights(run, 1), weights(run, 2))
        assert all(torch.isfinite(tensor).all() for tensor in weights(run, 3).values())

    def test_nothing_of_a_refused_minibatch_reaches_the_next(
        self, train: Train, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Refused before or behind its backward pass: the step's other mini-batch learns the same."""
        ends = []
        for where in ("log-probabilities", "ratio", "gradient"):
            with monkeypatch.context() as patch:
                injected = Fault(patch)
                injected.into(*IN_THE_UPDATE[where][:3])
                assert train("train.steps=2", "guards.divergence=skip", output=where).exit_code == 0
            ends.append(weights(run.parent / where, 2))
        assert same(ends[0], ends[1]) and same(ends[0], ends[2])

    @pytest.mark.parametrize("where", IN_THE_UPDATE)
    def test_a_stop_says_why_and_the_same_command_goes_on(
        self, train: Train, fault: Fault, run: Path, where: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        owner, name, change, guard, reason = IN_THE_UPDATE[where]
        fault.into(owner, name, change)
        result = train(f"guards.{guard}=stop")
        assert result.exit_code == 3
        assert "stopped: step 2: " in said(result) and reason in said(result)
        assert f"name guards.{guard} with --allow-change" in said(result)
        assert reason in " ".join((run / "stopped.txt").read_text().split())
        monkeypatch.undo()
        assert train(f"guards.{guard}=stop").exit_code == 0
        assert not (run / "stopped.txt").exists()
        assert train(f"guards.{guard}=stop", output="whole").exit_code == 0
        assert lines(run) == lines(run.parent / "whole")

    def test_a_stop_without_a_periodic_checkpoint_loses_the_step_in_progress_only(
        self, train: Train, fault: Fault, run: Path
    ) -> None:
        fault.into(update, "token_log_probs", nan_log_p, steps=(3,))
        assert train("guards.non_finite=stop", "train.checkpoint_every_steps=100").exit_code == 3
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002"]
        assert [row["step"] for row in lines(run)] == [1, 2]

    def test_a_stop_after_an_optimiser_step_ends_with_the_whole_step(
        self, train: Train, fault: Fault, run: Path
    ) -> None:
        """The weights have changed: there is no way back, so the step is recorded as what it was."""
        fault.into(update, "objective_loss", lambda loss: loss * torch.nan, call=2)
        result = train("guards.non_finite=stop", "train.checkpoint_every_steps=100")
        assert result.exit_code == 3 and "step 2: the loss" in said(result)
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002"]
        assert lines(run)[1]["guards/skipped_minibatches"] == 1

    @pytest.mark.parametrize("call", [1, 2])
    def test_a_roll_back_takes_the_last_weights_and_other_problems(
        self, train: Train, fault: Fault, run: Path, call: int
    ) -> None:
        fault.into(update, "objective_loss", lambda loss: loss * torch.nan, call=call)
        assert train("guards.non_finite=roll_back").exit_code == 0
        rows = lines(run)
        assert [row["guards/roll_backs"] for row in rows] == [0, 1, 1]
        assert same(weights(run, 1), weights(run, 2)) and not same(weights(run, 2), weights(run, 3))
        seen = [{r["problem"] for r in lines(run, "rollouts.jsonl") if r["step"] == step} for step in (2, 3)]
        assert not seen[0] & seen[1]

    def test_a_roll_back_before_the_first_step_is_done_goes_to_the_weights_of_the_start(
        self, train: Train, fault: Fault, run: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        fault.into(update, "objective_loss", lambda loss: loss * torch.nan, steps=(1,), call=2)
        assert train("guards.non_finite=roll_back").exit_code == 0
        begun = load_file(counting_policy(tmp_path_factory) / "model.safetensors")
        assert same(begun, weights(run, 1))

    def test_roll_backs_end(self, train: Train, fault: Fault, run: Path) -> None:
        fault.into(update, "objective_loss", lambda loss: loss * torch.nan, steps=(2, 3, 4, 5), call=0)
        own = ["train.steps=6", "guards.non_finite=roll_back", "guards.max_roll_backs=2"]
        result = train(*own)
        assert result.exit_code == 3 and "guards.max_roll_backs = 2 are used up" in said(result)
        assert [row["guards/roll_backs"] for row in lines(run)] == [0, 1, 2]
        again = train(*own)
        assert again.exit_code == 3, "the count is part of the checkpoint: no command begins it anew"
        assert len(lines(run)) == 3

    def test_skips_end(self, train: Train, fault: Fault, run: Path) -> None:
        fault.into(update, "objective_loss", lambda loss: loss * torch.nan, steps=(2, 3, 4, 5))
        result = train("train.steps=6", "guards.max_skipped_steps=2")
        assert result.exit_code == 3
        assert "something was skipped in 3 steps in a row, more than guards.max_skipped_steps = 2" in said(
            result
        )
        assert [row["guards/skipped_steps_in_a_row"] for row in lines(run)] == [0, 1, 2, 3]

    @pytest.mark.parametrize("policy", ["skip", "roll_back"])
    def test_a_resume_behind_a_guard_changes_nothing(
        self, train: Train, fault: Fault, run: Path, policy: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fault.into(update, "objective_loss", lambda loss: loss * torch.nan, call=2)
        own = ["train.steps=4", f"guards.non_finite={policy}", "train.checkpoint_every_steps=3"]
        assert train(*own, output="whole").exit_code == 0

        def interrupt(_: object, progress: Progress) -> None:
            if progress.step == 3:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(screen.StepLines, "__call__", interrupt)
            assert train(*own).exit_code == 130
        assert train(*own).exit_code == 0
        for name in ("metrics.jsonl", "rollouts.jsonl", "policy/model.safetensors"):
            assert (run / name).read_bytes() == (run.parent / "whole" / name).read_bytes(), name


class TestRollouts:
    @pytest.mark.parametrize("where", ["sampler", "advantage"])
    def test_what_is_not_finite_before_the_update_leaves_the_batch(
        self, train: Train, fault: Fault, run: Path, where: str
    ) -> None:
        if where == "sampler":
            fault.into(engine, "draw", nan_sampled, call=3)
        else:
            fault.into(experience, "credits_of", nan_advantage)
        assert train().exit_code == 0
        rows = lines(run)
        assert [row["guards/non_finite"] for row in rows] == [0, 1, 0]
        assert rows[1]["ungraded_share"] == (1 / 8 if where == "sampler" else 0)
        if where == "sampler":
            lost = [r for r in lines(run, "rollouts.jsonl") if r["verdict"] == "ungraded"]
            assert [r["reason"] for r in lost] == [
                "engine: the policy gave log-probabilities that are not finite numbers"
            ]

    @pytest.mark.parametrize("where", ["sampler", "advantage"])
    def test_or_stops_the_run(self, train: Train, fault: Fault, run: Path, where: str) -> None:
        if where == "sampler":
            fault.into(engine, "draw", nan_sampled, call=3)
        else:
            fault.into(experience, "credits_of", nan_advantage)
        result = train("guards.non_finite=stop")
        assert result.exit_code == 3 and "step 2: 1 rollouts had sampled log-prob" in said(result)
        assert len(lines(run)) == 1

    def test_weights_that_become_nan_stop_the_run_and_are_never_saved(
        self, train: Train, fault: Fault, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        apply = Updater.apply

        def poisoned(self: Updater, *arguments: Any) -> dict[str, float]:
            metrics = apply(self, *arguments)
            if fault.step == 2:
                next(self._model.parameters()).data.fill_(torch.nan)
            return metrics

        monkeypatch.setattr(Updater, "apply", poisoned)
        for every, wanted in ((1, "after step 2 the weights"), (100, "could not be graded")):
            output = f"every-{every}"
            result = train(f"train.checkpoint_every_steps={every}", output=output)
            assert result.exit_code == 3 and wanted in said(result), result.output
            for path in (run.parent / output).rglob("*.safetensors"):
                assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())

    def test_a_policy_with_nan_weights_is_refused_at_the_start(
        self, train: Train, folder: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        shutil.copytree(counting_policy(tmp_path_factory), folder / "policy")
        file = folder / "policy" / "model.safetensors"
        spoilt = load_file(file)
        next(iter(spoilt.values())).fill_(torch.nan)
        save_file(spoilt, file, {"format": "pt"})
        result = train(f"policy.model={folder / 'policy'}")
        assert result.exit_code == 2 and "log-probabilities that are not finite numbers" in said(result)

    @pytest.mark.parametrize(
        ("policy", "code", "steps"), [("skip", 0, [1, 2, 3]), ("stop", 3, [1]), ("roll_back", 0, [1, 2, 3])]
    )
    def test_a_task_that_raises_is_ungraded_and_no_verdict(
        self,
        train: Train,
        fault: Fault,
        run: Path,
        monkeypatch: pytest.MonkeyPatch,
        policy: str,
        code: int,
        steps: list[int],
    ) -> None:
        exact = LegCountingTask.grade

        async def raising(self: LegCountingTask, problem: Any, response: str) -> Grade:
            if fault.step == 2:
                raise RuntimeError("the sandbox is gone")
            return await exact(self, problem, response)

        monkeypatch.setattr(LegCountingTask, "grade", raising)
        result = train(f"guards.ungraded={policy}")
        assert result.exit_code == code, result.output
        assert [row["step"] for row in lines(run)] == steps
        if code:
            assert "step 2: 100% of the rollouts could not be graded" in said(result)
            assert "task: RuntimeError('the sandbox is gone')" in said(result)
        else:
            assert [row["guards/ungraded"] for row in lines(run)] == [0, 1, 0]
            assert "loss" not in lines(run)[1] and same(weights(run, 1), weights(run, 2))

    @pytest.mark.parametrize(
        ("policy", "steps"),
        [("stop", 0), ("skip", 2)],  # one skipped step is allowed, the second stops
    )
    def test_agents_that_fail_too_often(self, train: Train, run: Path, policy: str, steps: int) -> None:
        own = ["agents.failure_rate=1.0", "train.min_consultations_to_stop=1", "guards.max_skipped_steps=1"]
        result = train(*own, f"guards.failed_consultations={policy}")
        assert result.exit_code == 3
        assert len(lines(run) if (run / "metrics.jsonl").exists() else []) == steps
        wanted = (
            "consultations failed, more than" if policy == "stop" else "this time by: failed_consultations"
        )
        assert wanted in said(result)


class TestWholeRun:
    def test_entropy_that_is_gone_stops_the_run_with_everything_saved(self, train: Train, run: Path) -> None:
        own = ["guards.min_entropy_nats=10", "guards.entropy_steps=2", "train.checkpoint_every_steps=100"]
        result = train(*own)
        assert result.exit_code == 3
        assert "has been below guards.min_entropy_nats = 10 for 2 steps" in said(result)
        assert [row["guards/entropy"] for row in lines(run)] == [0, 1]
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002"]
        off = ["guards.min_entropy_nats=0", *own[1:], "--allow-change", "guards.min_entropy_nats"]
        assert train(*off).exit_code == 0
        assert [row["step"] for row in lines(run)] == [1, 2, 3]

    def test_and_can_roll_back(self, train: Train, run: Path) -> None:
        assert (
            train(
                "guards.min_entropy_nats=10", "guards.entropy_steps=2", "guards.entropy=roll_back"
            ).exit_code
            == 0
        )
        assert [row["guards/roll_backs"] for row in lines(run)] == [0, 1, 1]
        assert same(weights(run, 1), weights(run, 2))

    @pytest.mark.parametrize(("policy", "code", "steps"), [("stop", 3, 2), ("skip", 0, 3)])
    def test_groups_that_teach_nothing(
        self, train: Train, run: Path, monkeypatch: pytest.MonkeyPatch, policy: str, code: int, steps: int
    ) -> None:
        async def always(self: LegCountingTask, problem: Any, response: str) -> Grade:
            return Grade(Verdict.INCORRECT, "")

        monkeypatch.setattr(LegCountingTask, "grade", always)
        result = train(
            "train.reward=verdict", "guards.zero_variance_steps=2", f"guards.zero_variance={policy}"
        )
        assert result.exit_code == code, result.output
        assert len(lines(run)) == steps
        assert lines(run)[1]["guards/zero_variance"] == 1
        if code:
            assert "no group of the last 2 steps taught anything" in said(result)

    def test_a_healthy_run_trips_nothing(self, train: Train, run: Path) -> None:
        assert train().exit_code == 0
        counted = [v for row in lines(run) for name, v in row.items() if name.startswith("guards/")]
        assert len(counted) == 3 * 9 and not any(counted)
