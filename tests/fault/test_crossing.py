"""Rollouts that cross steps, `rollout.max_staleness_steps` > 0: slow agents over real HTTP.

Proves: no token is older than the bound and each group is learnt from once, slow ones too; updates go on
while an agent is waited for; after an update the engine samples from the new weights, as a forward pass
without a cache says; the loss is the truncated one in closed form; a run that is killed repeats its recorded
steps to the byte and loses no reply that was paid; signals end it; settings that contradict are refused.
"""

import asyncio
import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from aipo.config.settings import AlgorithmSettings, Settings
from aipo.core.advantages import Member, group_advantages
from aipo.core.seeds import seed_of
from aipo.core.types import Condition, Verdict
from aipo.training.algorithm import base_algorithm, with_truncation
from aipo.training.ranks import Ranks
from aipo.training.under_way import refuse_crossing
from support.checkpoints import lines
from support.kill_points import Ran
from support.policies import counting_recipe, gsm8k_rows, random_policy, run_cli, succeed
from support.servers import Asked, ChatServer, chat_server
from support.vllm_twin import Twin

pytestmark = pytest.mark.timeout(900)
Start = Callable[..., Ran]
STEPS, PROMPTS, ROLLOUTS = 8, 2, 4


class Slow:
    """An agent whose every reply is another number; some come only when a step more is recorded."""

    def __init__(self, server: ChatServer) -> None:
        self.server, self.run = server, Path()
        self.slow, self.at_most_s = {3, 6, 10}, 12.0
        """Which of the run's questions, by number, wait so; no longer than this."""
        self.during: list[tuple[int, int]] = []
        """Of those: how many steps were recorded when they were asked, and when they were answered."""
        self.paid: set[str] = set()
        """Replies of the run itself."""
        self._asked = self._said = 0
        server.waits, server.says = self.waits, self.says

    def steps(self) -> int:
        path = self.run / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    @property
    def begun(self) -> bool:
        return (self.run / "settings.toml").exists()

    async def waits(self, asked: Asked) -> None:
        self._asked += self.begun
        if self._asked not in self.slow or not self.begun:
            return
        before, until_s = self.steps(), time.monotonic() + self.at_most_s
        while self.steps() == before and time.monotonic() < until_s:
            await asyncio.sleep(0.01)
        self.during.append((before, self.steps()))

    def says(self, asked: Asked) -> str:
        self._said += 1
        words = " ".join(f"{self._said:04d}")
        if self.begun:
            self.paid.add(words)
        return f"FACT: {words}"


@pytest.fixture
def slow() -> Iterator[Slow]:
    with chat_server() as server:
        yield Slow(server)


def crossing(slow: Slow, run: Path, most: int, *more: str) -> list[str]:
    """Settings of a run with that agent, without a cache of its replies."""
    slow.run = run
    return [
        f"rollout.max_staleness_steps={most}",
        f"train.steps={STEPS}",
        "agents.backend=remote",
        'agents.enabled=["knowledge"]',
        f"agents.base_url={slow.server.url()}",
        "agents.model=twin",
        "agents.cache=false",
        "evaluate.at_steps=[]",
        "rollout.solo_fraction=0.25",
        *more,
    ]


def ages(run: Path) -> list[int]:
    """How many updates older than its step's the weights of each sampled segment were."""
    return [
        row["step"] - 1 - segment.get("weights_version", row["weights_version"])
        for row in lines(run, "rollouts.jsonl")
        for segment in row["segments"]
        if segment["source"] == "policy"
    ]


def kept(run: Path) -> tuple[dict[int, int], dict[int, list[int]]]:
    """The step in which each group began, and the groups that each step has learnt from."""
    found = [
        json.loads(line)
        for path in sorted((run / "under_way").iterdir())
        for line in path.read_text().splitlines()
    ]
    began = {line["group"]: line["step"] for line in found if "group" in line}
    return began, {line["step"]: line["learnt"] for line in found if "learnt" in line}


