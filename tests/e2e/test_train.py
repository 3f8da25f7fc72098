"""`aipo train` from the command line: what it writes, that it repeats itself, and what cannot stop it.

Proves: the folder of a run and its export; ratio 1 at the first update; the same seed gives the same bytes;
a killed run that goes on ends with the bytes of one that was never killed; AIPO without agents is GRPO to
the last bit; agents that fail or hang are outcomes; supervised fine-tuning on experts; ungraded rollouts
stop a run.
"""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.tasks.cpu.leg_counting.task import LegCountingTask
from support.policies import counting_policy, counting_recipe, run_cli, start_cli, succeed

pytestmark = pytest.mark.timeout(600)  # the first test makes the policy; others may use the cores
REPEATABLE = ("metrics.jsonl", "rollouts.jsonl", "policy/model.safetensors")
Train = Callable[..., Path]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_policy(tmp_path_factory)


@pytest.fixture
def train(policy: Path, tmp_path: Path) -> Train:
    """Train the tiny policy in a folder of the test's own and return that folder."""

    def run(name: str, *overrides: str) -> Path:
        own = [f"policy.model={policy}", f"run.output={tmp_path / name}"]
        succeed("train", counting_recipe(tmp_path), *own, *overrides)
        return tmp_path / name

    return run


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_bytes(a: Path, b: Path) -> None:
    for name in REPEATABLE:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def assert_learnt(run: Path, policy: Path) -> None:
    before, after = weights(policy), weights(run / "policy")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_run_leaves_its_settings_records_checkpoints_and_a_policy(train: Train, policy: Path) -> None:
    run = train("run", "train.checkpoint_every_steps=1")
    lines = {name: (run / name).read_text().splitlines() for name in ("metrics.jsonl", "timings.jsonl")}
    assert [len(found) for found in lines.values()] == [3, 3]
    rollouts = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert len(rollouts) == 3 * 4 * 8
    assert {r["condition"] for r in rollouts} == {"solo", "consulting"}
    assert any(s["source"] == "feedback" for r in rollouts for s in r["segments"])
    assert "steps = 3" in (run / "settings.toml").read_text()
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-000002", "step-000003"]
    assert_learnt(run, policy)


def test_the_exported_policy_is_the_trained_one_in_plain_transformers(train: Train) -> None:
    run = train("run")
    exported = AutoModelForCausalLM.from_pretrained(run / "policy")
    tokenizer = AutoTokenizer.from_pretrained(run / "policy")
    last = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / "step-000003" / "policy")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2 dog 1 cow"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        assert torch.equal(exported(ids).logits, last(ids).logits)
    assert tokenizer.convert_tokens_to_ids("<verify>") != tokenizer.unk_token_id
    assert tokenizer.chat_template


def test_at_the_first_update_the_ratio_is_1(train: Train) -> None:
    rows = metrics(train("run"))
    assert all(row["policy_tokens"] > 0 for row in rows)
    assert max(row["first_ratio_error"] for row in rows) < 1e-5
    assert max(abs(row["ratio_mean"] - 1) for row in rows) > 1e-5, "later mini-batches must be off-policy"


def test_the_learning_rate_that_is_recorded_is_the_one_that_was_used(train: Train) -> None:
    rates = [row["learning_rate"] for row in metrics(train("run", "train.warmup_steps=2"))]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(train: Train) -> None:
    first, second, other = train("first"), train("second"), train("other", "run.seed=1")
    assert_same_bytes(first, second)
    for name in REPEATABLE:
        assert (first / name).read_bytes() != (other / name).read_bytes()


def test_how_many_rollouts_decode_at_once_changes_neither_ids_nor_verdicts(train: Train) -> None:
    wide, narrow = train("wide", "train.steps=1"), train("narrow", "train.steps=1", "rollout.slots=5")
    kept = ("rollout", "verdict", "response", "consultations")
    read = [
        [{k: json.loads(line)[k] for k in kept} for line in (run / "rollouts.jsonl").read_text().splitlines()]
        for run in (wide, narrow)
    ]
    assert read[0] == read[1]


def test_a_killed_run_that_goes_on_ends_like_one_that_was_never_killed(
    train: Train, policy: Path, tmp_path: Path
) -> None:
    long = ["train.steps=12", "train.checkpoint_every_steps=2", "evaluate.at_steps=[4, 12]"]
    killed = tmp_path / "killed"
    own = [f"policy.model={policy}", f"run.output={killed}"]
    process = start_cli("train", counting_recipe(tmp_path), *own, *long)
    try:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and process.poll() is None and steps_done(killed) < 5:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.1))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 5 <= steps_done(killed) < 12
    assert not (killed / "policy").exists()
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "rew')  # as a crash in the middle of a write would leave it
    result = succeed("train", counting_recipe(tmp_path), *own, *long)
    assert "going on from step" in result.output
    whole = train("whole", *long)
    assert_same_bytes(killed, whole)
    evaluations = [(run / "evaluation.jsonl").read_text().replace(run.name, "") for run in (killed, whole)]
    assert evaluations[0] == evaluations[1]


