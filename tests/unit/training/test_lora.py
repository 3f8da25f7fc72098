"""Adapters: they begin as nothing, only they are trained, and what is exported is the policy that they made.

Through `aipo.train` where a run is meant; tiny random models of real architectures.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

import aipo
from aipo.agents.base import Agent, AgentQuery, AgentReply
from aipo.config.loader import load_settings
from aipo.config.settings import PolicySettings
from aipo.core.types import KNOWLEDGE
from aipo.training.lora import merged
from aipo.training.model import load_policy, parameter_line, restore_weights, save_plain, save_policy
from support.families import family, make_family_policy
from support.policies import counting_recipe, run_cli
from support.vllm_twin import Twin

NAMES = pytest.mark.parametrize("name", ["qwen3", "llama3", "gemma3", "phi4", "gpt-oss"])
"""Tied and untied, with a soft cap's family, with fused projections, with experts in one tensor."""


class Encyclopedia:
    """Always knows."""

    name = KNOWLEDGE

    async def answer(self, query: AgentQuery) -> AgentReply:
        return AgentReply(text="a spider has 8 legs")


AGENTS: dict[str, Agent] = {KNOWLEDGE: Encyclopedia()}


def adapted(folder: Path, name: str = "qwen3", dtype: str = "float32", **more: Any) -> PreTrainedModel:
    """A policy with adapters that are no longer nothing."""
    made = make_family_policy(folder / "start", name)
    settings: dict[str, Any] = {
        "lora_rank": 4,
        "attention": family(name).attention,
        "precision": dtype,
    } | more
    model, _ = load_policy(PolicySettings(model=str(made), **settings), "cpu")
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.arange(30).unsqueeze(0) * 7 % 300).logits
    return logits


@NAMES
def test_adapters_begin_as_nothing_and_only_they_are_trained(name: str, tmp_path: Path) -> None:
    made, attention = make_family_policy(tmp_path / "start", name), family(name).attention
    plain, _ = load_policy(PolicySettings(model=str(made), attention=attention), "cpu")  # type: ignore[arg-type]
    model, _ = load_policy(
        PolicySettings(model=str(made), attention=attention, lora_rank=4),  # type: ignore[arg-type]
        "cpu",
    )
    assert torch.equal(logits_of(model), logits_of(plain))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in n for n in trained)
    assert not any("lm_head" in n for n in trained)
    line = parameter_line(model)
    assert f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} of" in line
    assert "(100.00%)" in parameter_line(plain) and "(100.00%)" not in line