@pytest.mark.parametrize("most", [1, 4])
def test_the_bound_holds_each_group_is_learnt_from_once_and_updates_go_on(
    start: Start, slow: Slow, base: Path, most: int
) -> None:
    run = base / f"bound-{most}" / "run"
    ran = start(f"bound-{most}", *crossing(slow, run, most, "train.checkpoint_every_steps=8"))
    assert ran.status == 0, ran.output
    found = ages(run)
    assert min(found) >= 0 and 0 < max(found) <= most
    assert max(row["staleness_max"] for row in lines(run)) == max(found)
    began, learnt = kept(run)
    order = [number for step in sorted(learnt) for number in learnt[step]]
    assert len(learnt) == STEPS and all(len(numbers) == PROMPTS for numbers in learnt.values())
    assert sorted(order) == list(range(STEPS * PROMPTS))
    assert all(numbers == sorted(numbers) for numbers in learnt.values())
    assert all(0 <= step - began[number] <= most for step in learnt for number in learnt[step])
    if most > 1:  # else whoever waits is due in the next step already
        assert order != sorted(order), "nothing has overtaken a slow group: the test shows nothing"
        assert any(later > before for before, later in slow.during), "no update while an agent was asked"
    ids = Counter((row["problem"], row["rollout"]) for row in lines(run, "rollouts.jsonl"))
    assert len(ids) == STEPS * PROMPTS * ROLLOUTS and set(ids.values()) == {1}


def test_without_it_every_step_waits_for_its_agents(start: Start, slow: Slow, base: Path) -> None:
    run, slow.at_most_s = base / "bound-0" / "run", 2.0
    assert start("bound-0", *crossing(slow, run, 0)).status == 0
    assert slow.during and all(later == before for before, later in slow.during)
    assert not (run / "under_way").exists() and "staleness_max" not in lines(run)[0]
    assert all(row["weights_version"] is None for row in lines(run, "rollouts.jsonl"))


class Weights:
    """The weights after each step of a run, as its checkpoints hold them."""

    def __init__(self, run: Path, start: Path) -> None:
        self._run, self._start, self._models = run, start, dict[int, Any]()

    @torch.no_grad()
    def log_probs(self, version: int, ids: list[int]) -> list[float]:
        """Log p of each id but the first, given those before it, by one forward pass."""
        if version not in self._models:
            folder = self._run / "checkpoints" / f"step-{version:06d}" / "policy" if version else self._start
            self._models[version] = AutoModelForCausalLM.from_pretrained(folder)
        logits = self._models[version](torch.tensor([ids])).logits[0, :-1]
        chosen = logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:]).unsqueeze(-1))
        return [0.0, *chosen.squeeze(-1).tolist()]


def test_tokens_are_of_the_weights_that_they_name_and_the_loss_is_truncated(
    start: Start, slow: Slow, base: Path, policy: Path
) -> None:
    run, truncation = base / "loss" / "run", 1.02
    more = ["train.checkpoint_every_steps=1", "train.keep_checkpoints=9", "train.minibatches_per_step=1"]
    more += ["algorithm.coefficient=masked", "algorithm.stripped_copies=false", "train.learning_rate=3e-3"]
    ran = start("loss", *crossing(slow, run, 4, *more, f"algorithm.mismatch_truncation={truncation}"))
    assert ran.status == 0, ran.output
    weights, mixed = Weights(run, policy), 0
    for metrics in lines(run):
        step, terms, cut, tokens = metrics["step"], 0.0, 0, 0
        rows = [row for row in lines(run, "rollouts.jsonl") if row["step"] == step]
        for row in rows:
            ids = [token for segment in row["segments"] for token in segment["ids"]]
            own, place = weights.log_probs(step - 1, ids), 0
            versions = set()
            for segment in row["segments"]:
                here = slice(place, place := place + len(segment["ids"]))
                if segment["source"] != "policy":
                    continue
                version = segment.get("weights_version", row["weights_version"])
                versions.add(version)
                expected = weights.log_probs(version, ids)[here]
                assert segment["log_probs"] == pytest.approx(expected, abs=1e-4), (step, version)
                ratios = [exp(p - q) for p, q in zip(own[here], segment["log_probs"], strict=True)]
                terms += advantage(row, rows) * sum(min(ratio, truncation) for ratio in ratios)
                cut += sum(ratio > truncation for ratio in ratios)
                tokens += len(ratios)
            mixed += len(versions) > 1
        assert metrics["policy_tokens"] == tokens
        assert metrics["loss"] == pytest.approx(-terms / tokens, abs=2e-4)
        assert metrics["truncated_weight_share"] == pytest.approx(cut / tokens, abs=2 / tokens)
    assert mixed, "no rollout has crossed an update: the test shows nothing"
    assert any(metrics["truncated_weight_share"] > 0 for metrics in lines(run))


