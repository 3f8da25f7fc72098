"""A policy server that breaks: its rollouts are UNGRADED in bounded time, siblings untouched, no reward.

Faults come over real HTTP from the twin. Above train.max_ungraded_share the run stops with a summary and exit
code 3; the same command continues from the last checkpoint as if nothing had happened.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aipo.assembly.parts import Parts, assemble
from aipo.cli import screen
from aipo.config.loader import load_settings
from aipo.config.toml import toml_text
from aipo.core.types import Verdict
from aipo.rollout.group import Group, GroupShape
from aipo.tasks.base import Split
from aipo.training import loop
from aipo.training.events import Progress
from support.policies import counting_policy, counting_recipe, gsm8k_rows, random_policy, run_cli, succeed
from support.vllm_twin import Fault, Twin

DEADLINE_S = 2.0
SHAPE = GroupShape(consulting=0, solo=3)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_policy(tmp_path_factory, "qwen2.5")


@pytest.fixture
def twin(policy: Path) -> Iterator[Twin]:
    with Twin(policy) as twin:
        yield twin


@pytest.fixture
def recipe(tmp_path: Path, policy: Path, twin: Twin) -> Path:
    """Plain RLVR on the twin."""
    files = {"train": tmp_path / "train.jsonl", "test": tmp_path / "test.jsonl"}
    for split, number in (("train", 12), ("test", 2)):
        files[split].write_text("".join(json.dumps(row) + "\n" for row in gsm8k_rows(number, split)))
    table: dict[str, Any] = {
        "run": {"output": str(tmp_path / "run")},
        "policy": {"model": str(policy)},
        "engine": {"name": "vllm", "urls": [twin.url], "request_timeout_s": DEADLINE_S},
        "task": {
            "name": "jsonl",
            "train_file": str(files["train"]),
            "test_file": str(files["test"]),
            "problem_field": "question",
            "answer_after": "####",
        },
        "agents": {"enabled": []},
        "rollout": {"rollouts_per_prompt": 3, "max_prompt_tokens": 1024, "max_response_tokens": 12},
        "train": {"steps": 2, "prompts_per_step": 2, "minibatches_per_step": 1, "checkpoint_every_steps": 1},
        "evaluate": {"problems": 2, "samples_per_problem": 2, "pass_at": [1]},
    }
    path = tmp_path / "vllm.toml"
    path.write_text(toml_text(table))
    return path


def groups_of(parts: Parts) -> tuple[list[Group], float]:
    problems = parts.task.problems(Split.TRAIN)[:2]
    begun = time.monotonic()
    groups = asyncio.run(parts.sampler.groups(problems, SHAPE, ("fault",)))
    return groups, time.monotonic() - begun


def run_lines(tmp_path: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("spread", ["one rollout", "a whole group", "all groups"])
def test_a_fault_is_ungraded_in_bounded_time_and_stays_where_it_is(
    recipe: Path, twin: Twin, fault: Fault, spread: str
) -> None:
    with closing(assemble(load_settings(recipe))) as parts:
        clean, _ = groups_of(parts)
        prompts = [list(m.rollout.stream.segments[0].ids) for g in clean for m in g.members if m.rollout]
        assert len(prompts) == 6
        first_seed = twin.completions()[0]["seed"]
        hit: dict[str, Callable[[dict[str, Any]], bool]] = {
            "one rollout": lambda body: body["seed"] == first_seed,
            "a whole group": lambda body: body["prompt"] == prompts[0],
            "all groups": lambda body: True,
        }
        twin.fault = lambda body: fault if hit[spread](body) else None
        spoilt, seconds = groups_of(parts)
    assert seconds < DEADLINE_S + 8
    for group, clean_group in zip(spoilt, clean, strict=True):
        for member, twin_member in zip(group.members, clean_group.members, strict=True):
            if member.rollout is None:
                assert member.grade.verdict is Verdict.UNGRADED
                assert member.grade.reason.startswith("engine: ") and twin.url in member.grade.reason
            else:
                assert member.grade == twin_member.grade and twin_member.rollout is not None
                stream, clean_stream = member.rollout.stream, twin_member.rollout.stream
                assert (stream.ids, stream.sources) == (clean_stream.ids, clean_stream.sources)
                assert stream.log_probs == pytest.approx(clean_stream.log_probs, abs=1e-5)
    lost = sum(m.rollout is None for g in spoilt for m in g.members)
    # A server that began anew has other weights for everyone from then on.
    fewest = {"one rollout": 1, "a whole group": 3, "all groups": 6}[spread]
    assert lost >= fewest if fault is Fault.RESTARTED else lost == fewest


def test_above_the_allowed_share_the_run_stops_and_the_same_command_goes_on(
    recipe: Path, twin: Twin, tmp_path: Path
) -> None:
    def dead_in_the_second_step(body: dict[str, Any]) -> Fault | None:
        return Fault.ERROR if _a_step_is_done(tmp_path) else None

    twin.fault = dead_in_the_second_step
    result = run_cli("train", recipe)
    assert result.exit_code == 3, result.output
    said = " ".join(result.output.split())
    assert "step 2: 100% of the rollouts could not be graded" in said
    assert "answered 500: EngineCore encountered an issue." in said
    assert [row["step"] for row in run_lines(tmp_path)] == [1]
    twin.fault = lambda body: None
    succeed("train", recipe)
    succeed("train", recipe, f"run.output={tmp_path / 'whole' / 'run'}")
    # Equal but for rounding: which requests share a forward pass depends on when they arrive.
    for resumed, whole in zip(run_lines(tmp_path), run_lines(tmp_path / "whole"), strict=True):
        assert resumed == pytest.approx(whole, abs=1e-5)
    resumed, whole = (run_lines(f, "rollouts.jsonl") for f in (tmp_path, tmp_path / "whole"))
    for a, b in zip(resumed, whole, strict=True):
        assert [s["ids"] for s in a["segments"]] == [s["ids"] for s in b["segments"]]
        assert (a["rollout"], a["verdict"], a["weights_version"]) == (
            b["rollout"],
            b["verdict"],
            b["weights_version"],
        )


def test_a_restart_in_the_middle_of_a_step_is_seen_although_every_answer_looks_right(
    recipe: Path, twin: Twin, tmp_path: Path
) -> None:
    def restarts_once(body: dict[str, Any]) -> Fault | None:
        return Fault.RESTARTED if _a_step_is_done(tmp_path) and twin.version != "default" else None

    twin.fault = restarts_once
    result = run_cli("train", recipe)
    assert result.exit_code == 3, result.output
    assert "it was started anew, or another run gave it weights" in " ".join(result.output.split())
    twin.fault = lambda body: None
    succeed("train", recipe)
    assert [row["step"] for row in run_lines(tmp_path)] == [1, 2]


def test_a_server_that_takes_no_weights_after_an_update_stops_the_run(
    recipe: Path, twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.Trainer._one_step

    async def then_refuse(trainer: Any, step: int) -> dict[str, float]:
        metrics = await original(trainer, step)
        twin.refuse_weights = True
        return metrics

    monkeypatch.setattr(loop.Trainer, "_one_step", then_refuse)
    result = run_cli("train", recipe)
    assert result.exit_code == 3, result.output
    assert "after step 1 the policy's engine did not load the new weights" in " ".join(result.output.split())


def test_a_broken_server_leaves_no_record_of_an_evaluation(recipe: Path, twin: Twin, tmp_path: Path) -> None:
    twin.fault = lambda body: None if len(twin.completions()) <= 5 else Fault.ERROR
    result = run_cli("evaluate", recipe)
    assert result.exit_code == 3, result.output
    assert "could not be graded" in result.output
    modes = [row["mode"] for row in run_lines(tmp_path, "evaluation.jsonl")]
    assert modes == ["unanswered"]  # its 4 samples were drawn before the server broke
    twin.fault = lambda body: None
    succeed("evaluate", recipe)
    assert len(run_lines(tmp_path, "evaluation.jsonl")) == 2


def test_consultations_and_weights_by_version_through_a_server(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    policy = counting_policy(tmp_path_factory)
    with Twin(policy) as twin:
        engine = {"name": "vllm", "urls": [twin.url]}
        recipe = counting_recipe(
            tmp_path, policy={"model": str(policy)}, engine=engine, run={"output": str(tmp_path / "run")}
        )
        said = succeed("train", recipe).output
        asked = [len(body["prompt"]) for body in twin.completions()]
    metrics, rollouts = run_lines(tmp_path), run_lines(tmp_path, "rollouts.jsonl")
    assert all(row["mismatch_max"] < 1e-4 and row["mismatch_outside_share"] == 0 for row in metrics)
    assert "algorithm.mismatch_truncation = 2" in said
    assert load_settings(tmp_path / "run" / "settings.toml").algorithm.mismatch_truncation == 2
    assert sum(bool(r["consultations"]) for r in rollouts) > 3
    assert len(asked) > len(rollouts)  # a consultation is one more request, with a longer prefix
    assert {(r["step"], r["weights_version"]) for r in rollouts} == {(1, 0), (2, 1), (3, 2)}


def test_a_resumed_run_hands_over_its_weights_before_the_first_rollout(
    recipe: Path, twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object, progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(screen.StepLines, "__call__", interrupt)
        assert run_cli("train", recipe, "train.steps=3").exit_code == 130
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000001"]
    twin.requests.clear()
    succeed("train", recipe, "train.steps=3")
    assert [row["step"] for row in run_lines(tmp_path)] == [1, 2, 3]
    stamps = [
        body["new_version"].rpartition("-")[2]
        for path, body in twin.requests
        if "new_version" in (body or {})
    ]
    assert stamps == ["loading", "0", "loading", "1", "loading", "2", "loading", "3"]
    assert [r["weights_version"] for r in run_lines(tmp_path, "rollouts.jsonl")] == [0] * 6 + [1] * 6 + [
        2
    ] * 6


def _a_step_is_done(folder: Path) -> bool:
    """Whether the first step is recorded: its checkpoint is written beside the second one."""
    metrics = folder / "run" / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0
