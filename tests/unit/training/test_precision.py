"""Mixed precision: float32 weights, products in bfloat16, the same for sampler and trainer."""

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import aipo
from aipo.assembly.parts import build_task
from aipo.config.loader import diff_settings, load_settings, parse_settings
from aipo.config.policy import PolicySettings, Precision
from aipo.config.settings import Settings, TaskSettings
from aipo.core.types import Verdict
from aipo.engines.base import GenerationRequest
from aipo.engines.precision import CastWeights, compute_in
from aipo.engines.transformers import TransformersEngine
from aipo.tasks.base import Grade, Problem, Split, Task
from aipo.training import device
from aipo.training.device import DeviceError, settled
from aipo.training.log_probs import PolicyForward, packed_log_probs, token_log_probs
from aipo.training.model import load_policy, parameter_line
from aipo.training.prefixes import packed_rows, prefix_tree
from support.families import FAMILIES, SHAPE, family, make_family_policy, tokenizer_of
from support.policies import counting_policy, counting_recipe

STATED_MEAN_ERROR = 0.05
"""Of a token's log p between sampler and trainer; docs/policies.md."""
STEPS, SEEDS = 25, (0, 1, 2, 3)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_policy(tmp_path_factory)


def mixed(name: str, seed: int = 0) -> PreTrainedModel:
    """A random model of a family that computes in bfloat16."""
    one = family(name)
    ids = {"vocab_size": 340, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = one.config(**SHAPE | ids | one.more)
    config.initializer_range = 0.1
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=one.attention)
    compute_in(model.eval(), torch.bfloat16)
    return model


def trained(
    policy: Path, folder: Path, precision: str, task: Task | None = None, **train: Any
) -> list[dict[str, float]]:
    """Train on the counting task, or on another one without agents; return the metrics of each step."""
    recipe = counting_recipe(
        folder,
        run={"output": str(folder / "run"), "seed": train.pop("seed", 0), "device": "cpu"},
        policy={"model": str(policy), "precision": precision},
        agents={"enabled": []} if task else {},
        train={"checkpoint_every_steps": 1, "keep_checkpoints": 9, **train},
    )
    aipo.train(load_settings(recipe), task=task)
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


# computing


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_that_are_cast_once_give_the_bits_of_autocast_and_follow_an_update(name: str) -> None:
    model = mixed(name)
    weights, ids = CastWeights(model), torch.randint(3, 340, (3, 21))
    with torch.no_grad():
        by_autocast = weights.forward(input_ids=ids).logits
        weights.refresh()
        assert torch.equal(weights.forward(input_ids=ids).logits, by_autocast)
        for parameter in model.parameters():
            parameter.mul_(1.1)
        weights.refresh()
        changed = weights.forward(input_ids=ids).logits
        weights.free()
        assert torch.equal(weights.forward(input_ids=ids).logits, changed)
        assert not torch.equal(changed, by_autocast)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_sampled_has_the_trainers_log_probabilities_within_what_is_stated(name: str) -> None:
    model, tokenizer = mixed(name), tokenizer_of(family(name))
    engine = TransformersEngine(model, tokenizer, slots=4, capacity=64)
    prompts = [tuple(range(5, 25 + i)) for i in range(4)]

    async def sampled() -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
        asked = (
            GenerationRequest(session=str(i), prefix_ids=prompt, max_new_tokens=16, stop=(), seed=i)
            for i, prompt in enumerate(prompts)
        )
        return [(found.ids, found.log_probs) for found in await asyncio.gather(*map(engine.generate, asked))]

    errors = []
    for prompt, (ids, log_probs) in zip(prompts, asyncio.run(sampled()), strict=True):
        with torch.no_grad():
            log_p, _ = token_log_probs(model, torch.tensor([(*prompt, *ids)]), 1.0)
        assert log_p.dtype == torch.float32
        errors += (log_p[0, len(prompt) :] - torch.tensor(log_probs)).abs().tolist()
    assert fmean(errors) < STATED_MEAN_ERROR


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_rows_are_as_near_to_float32_as_padded_ones(name: str) -> None:
    """Both round, each in its own order: exact is what rounding allows, and no packed row is worse off."""
    model = mixed(name)
    sequences = [(*range(5, 22), *range(30 + 9 * i, 36 + 10 * i)) for i in range(4)]
    width = max(map(len, sequences))
    padded = torch.tensor([[*s, *[0] * (width - len(s))] for s in sequences])
    wanted = torch.tensor([[17 <= t < len(s) for t in range(width)] for s in sequences])
    rows = packed_rows([prefix_tree(sequences)], [[17] * 4], 0)

    def outcome(packed: bool) -> tuple[torch.Tensor, torch.Tensor]:
        forward = PolicyForward(model, 7, gradient_checkpointing=True)
        model.zero_grad()
        way = packed_log_probs(forward, rows, 1.3) if packed else token_log_probs(forward, padded, 1.3, 17)
        (way[0] * wanted).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return way[0].detach()[wanted], gradient

    found = outcome(packed=True), outcome(packed=False)
    assert PolicyForward(model).can_pack()
    compute_in(model, torch.float32)
    exact = outcome(packed=False)
    for packed, plain, reference in zip(*found, exact, strict=True):
        assert packed.dtype == torch.float32
        packed_error, error = ((x - reference).norm() / reference.norm() for x in (packed, plain))
        assert 0 < packed_error < 1.5 * error + 1e-3