def advantage(row: dict[str, Any], rows: list[dict[str, Any]]) -> float:
    """What a rollout's POLICY tokens are credited with, by the coins of train.reward = random."""
    group = [other for other in rows if other["problem"] == row["problem"]]
    members = []
    for other in group:
        heads = seed_of(0, "rollout", other["step"], "random reward", other["rollout"]) % 2 == 0
        verdict = Verdict.CORRECT if heads else Verdict.INCORRECT
        members.append(Member(verdict=verdict, condition=Condition(other["condition"])))
    estimator = base_algorithm(AlgorithmSettings()).estimator
    found = group_advantages(members, estimator=estimator)[group.index(row)]
    assert found is not None
    return found.policy


def test_a_kill_repeats_no_step_otherwise_and_loses_no_reply(start: Start, slow: Slow, base: Path) -> None:
    run = base / "killed" / "run"
    own = crossing(slow, run, 2, "train.checkpoint_every_steps=4")
    assert start("killed", *own, kill=["Updater.apply", 7], written=True).status == -signal.SIGKILL
    before = (run / "metrics.jsonl").read_bytes()
    rollouts = (run / "rollouts.jsonl").read_bytes()
    paid = set(slow.paid)
    assert before.count(b"\n") == 6 and len(paid) >= 6
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000004"]
    newest, torn = max((run / "under_way").iterdir()), b'{"group": 9, "st'
    newest.write_bytes(newest.read_bytes() + torn)
    ran = start("killed", *own)
    assert ran.status == 0, ran.output
    assert (run / "metrics.jsonl").read_bytes().startswith(before)
    assert (run / "rollouts.jsonl").read_bytes().startswith(rollouts)
    said = [c["reply"] for row in lines(run, "rollouts.jsonl") for c in row["consultations"]]
    assert paid <= set(said), paid - set(said)
    assert max(Counter(filter(None, said)).values()) == 1, "a reply was used twice"
    assert len(lines(run)) == STEPS and max(ages(run)) <= 2
    assert min((run / "under_way").iterdir()).stem == "step-000003", "what no step needs is still there"
    assert torn in newest.read_bytes().splitlines(), "what was written behind it is torn too"


def test_agents_that_failed_are_asked_again_by_the_run_that_goes_on(
    start: Start, slow: Slow, base: Path
) -> None:
    run = base / "failing" / "run"
    own = crossing(slow, run, 1, "train.min_consultations_to_stop=1", "agents.retries=0")
    answers, slow.slow = slow.says, set()

    def fails(asked: Asked) -> str:
        if slow.steps() >= 2:
            raise ConnectionError
        return answers(asked)

    slow.server.says = fails
    stopped = start("failing", *own)
    assert stopped.status == 3, stopped.output
    slow.server.says = answers
    ran = start("failing", *own)
    assert ran.status == 0, ran.output
    assert len(lines(run)) == STEPS and max(ages(run)) <= 1