def steps_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_finished_run_is_not_run_again(train: Train) -> None:
    run = train("run")
    before = {name: (run / name).stat().st_mtime_ns for name in ("checkpoints", "checkpoints/step-000003")}
    records = [(run / name).read_bytes() for name in REPEATABLE]
    train("run")
    assert {name: (run / name).stat().st_mtime_ns for name in before} == before
    assert [(run / name).read_bytes() for name in REPEATABLE] == records


def test_aipo_without_agents_is_grpo_to_the_last_bit(train: Train, policy: Path) -> None:
    alone = "agents.enabled=[]"
    aipo = train("aipo", alone, "algorithm.coefficient=floored", "algorithm.stripped_copies=true")
    grpo = train("grpo", alone, "algorithm.coefficient=masked", "algorithm.stripped_copies=false")
    assert_same_bytes(aipo, grpo)
    assert_learnt(grpo, policy)


def first_step(run: Path) -> list[str]:
    return (run / "rollouts.jsonl").read_text().splitlines()[: 4 * 8]


def _sampled(line: str) -> dict[str, Any]:
    """Return a record without what the update found of its feedback."""
    record: dict[str, Any] = json.loads(line)
    for segment in record["segments"]:
        segment.pop("policy_log_probs", None)
    return record


def test_with_agents_what_is_learnt_from_feedback_changes_the_weights(train: Train) -> None:
    aipo = train("aipo", "algorithm.feedback_advantage=positive")
    masked = train("masked", "algorithm.coefficient=masked", "algorithm.stripped_copies=false")
    assert metrics(aipo)[0]["credited_tokens"] > 0
    rollouts = [[_sampled(line) for line in first_step(run)] for run in (aipo, masked)]
    assert rollouts[0] == rollouts[1], "the first step samples from the same policy"
    a, b = weights(aipo / "policy"), weights(masked / "policy")
    assert any(not torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("overrides", "outcome"),
    [
        (["agents.failure_rate=1.0"], "agent_error"),
        (["agents.latency_s=5.0", "agents.timeout_s=0.02"], "timeout"),
    ],
)
def test_agents_that_never_answer_are_outcomes_and_do_not_stop_a_run(
    train: Train, overrides: list[str], outcome: str
) -> None:
    rows = metrics(train("run", "train.steps=2", "train.max_failed_consultations_share=1", *overrides))
    assert all(row[f"outcomes/{outcome}"] > 0 for row in rows)
    assert all(row["outcomes/answered"] == 0 and row["feedback_tokens"] == 0 for row in rows)
    assert all(row["ungraded_share"] == 0 for row in rows)
    assert rows[-1]["expert_tokens_raw"] == 0


def test_groups_of_one_expert_are_supervised_fine_tuning(train: Train, policy: Path) -> None:
    sft = ["rollout.rollouts_per_prompt=0", "rollout.experts_per_prompt=1", "agents.enabled=[]"]
    size = ["train.steps=6", "train.prompts_per_step=32", "train.stratum_mix={hard=1.0}"]
    run = train("run", *sft, *size, "algorithm.coefficient=likelihood")
    rows = metrics(run)
    assert rows[0]["policy_tokens"] == 0
    assert rows[0]["feedback_tokens"] == rows[0]["expert_tokens_raw"] > 0
    raw = [row["expert_tokens_raw"] for row in rows]
    assert raw == sorted(set(raw))
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert_learnt(run, policy)


