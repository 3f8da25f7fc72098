"""A step on verl's driver: dynamic sampling, verified copies, records for `aipo report`."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.core.types import ConsultOutcome
from aipo.integrations.verl import parts
from aipo.integrations.verl.credit import Drawn
from aipo.integrations.verl.records import FOLDER, Records
from aipo.integrations.verl.step import Step
from aipo.integrations.verl.verified import NobodyChecksError, verified
from aipo.integrations.verl.watch import StepRefusedError
from aipo.report.folders import read_runs
from aipo.rollout import copies
from aipo.rollout.group import Group
from aipo.training.journal import read_lines
from support.verl_batches import LOST, UNGRADED, WON, batch_of

TABLE = {"parts": f"{__name__}:own"}
CHECKED: list[str] = []


def own(table: object, tokenizer: object, processes: int) -> Any:
    return SimpleNamespace(consult=SimpleNamespace(checker="someone"))


@pytest.fixture(autouse=True)
def _fresh_parts() -> Iterator[None]:
    parts._BUILT.clear()
    CHECKED.clear()
    yield
    parts._BUILT.clear()


def settings(*changes: str) -> Settings:
    plain = ("rollout.max_response_tokens=32", "train.prompts_per_step=4", "train.minibatches_per_step=2")
    return load_settings(None, ["policy.model=m", *plain, *changes])


def drawn(groups: list[Group]) -> Drawn:
    streams = [m.rollout.stream for group in groups for m in group.members if m.rollout]
    return Drawn(groups=groups, keys={id(stream): f"key {i}" for i, stream in enumerate(streams)})


def step_of(recipe: Settings) -> Step:
    return Step(recipe, TABLE, object(), 1)


def test_groups_that_teach_nothing_are_replaced_within_the_rounds() -> None:
    step = step_of(settings("train.dynamic_sampling_rounds=2"))
    flat = batch_of(0, verdicts=(LOST,)).groups
    step.add(drawn(flat))
    assert step.wants_more
    step.add(drawn(batch_of(1).groups[:2]))
    assert step.wants_more
    step.add(drawn(batch_of(2).groups))
    assert not step.wants_more  # the rounds are used up, or four groups teach
    rows = step.learn(asyncio.run)
    of_flat = {id(m.rollout.stream) for group in flat for m in group.members if m.rollout}
    assert all(id(credit.row.stream) not in of_flat for part in rows for credit in part)
    assert step.metrics["aipo/sampled_groups"] == 10 and step.metrics["aipo/teaching_groups"] == 4


def test_without_dynamic_sampling_one_round_is_a_step() -> None:
    step = step_of(settings())
    step.add(drawn(batch_of(0, verdicts=(LOST,)).groups))
    assert not step.wants_more
    assert sum(map(len, step.learn(asyncio.run))) == 16


def test_a_step_in_which_nothing_teaches_still_has_rows() -> None:
    step = step_of(settings("train.dynamic_sampling_rounds=1"))
    step.add(drawn(batch_of(0, verdicts=(LOST,)).groups))
    rows = [credit.row for part in step.learn(asyncio.run) for credit in part]
    assert rows and not any(row.advantage.policy or row.advantage.feedback for row in rows)


def test_a_step_without_a_verdict_is_refused() -> None:
    step = step_of(settings("train.max_ungraded_share=1.0"))
    step.add(drawn(batch_of(0, verdicts=(UNGRADED,)).groups))
    with pytest.raises(StepRefusedError, match="no rollout could be graded"):
        step.learn(asyncio.run)
    strict = step_of(settings())
    with pytest.raises(StepRefusedError, match="max_ungraded_share"):
        strict.add(drawn(batch_of(0, verdicts=(UNGRADED,)).groups))


def test_a_schedule_is_that_of_the_step() -> None:
    recipe = settings("algorithm.feedback_weight_end=0.0", "train.steps=2")
    first, last = (Step(recipe, TABLE, object(), number) for number in (1, 2))
    for step in (first, last):
        step.add(drawn(batch_of(1).groups))
        step.learn(asyncio.run)
    assert first.metrics["aipo/copies"] > 0
    assert last.metrics["aipo/copies"] == 0  # nothing is learnt of FEEDBACK any more


def test_copies_that_are_not_approved_have_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    async def half(copy: Any, problem: str, consult: Any, seed: int) -> copies.Approval:
        CHECKED.append(problem)
        return copies.Approval(len(CHECKED) % 2 == 0, 3, 0.5)

    monkeypatch.setattr("aipo.rollout.copies.approval", half)
    plain, checked = step_of(settings()), step_of(settings("algorithm.verified_copies=true"))
    for step in (plain, checked):
        step.add(drawn(batch_of(1).groups))
        step.learn(asyncio.run)
    asked = plain.metrics["aipo/copies"]
    assert asked >= 2 and len(CHECKED) == asked
    assert checked.metrics["aipo/copies"] == asked // 2
    assert checked.metrics["aipo/copies_asked_about"] == asked
    assert checked.metrics["aipo/approval_cost"] == asked * 0.5


def test_copies_that_nobody_can_check_are_an_error() -> None:
    nobody: Any = SimpleNamespace(checker=None)
    with pytest.raises(NobodyChecksError, match="enable one or make it false"):
        asyncio.run(verified([], nobody, [0]))


def test_the_records_are_those_of_a_run(tmp_path: Path) -> None:
    recipe = settings(f"run.output={tmp_path}")
    consult: Any = SimpleNamespace(codec=SimpleNamespace(text=lambda ids: " ".join(map(str, ids))))
    groups = batch_of(1, verdicts=(WON, LOST)).groups
    step = step_of(recipe)
    step.add(drawn(groups))
    step.learn(asyncio.run)
    records = Records(recipe, 0)
    metrics = step.metrics | {"actor/grad_norm": 0.5, "actor/lr": 1e-6, "critic/score/mean": 1.0}
    for number in (1, 2):
        records.add(number, metrics, {"gen": 2.0, "step": 5.0}, groups, consult)
    records._journal.close()
    Records(recipe, 1)._journal.close()  # resumed after the first step
    (run,) = read_runs([tmp_path])
    assert [line["step"] for line in run.metrics] == [1] and run.metrics[0]["grad_norm"] == 0.5
    assert "reward_solo" in run.metrics[0] and run.timings[0]["update_s"] == 3.0
    rollouts = read_lines(tmp_path / FOLDER / "rollouts.jsonl")
    assert len(rollouts) == 16
    answered = [c["outcome"] for line in rollouts for c in line["consultations"]]
    assert ConsultOutcome.ANSWERED.value in answered