# runs


def test_a_run_keeps_float32_weights_resumes_to_the_bit_and_exports_float32(
    policy: Path, tmp_path: Path
) -> None:
    metrics = trained(policy, tmp_path, "bf16-mixed", steps=4)
    assert all(row["mismatch_mean"] < STATED_MEAN_ERROR for row in metrics)
    assert all(0 < row["first_ratio_error"] < 0.01 for row in metrics), "0 would be float32"
    run = tmp_path / "run"
    saved = run / "checkpoints" / "step-000002"
    kept = [load_file(folder / "model.safetensors") for folder in (saved / "policy", run / "policy")]
    assert {weight.dtype for weights in kept for weight in weights.values()} == {torch.float32}
    assert any(not torch.equal(w, w.bfloat16().float()) for w in kept[0].values()), "finer than bfloat16"
    moments = torch.load(saved / "optimiser.pt", weights_only=True)["optimiser"]["state"]
    assert {moment.dtype for of_one in moments.values() for moment in of_one.values()} == {torch.float32}
    assert json.loads((run / "policy" / "config.json").read_text())["dtype"] == "float32"

    files = [run / name for name in ("metrics.jsonl", "rollouts.jsonl", "policy/model.safetensors")]
    before = [file.read_bytes() for file in files]
    for step in (3, 4):
        shutil.rmtree(run / "checkpoints" / f"step-{step:06d}")
    trained(policy, tmp_path, "bf16-mixed", steps=4)
    assert [file.read_bytes() for file in files] == before


class _LongWords:
    """A task that is learnt in 25 steps: to write at least 60 words, which the policy does in 1 of 100."""

    name = "leg_counting"

    def __init__(self) -> None:
        self._counting = build_task(TaskSettings(name="leg_counting"))

    def problems(self, split: Split) -> Sequence[Problem]:
        return self._counting.problems(split)

    async def grade(self, problem: Problem, response: str) -> Grade:
        return Grade(Verdict.CORRECT if len(response.split()) >= 60 else Verdict.INCORRECT, "words")

    def without_answer(self, problem: Problem, text: str) -> None:
        return None