def test_ungraded_rollouts_above_the_limit_stop_a_run_that_can_go_on_later(
    train: Train, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graded = 0
    exact = LegCountingTask.grade

    async def fails_after_the_second_step(self: LegCountingTask, problem: Any, response: str) -> Grade:
        nonlocal graded
        graded += 1
        if graded > 6 + 2 * 4 * 8:  # self-test and two steps
            return Grade(Verdict.UNGRADED, "timeout")
        return await exact(self, problem, response)

    monkeypatch.setattr(LegCountingTask, "grade", fails_after_the_second_step)
    own = [f"policy.model={policy}", f"run.output={tmp_path / 'run'}", "train.checkpoint_every_steps=1"]
    result = run_cli("train", counting_recipe(tmp_path), *own)
    assert result.exit_code == 3
    assert "step 3: 100% of the rollouts could not be graded" in result.output
    assert "train.max_ungraded_share = 0.05" in result.output and "timeout" in result.output
    assert steps_done(tmp_path / "run") == 2
    monkeypatch.undo()
    stopped, whole = train("run", "train.checkpoint_every_steps=1"), train("whole")
    assert_same_bytes(stopped, whole)


def test_few_ungraded_rollouts_leave_the_batch_and_are_counted(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    graded = 0
    exact = LegCountingTask.grade

    async def fails_once(self: LegCountingTask, problem: Any, response: str) -> Grade:
        nonlocal graded
        graded += 1
        lost = graded == 6 + 3
        return Grade(Verdict.UNGRADED, "crash") if lost else await exact(self, problem, response)

    monkeypatch.setattr(LegCountingTask, "grade", fails_once)
    rows = metrics(train("run", "train.steps=1"))
    assert rows[0]["ungraded_share"] == 1 / 32


def test_a_policy_is_evaluated_with_agents_and_alone(policy: Path, tmp_path: Path) -> None:
    sizes = ["evaluate.problems=2", "evaluate.samples_per_problem=2", "evaluate.pass_at=[1, 2]"]
    modes = ["agents", "unanswered", "banned"]
    own = [f"run.output={tmp_path / 'evaluation'}", f"evaluate.modes={json.dumps(modes)}", *sizes]
    succeed("evaluate", counting_recipe(tmp_path), *own, "--checkpoint", policy)
    lines = (tmp_path / "evaluation" / "evaluation.jsonl").read_text().splitlines()
    assert [json.loads(line)["mode"] for line in lines] == modes


def test_another_policy_or_other_questions_in_the_same_folder_are_evaluated_anew(
    policy: Path, tmp_path: Path
) -> None:
    """What stands there already is not passed off as theirs; the very same evaluation is not made twice."""
    other = Path(shutil.copytree(policy, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    save_file({name: -t for name, t in weights.items()}, other / "model.safetensors", {"format": "pt"})
    sizes = ["evaluate.problems=2", "evaluate.samples_per_problem=2", "evaluate.pass_at=[1]"]
    own = [f"run.output={tmp_path / 'evaluation'}", 'evaluate.modes=["unanswered"]', *sizes]
    first = ["--checkpoint", policy]
    again = [
        (first, 0),
        (["--checkpoint", other], 1),
        ([*first, "--method", "by another name"], 1),
        ([*first, "evaluate.problems=1"], 1),
        ([*first, "evaluate.samples_per_problem=3"], 1),
        ([*first, "evaluate.temperature=0.5"], 1),
    ]
    records = tmp_path / "evaluation" / "evaluation.jsonl"
    succeed("evaluate", counting_recipe(tmp_path), *own, *first)
    for arguments, added in again:
        before = len(records.read_text().splitlines())
        succeed("evaluate", counting_recipe(tmp_path), *own, *arguments)
        assert len(records.read_text().splitlines()) == before + added, arguments


def test_an_evaluation_that_was_cut_off_goes_on_sample_by_sample(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, graded, ends_after = LegCountingTask.grade, 0, 40

    async def grade(self: LegCountingTask, problem: Any, response: str) -> Grade:
        nonlocal graded
        graded += 1
        if graded > ends_after:
            raise KeyboardInterrupt
        return await exact(self, problem, response)

    monkeypatch.setattr(LegCountingTask, "grade", grade)
    sizes = ["evaluate.problems=10", "evaluate.samples_per_problem=2", "evaluate.pass_at=[1]"]

    def command(name: str) -> list[str | Path]:
        own = [f"run.output={tmp_path / name}", 'evaluate.modes=["unanswered"]', *sizes]
        return ["evaluate", counting_recipe(tmp_path), *own, "--checkpoint", policy]

    ends_after = 33  # of 40; the first batch holds 32
    assert run_cli(*command("cut")).exit_code == 130
    assert len((tmp_path / "cut" / "samples.jsonl").read_text().splitlines()) == 32
    graded, ends_after = 0, 40
    succeed(*command("cut"))
    assert graded == 8, "what was there is not made again"
    graded = 0
    succeed(*command("whole"))
    for name in ("samples.jsonl", "evaluation.jsonl"):
        texts = [(tmp_path / each / name).read_text().replace(f'"{each}"', "") for each in ("cut", "whole")]
        assert texts[0] == texts[1], name


def test_an_evaluation_that_cannot_be_written_is_a_plain_stop(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, record: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aipo.assembly.evaluation.append_record", full)
    sizes = ["evaluate.problems=1", "evaluate.samples_per_problem=1", "evaluate.pass_at=[1]"]
    own = [f"run.output={tmp_path / 'evaluation'}", 'evaluate.modes=["unanswered"]', *sizes]
    result = run_cli("evaluate", counting_recipe(tmp_path), *own, "--checkpoint", policy)
    assert result.exit_code == 3, result.output
    assert "No space left on device" in result.output and "make room" in result.output