@NAMES
def test_merged_they_are_a_plain_policy_with_the_same_logits(name: str, tmp_path: Path) -> None:
    model = adapted(tmp_path, name)
    before, weights = logits_of(model), {k: v.clone() for k, v in model.state_dict().items()}
    save_plain(model, tmp_path / "policy")
    exported = AutoModelForCausalLM.from_pretrained(
        tmp_path / "policy", attn_implementation=family(name).attention
    )
    torch.testing.assert_close(logits_of(exported), before, atol=1e-5, rtol=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(
        tmp_path / "start", attn_implementation=family(name).attention
    )
    assert (logits_of(plain) - before).abs().max() > 0.1
    assert type(exported) is type(model) and not (tmp_path / "policy" / "adapter_config.json").exists()
    # The live policy goes on as it was: nothing was merged into it.
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_in_bfloat16_adapters_are_float32_and_each_merged_weight_is_rounded_once(tmp_path: Path) -> None:
    model = adapted(tmp_path, dtype="bfloat16")
    kinds = {p.requires_grad: p.dtype for p in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16} and model.dtype == torch.bfloat16
    layer: Any = model.model.layers[0].self_attn.q_proj
    exact = (
        layer.base_layer.weight.float()
        + 8.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    )
    found = merged(model).model.layers[0].self_attn.q_proj.weight
    assert torch.equal(found, exact.to(torch.bfloat16))


def test_a_checkpoint_of_adapters_is_small_and_comes_back_to_the_bit(tmp_path: Path) -> None:
    model = adapted(tmp_path)
    model.save_pretrained(tmp_path / "kept")
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(2)
    restore_weights(model, tmp_path / "kept")
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    names = {path.name for path in (tmp_path / "kept").glob("*.safetensors")}
    assert names == {"adapter_model.safetensors"}


@pytest.mark.parametrize("other", [{"lora_rank": 2}, {"lora_targets": ("q_proj",)}])
def test_adapters_of_another_shape_are_refused(other: dict[str, Any], tmp_path: Path) -> None:
    adapted(tmp_path, **other).save_pretrained(tmp_path / "kept")
    with pytest.raises(ValueError, match="another rank or size|adapters of other layers"):
        restore_weights(adapted(tmp_path), tmp_path / "kept")


def test_peft_reads_the_folder_beside_the_exported_policy(tmp_path: Path) -> None:
    model = adapted(tmp_path)
    _, tokenizer = load_policy(PolicySettings(model=str(tmp_path / "start")), "cpu")
    save_policy(model, tokenizer, tmp_path / "run" / "policy")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    theirs = PeftModel.from_pretrained(base, tmp_path / "run" / "adapters")
    torch.testing.assert_close(logits_of(theirs), logits_of(model), atol=1e-5, rtol=1e-5)


def test_unknown_layers_are_refused_with_those_that_there_are(tmp_path: Path) -> None:
    made = make_family_policy(tmp_path / "start", "qwen3")
    recipe = counting_recipe(
        tmp_path,
        run={"output": str(tmp_path / "run")},
        policy={"model": str(made), "lora_rank": 4, "lora_targets": ["wq"]},
    )
    result = run_cli("train", recipe)
    assert result.exit_code == 2
    assert "policy.lora_targets = ['wq']" in result.output and "q_proj" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "layer", "why"),
    [
        ("qwen3", "lm_head", "lm_head shares its weight with another layer"),
        ("qwen3", "embed_tokens", "embed_tokens shares its weight with another layer"),
        ("llama3", "embed_tokens", "embed_tokens is an embedding"),
    ],
)
def test_layers_that_could_not_be_merged_are_refused(name: str, layer: str, why: str, tmp_path: Path) -> None:
    """Merged into a tied head, an adapter would change the embedding as well: another policy than the one
    that was trained."""
    made = make_family_policy(tmp_path / "start", name)
    with pytest.raises(ValueError, match=rf"policy.lora_targets = \['{layer}'\]: .*{why}.*leave it out"):
        load_policy(PolicySettings(model=str(made), lora_rank=2, lora_targets=(layer,)), "cpu")