@pytest.mark.slow
def test_the_learning_curves_are_those_of_float32_within_their_noise(policy: Path, tmp_path: Path) -> None:
    """Over seeds, mean rewards of whole curves differ by .015 here, those of seeds by .17; without learning
    they would differ by .25."""
    means: dict[str, list[float]] = {}
    for precision in ("float32", "bf16-mixed"):
        for seed in SEEDS:
            folder = tmp_path / f"{precision}-{seed}"
            folder.mkdir()
            rate = {"learning_rate": 5e-4, "minibatches_per_step": 1, "checkpoint_every_steps": STEPS}
            rows = trained(policy, folder, precision, _LongWords(), steps=STEPS, seed=seed, **rate)
            rewards = [row["reward_solo"] for row in rows]
            means.setdefault(precision, []).append(fmean(rewards))
            assert fmean(rewards[-5:]) > 0.4 > 0.1 > fmean(rewards[:5])
    assert abs(fmean(means["float32"]) - fmean(means["bf16-mixed"])) < 0.12


# settings


def test_what_the_device_lacks_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = counting_recipe(tmp_path, policy={"model": str(tmp_path / "nothing")})
    for override, said in (
        ("run.device=cuda", "run.device = 'cuda', but torch sees cpu"),
        ("policy.tf32=true", "policy.tf32 = true, but run.device = 'cpu' has no TF32"),
    ):
        with pytest.raises(DeviceError, match=said):
            aipo.train(load_settings(recipe, [override]))
    monkeypatch.setattr(device, "_has_bfloat16", lambda name: False)
    for precision in ("bf16-mixed", "bfloat16"):
        with pytest.raises(DeviceError, match=f"policy.precision = '{precision}', but run.device = 'cpu'"):
            aipo.train(load_settings(recipe, [f"policy.precision={precision}"]))
    assert not (tmp_path / "runs").exists()


def test_auto_becomes_what_suits_the_device_or_what_the_run_was_begun_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = settled(Settings())
    assert (plain.run.device, plain.policy.precision) == ("cpu", Precision.FLOAT32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "_has_bfloat16", lambda name: True)
    found = settled(Settings())
    assert (found.run.device, found.policy.precision) == ("cuda", Precision.BF16_MIXED)
    adapters = settled(load_settings(None, ["policy.lora_rank=8"]))
    assert adapters.policy.precision is Precision.BFLOAT16
    assert settled(Settings(), begun=plain) == plain
    said = settled(load_settings(None, ["run.device=cpu"]))
    assert (said.run.device, said.policy.precision) == ("cpu", Precision.FLOAT32)


def test_a_run_records_what_auto_became_and_goes_on_under_its_old_name(policy: Path, tmp_path: Path) -> None:
    recipe = counting_recipe(
        tmp_path, run={"output": str(tmp_path / "run")}, policy={"model": str(policy)}, train={"steps": 1}
    )
    aipo.train(load_settings(recipe))
    stored = tmp_path / "run" / "settings.toml"
    assert 'device = "cpu"' in stored.read_text() and 'precision = "float32"' in stored.read_text()
    old = stored.read_text().replace('precision = "float32"\ntf32 = false', 'dtype = "float32"')
    assert "dtype" in old and parse_settings(old) == load_settings(stored)
    stored.write_text(old)
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # which know the settings by their bytes
    aipo.train(load_settings(recipe))
    assert stored.read_text() == old


def test_only_what_is_decided_at_the_start_may_be_auto_on_one_side() -> None:
    decided = load_settings(None, ["run.device=cpu", "policy.precision=float32"])
    assert diff_settings(Settings(), decided) == diff_settings(decided, Settings()) == []
    other = load_settings(None, ["sandbox.backend=landlock"])
    assert diff_settings(Settings(), other) == ['sandbox.backend: "auto" -> "landlock"']


def test_a_policy_in_mixed_precision_says_what_it_computes_in(tmp_path: Path) -> None:
    made = make_family_policy(tmp_path / "policy", "llama3")
    model, _ = load_policy(PolicySettings(model=str(made), precision=Precision.BF16_MIXED), "cpu")
    assert model.dtype == torch.float32
    assert "in float32; products are computed in bfloat16" in parameter_line(model)
