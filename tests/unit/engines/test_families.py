"""Every policy family runs: rollout, consultation, update, checkpoint, resume, export, all by `aipo.train`.

Random-weight tiny models of the real architectures, each with a tokenizer and a chat template in its family's
style (tests/support/families.py). Nothing can be learnt; a coin stands for the verdict, so that each update
has a gradient. Families whose layers keep a recurrent state are refused with the way out.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import aipo
from aipo.agents.base import Agent, AgentQuery, AgentReply
from aipo.config.loader import load_settings
from aipo.config.settings import PolicySettings
from aipo.core.types import KNOWLEDGE
from aipo.training.log_probs import PolicyForward
from aipo.training.model import load_policy, save_policy
from support.families import FAMILIES, HYBRIDS, family, make_family_policy, tokenizer_of
from support.policies import counting_recipe, run_cli

ATTENTION = pytest.mark.parametrize("name", FAMILIES)
RECURRENT = pytest.mark.parametrize("name", HYBRIDS)


class Encyclopedia:
    """Always knows."""

    name = KNOWLEDGE

    async def answer(self, query: AgentQuery) -> AgentReply:
        return AgentReply(text="a spider has 8 legs")


AGENTS: dict[str, Agent] = {KNOWLEDGE: Encyclopedia()}


def recipe_of(folder: Path, name: str, taught: bool = False, **policy: object) -> Path:
    made = make_family_policy(folder / "start", name, taught)
    return counting_recipe(
        folder,
        run={"output": str(folder / "run")},
        policy={"model": str(made), "attention": family(name).attention} | policy,
        agents={"enabled": ["knowledge"]},
        consult={"max_feedback_tokens": 24, "max_consultations": 2},
        rollout={
            "rollouts_per_prompt": 8,
            "solo_fraction": 0.25,
            "max_prompt_tokens": 120,
            "max_response_tokens": 80,
            "slots": 5,
            "temperature": 1.1,
        },
        train={
            "steps": 2,
            "prompts_per_step": 2,
            "minibatches_per_step": 1,
            "reward": "random",
            "checkpoint_every_steps": 1,
        },
    )


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@ATTENTION
def test_a_family_rolls_out_consults_learns_resumes_and_is_exported(name: str, tmp_path: Path) -> None:
    settings, run = load_settings(recipe_of(tmp_path, name, taught=True)), tmp_path / "run"
    policy = aipo.train(settings, agents=AGENTS).policy
    metrics = metrics_of(run)
    assert [row["step"] for row in metrics] == [1, 2]
    for row in metrics:
        assert row["first_ratio_error"] < 1e-5 and row["mismatch_max"] < 1e-4
        assert row["policy_tokens"] > 20
    assert max(row["grad_norm"] for row in metrics) > 0.01
    assert sum(row["outcomes/answered"] for row in metrics) > 0
    assert sum(row["feedback_tokens"] for row in metrics) > 0

    card = (policy / "README.md").read_text()
    assert "| policy updates | 2 of 2 |" in card and "    train.reward:" in card

    # The same command continues from the first checkpoint and comes to the same bits.
    kept = {path: (run / path).read_bytes() for path in ("metrics.jsonl", "rollouts.jsonl")}
    weights = {path.name: path.read_bytes() for path in policy.glob("*.safetensors")}
    for path in sorted((run / "checkpoints" / "step-000002").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (run / "checkpoints" / "step-000002").rmdir()
    aipo.train(settings, agents=AGENTS)
    assert {path: (run / path).read_bytes() for path in kept} == kept
    assert {path.name: path.read_bytes() for path in policy.glob("*.safetensors")} == weights

    exported, start = (AutoModelForCausalLM.from_pretrained(p) for p in (policy, settings.policy.model))
    assert type(exported) is type(start)
    pairs = zip(exported.parameters(), start.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", [*FAMILIES, *HYBRIDS])
def test_an_exported_folder_has_the_same_logits_to_the_bit_and_the_same_tokenizer(
    name: str, tmp_path: Path
) -> None:
    made = make_family_policy(tmp_path / "start", name)
    attention: Any = family(name).attention
    model, tokenizer = load_policy(PolicySettings(model=str(made), attention=attention), "cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # as training would, so that what was loaded will not do
            parameter.add_(torch.randn_like(parameter) * 0.01)
    ids = torch.arange(40).unsqueeze(0) * 7 % len(tokenizer)
    save_policy(model, tokenizer, tmp_path / "policy")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", attn_implementation=attention)
    with torch.no_grad():
        assert torch.equal(exported(ids).logits, model(ids).logits)
    text, built = "how many legs? 12 <verify> 3 spiders é 你好 </verify>\n\n ok", tokenizer_of(family(name))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert loaded.encode(text, add_special_tokens=False) == built.encode(text, add_special_tokens=False)
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Legs?"}]
    assert loaded.apply_chat_template(talk, tokenize=False) == built.apply_chat_template(talk, tokenize=False)


@pytest.mark.parametrize("name", [*FAMILIES, *HYBRIDS])
def test_the_training_forward_knows_each_familys_head_and_needs_no_mask_for_padding(
    name: str, tmp_path: Path
) -> None:
    made = make_family_policy(tmp_path / "start", name)
    attention: Any = family(name).attention
    model, tokenizer = load_policy(PolicySettings(model=str(made), attention=attention), "cpu")
    forward = PolicyForward(model, 7, gradient_checkpointing=True)
    assert forward.check() == ""
    ids = torch.arange(60).reshape(2, 30) * 7 % len(tokenizer)
    ids[1, 19:] = int(tokenizer.pad_token_id)
    log_p, entropy = forward(ids, 0.8)
    with torch.no_grad():
        alone = PolicyForward(model, 0)(ids[1:, :19], 0.8)
    torch.testing.assert_close(log_p[1, :19], alone[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy[1, :19], alone[1][0], atol=1e-5, rtol=1e-5)
    log_p[0].sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in model.get_decoder().layers.parameters()
    )


@RECURRENT
def test_a_family_with_recurrent_layers_is_refused_at_start_with_the_way_out(
    name: str, tmp_path: Path
) -> None:
    result = run_cli("train", recipe_of(tmp_path, name))
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert "policy.model: layers of type" in said and "keep a recurrent state" in said
    assert "engine.name = 'vllm'" in said
    assert not (tmp_path / "run").exists()


def test_attention_that_a_family_lacks_is_refused_with_the_one_that_it_has(tmp_path: Path) -> None:
    result = run_cli("train", recipe_of(tmp_path, "gpt-oss", attention="sdpa"))
    assert result.exit_code == 2
    assert "set policy.attention = 'eager'" in " ".join(result.output.split())