def test_a_head_of_its_own_takes_adapters_and_is_exported_with_them(tmp_path: Path) -> None:
    model = adapted(tmp_path, "llama3", lora_targets=("lm_head",))
    save_plain(model, tmp_path / "plain")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.allclose(logits_of(exported), logits_of(model), atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bf16-mixed", "bfloat16"])
def test_a_run_samples_from_its_adapters_resumes_to_the_bit_and_exports_them(
    precision: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With chunks of logits and gradient checkpointing, so that all that saves memory works together."""
    run = tmp_path / "run"
    made = make_family_policy(tmp_path / "start", "qwen3", taught=True)
    recipe = counting_recipe(
        tmp_path,
        run={"output": str(run)},
        policy={"model": str(made), "lora_rank": 4, "precision": precision},
        agents={"enabled": ["knowledge"]},
        consult={"max_feedback_tokens": 24, "max_consultations": 2},
        rollout={"rollouts_per_prompt": 4, "max_prompt_tokens": 120, "max_response_tokens": 64},
        train={
            "steps": 3,
            "prompts_per_step": 2,
            "minibatches_per_step": 1,
            "reward": "random",
            "checkpoint_every_steps": 1,
            "keep_checkpoints": 3,
            "learning_rate": 0.02,
            "warmup_steps": 0,
            "logit_chunk_tokens": 16,
            "gradient_checkpointing": True,
        },
    )
    caplog.set_level("INFO", "aipo")
    policy = aipo.train(load_settings(recipe), agents=AGENTS).policy
    assert "parameters are trained" in caplog.text
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["grad_norm"] for row in metrics) > 0.01
    if precision == "float32":
        assert all(row["first_ratio_error"] < 1e-5 and row["mismatch_max"] < 1e-4 for row in metrics)
    else:
        assert all(row["mismatch_mean"] < 0.05 for row in metrics)
    exported, start = (AutoModelForCausalLM.from_pretrained(p) for p in (policy, made))
    assert exported.dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)
    changed = {
        n
        for (n, a), b in zip(exported.named_parameters(), start.to(exported.dtype).parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert any("q_proj" in name for name in changed)
    assert not any("embed" in name or "norm" in name for name in changed)
    assert (run / "adapters" / "adapter_config.json").exists()

    kept = {path: (run / path).read_bytes() for path in ("metrics.jsonl", "rollouts.jsonl")}
    weights = (policy / "model.safetensors").read_bytes()
    for step in (2, 3):
        folder = run / "checkpoints" / f"step-{step:06d}"
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
    aipo.train(load_settings(recipe), agents=AGENTS)
    assert {path: (run / path).read_bytes() for path in kept} == kept
    assert (policy / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("alone", [True, False])
def test_a_policy_server_is_handed_adapters_alone_where_it_takes_them_else_merged_weights(
    tmp_path: Path, alone: bool
) -> None:
    """The mismatch says so: after a step, only they give the log-probabilities that the trainer computes."""
    made = make_family_policy(tmp_path / "start", "llama3", taught=True)
    with Twin(made) as twin:
        twin.takes_adapters = alone
        recipe = counting_recipe(
            tmp_path,
            run={"output": str(tmp_path / "run")},
            policy={"model": str(made), "lora_rank": 4},
            engine={"name": "vllm", "urls": [twin.url]},
            agents={"enabled": []},
            rollout={"rollouts_per_prompt": 4, "max_prompt_tokens": 160, "max_response_tokens": 40},
            train={
                "steps": 3,
                "prompts_per_step": 2,
                "minibatches_per_step": 1,
                "reward": "random",
                "learning_rate": 0.02,
                "warmup_steps": 0,
            },
        )
        aipo.train(load_settings(recipe))
    asked = [path for path, _ in twin.requests]
    assert asked.count("/v1/load_lora_adapter") == (5 if alone else 0)
    assert asked.count("/collective_rpc") == (0 if alone else 5)
    served = {body["model"] for body in twin.completions()}
    assert len(served) == (4 if alone else 1), "adapters have a name of their own after each step"
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 3 and min(row["grad_norm"] for row in metrics[:2]) > 0.01
    assert all(row["mismatch_max"] < 1e-4 for row in metrics)


@pytest.mark.parametrize(("change", "said"), [("policy.lora_rank=0", True), ("policy.lora_rank=4", False)])
def test_bfloat16_weights_with_a_small_learning_rate_are_warned_of(
    change: str, said: bool, tmp_path: Path
) -> None:
    made = make_family_policy(tmp_path / "start", "qwen3")
    recipe = counting_recipe(
        tmp_path,
        run={"output": str(tmp_path / "run")},
        policy={"model": str(made), "precision": "bfloat16"},
        agents={"enabled": []},
        rollout={"rollouts_per_prompt": 2, "max_prompt_tokens": 120, "max_response_tokens": 16},
        train={"steps": 1, "prompts_per_step": 1, "minibatches_per_step": 1, "learning_rate": 1e-6},
    )
    result = run_cli("train", recipe, change)
    assert result.exit_code == 0, result.output
    assert ("most updates are smaller than a weight's rounding" in " ".join(result.output.split())) == said