@pytest.mark.parametrize("event", [["Updater._step", 5], ["Experience.sample_step", 4]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_and_it_goes_on(
    start: Start, slow: Slow, base: Path, number: signal.Signals, event: list[Any]
) -> None:
    name = f"{number.name}-{event[0]}"
    run = base / name / "run"
    own = crossing(slow, run, 2)
    ran = start(name, *own, send=[int(number), *event])
    assert ran.status == 128 + number, ran.output
    assert "Traceback" not in ran.output and "never retrieved" not in ran.output
    assert (run / "policy" / "model.safetensors").exists()
    done = len(lines(run))
    assert done < STEPS and max((run / "checkpoints").iterdir()).name == f"step-{done:06d}"
    ran = start(name, *own)
    assert ran.status == 0, ran.output
    assert [row["step"] for row in lines(run)] == list(range(1, STEPS + 1)) and max(ages(run)) <= 2


def test_a_server_takes_weights_between_requests(tmp_path: Path, tmp_path_factory: Any) -> None:
    policy = random_policy(tmp_path_factory, "qwen2.5")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in gsm8k_rows(12)))
    sections: dict[str, dict[str, Any]] = {
        "task": {"name": "jsonl", "train_file": str(rows), "problem_field": "question"},
        "agents": {"enabled": []},
        "rollout": {"max_prompt_tokens": 1024, "max_response_tokens": 12, "max_staleness_steps": 2},
        "train": {"steps": 4, "prompts_per_step": 2, "stratum_mix": {}, "reward": "random"},
        "consult": {"consulting_prompt": "agents", "solo_prompt": "alone"},
    }
    sections["task"]["answer_after"] = "####"
    with Twin(policy) as twin:
        recipe = counting_recipe(tmp_path, **sections, engine={"name": "vllm", "url": twin.url})
        run = tmp_path / "run"
        succeed("train", recipe, f"policy.model={policy}", f"run.output={run}")
    assert all(row["ungraded_share"] == 0 for row in lines(run))
    assert 0 < max(ages(run)) <= 2 and min(ages(run)) >= 0


CONTRADICTIONS = {
    "algorithm.mismatch_truncation=0": "algorithm.mismatch_truncation = 0",
    "train.dynamic_sampling_rounds=2": "train.dynamic_sampling_rounds",
    "consult.elicit.share=0.5": "consult.elicit.share",
    "guards.divergence=roll_back": "roll_back",
}


@pytest.mark.parametrize("setting", CONTRADICTIONS)
def test_settings_that_contradict_are_refused_before_anything(tmp_path: Path, setting: str) -> None:
    own = ["rollout.max_staleness_steps=2", "train.checkpoint_every_steps=2", setting]
    result = run_cli("train", counting_recipe(tmp_path), "policy.model=none", *own)
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert "rollout.max_staleness_steps = 2" in said and CONTRADICTIONS[setting] in said


def test_several_ranks_and_an_engine_that_cannot_are_refused() -> None:
    settings = Settings.model_validate({"rollout": {"max_staleness_steps": 1}})
    decided = [
        with_truncation(s, in_process=True).algorithm.mismatch_truncation for s in (settings, Settings())
    ]
    assert decided == [2.0, 0.0]
    with pytest.raises(ValueError, match=r"max_staleness_steps = 1 with several ranks"):
        refuse_crossing(settings, object(), Ranks(0, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="can neither hold still"):
        refuse_crossing(settings, object(), Ranks())  # type: ignore[arg-type]
    refuse_crossing(Settings(), object(), Ranks(0, 2))  # type: ignore[arg-type]


def test_the_bound_cannot_change_within_a_run(start: Start, slow: Slow, base: Path) -> None:
    run = base / "changed" / "run"
    own = crossing(slow, run, 1, "train.steps=1")
    assert start("changed", *own).status == 0
    ran = start("changed", *own, "rollout.max_staleness_steps=2", "--allow-change", "rollout")
    assert ran.status == 2 and "cannot change within a run" in " ".join(ran.output.split())
    shutil.rmtree(base / "changed")
