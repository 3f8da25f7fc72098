"""KL to the starting policy and the entropy term are what autograd says of whole logits, wherever computed.

Models are real and tiny; in double precision unless a run is meant. The reference is a copy whose weights
were shifted, so that nothing is 0 by accident.
"""

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GraniteConfig, LlamaConfig, PreTrainedModel

from aipo.config.settings import PolicySettings
from aipo.core.batch import Row
from aipo.core.divergence import KL_ESTIMATORS
from aipo.core.objective import ObjectiveSettings
from aipo.core.types import Source
from aipo.training.log_probs import PolicyForward, packed_log_probs, token_log_probs
from aipo.training.lora import add_lora
from aipo.training.prefixes import packed_rows, prefix_tree
from aipo.training.update import Updater, UpdateSettings
from support.engines import random_model
from support.policies import counting_policy, counting_recipe, run_cli, succeed
from support.updates import UNEVEN_ROWS, double_model

VOCABULARY, TEMPERATURE = 101, 0.7
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
MODELS = {
    "tied": lambda: LlamaConfig(**SHAPE, **HEADS, tie_word_embeddings=True),
    "scaled": lambda: GraniteConfig(**SHAPE, **HEADS, logits_scaling=0.4),
}
SIBLINGS = [(1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 7, 8), (1, 2, 9, 8, 7, 6)]
PROMPT = 2
ESTIMATOR = pytest.mark.parametrize("name", KL_ESTIMATORS)


def shifted(model: PreTrainedModel) -> PreTrainedModel:
    """A reference that is another policy."""
    torch.manual_seed(7)
    other = copy.deepcopy(model).requires_grad_(False)
    for parameter in other.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return other


def by_definition(model: PreTrainedModel, reference: PreTrainedModel, name: str) -> tuple[Tensor, ...]:
    """Log p, entropy and KL of each token, (B, T - PROMPT), from whole logits."""
    ids = torch.tensor(SIBLINGS)
    log_p, log_q = (
        torch.log_softmax(one(ids).logits[:, PROMPT - 1 : -1] / TEMPERATURE, -1) for one in (model, reference)
    )
    of_token, there = (of.gather(-1, ids[:, PROMPT:, None]).squeeze(-1) for of in (log_p, log_q))
    entropy = -(log_p.exp() * log_p).sum(-1)
    if name == "exact":
        return of_token, entropy, (log_p.exp() * (log_p - log_q)).sum(-1)
    # TRL's per_token_kl: torch.exp(ref - own) - (ref - own) - 1
    return of_token, entropy, torch.exp(there - of_token) - (there - of_token) - 1


def gradients(model: PreTrainedModel, found: Sequence[Tensor], weights: Sequence[float]) -> list[Tensor]:
    """Those of a sum in which each token has a weight of its own; what weighs 0 is left out."""
    model.zero_grad()
    slope = torch.linspace(-1.0, 1.0, found[0].numel(), dtype=found[0].dtype).view(found[0].shape)
    terms = [w * (slope * values).sum() for w, values in zip(weights, found, strict=True) if w]
    torch.stack(terms).sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def computed(forward: PolicyForward, way: str, name: str) -> tuple[Tensor, ...]:
    """Log p, entropy and KL of each token, (B, T - PROMPT), the way that is named."""
    if "packed" in way:
        rows = packed_rows([prefix_tree(SIBLINGS)], [[PROMPT] * 3], 0)
        found = packed_log_probs(forward, rows, TEMPERATURE, KL_ESTIMATORS[name])
    else:
        found = token_log_probs(forward, torch.tensor(SIBLINGS), TEMPERATURE, PROMPT, KL_ESTIMATORS[name])
    assert not any(values[:, :PROMPT].any() for values in found)
    return tuple(values[:, PROMPT:] for values in found)


WAYS = ["whole", "chunks", "chunks, checkpointing", "packed", "packed, chunks", "packed, no plain head"]


@ESTIMATOR
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("way", WAYS)
def test_values_and_gradients_are_autograds_from_whole_logits(kind: str, name: str, way: str) -> None:
    model = random_model(MODELS[kind]()).double()
    reference = shifted(model)
    forward = PolicyForward(model, 5 if "chunks" in way else 0, "checkpointing" in way, reference)
    if "no plain head" in way:
        forward._checked = True
    # transformers' norms compute in float32 whatever the model is in
    for weights in ([1.0, 0.5, -2.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]):
        expected, found = by_definition(model, reference, name), computed(forward, way, name)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
        wanted = gradients(model, expected, weights)
        assert max(float(each.abs().max()) for each in wanted) > 0.01
        for mine, each in zip(gradients(model, found, weights), wanted, strict=True):
            assert (mine - each).norm() <= 1e-5 * each.norm()  # transformers' norms compute in float32


@ESTIMATOR
@pytest.mark.parametrize("way", WAYS)
def test_at_the_start_kl_is_nothing_and_pulls_nowhere(name: str, way: str) -> None:
    model = random_model(MODELS["tied"]())
    frozen = copy.deepcopy(model).requires_grad_(False)
    found = computed(PolicyForward(model, 5 if "chunks" in way else 0, False, frozen), way, name)
    assert not found[2].any()
    assert max(float(g.abs().max()) for g in gradients(model, found, [0.0, 0.0, 1.0])) < 1e-6


@ESTIMATOR
@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_adapters_the_reference_is_the_policy_without_them(name: str, checkpointing: bool) -> None:
    model = random_model(MODELS["tied"]())
    start = copy.deepcopy(model).requires_grad_(False)
    add_lora(model, PolicySettings(model="none", lora_rank=2))
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    learnt = [n for n, p in model.named_parameters() if p.requires_grad]
    beside = computed(PolicyForward(model, 5, checkpointing, start), "chunks", name)
    wanted = gradients(model, beside, [1.0, 0.0, 1.0])
    found = computed(PolicyForward(model, 5, checkpointing), "chunks", name)
    assert found[2].max() > 0.01
    for ours, theirs in zip(found, beside, strict=True):
        torch.testing.assert_close(ours, theirs)
    for mine, each in zip(gradients(model, found, [1.0, 0.0, 1.0]), wanted, strict=True):
        torch.testing.assert_close(mine, each)
    assert learnt == [n for n, p in model.named_parameters() if p.requires_grad] and len(wanted) == len(
        learnt
    )


def test_a_policy_without_a_reference_is_one_clear_error() -> None:
    forward = PolicyForward(random_model(MODELS["tied"]()))
    with pytest.raises(ValueError, match=r"algorithm.kl_weight: .*there is no reference; set it to 0"):
        computed(forward, "whole", "k3")


HELD = ObjectiveSettings(kl_weight=0.7, entropy_weight=0.3)


def held_by_hand(rows: Sequence[Row], settings: ObjectiveSettings) -> list[Tensor]:
    """The base objective's gradient, and that of KL and entropy at POLICY tokens only, row by row."""
    change = stepped(rows, replace(settings, kl_weight=0.0, entropy_weight=0.0))[0]
    model = double_model()
    reference, total = shifted(model), torch.zeros((), dtype=torch.float64)
    for row in rows:
        ids = torch.tensor([row.stream.ids])
        log_p, log_q = (torch.log_softmax(one(ids).logits[0, :-1], -1) for one in (model, reference))
        for t, source in enumerate(row.stream.sources):
            if source is Source.POLICY:
                p, q = log_p[t - 1], log_q[t - 1]
                delta = (q - p)[row.stream.ids[t]]
                kl = delta.exp() - delta - 1 if settings.kl_estimator == "k3" else (p.exp() * (p - q)).sum()
                bonus = -(p.exp() * p).sum()
                total = total + row.weight * (settings.kl_weight * kl - settings.entropy_weight * bonus)
    total.backward()  # type: ignore[no-untyped-call]
    return [of + p.grad for of, p in zip(change, model.parameters(), strict=True) if p.grad is not None]


def stepped(
    rows: Sequence[Row], settings: ObjectiveSettings, tokens: int = 60
) -> tuple[list[Tensor], dict[str, float]]:
    """The gradient of one update, as the change of plain descent at rate 1, and the metrics."""
    model = double_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    forward = PolicyForward(model, 5, False, shifted(model))
    options = UpdateSettings(temperature=1.0, microbatch_tokens=tokens, max_grad_norm=1e6, pad_id=0)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    metrics = Updater(Accelerator(cpu=True), forward, sgd, options).apply([rows], settings)
    return [a - b.detach() for a, b in zip(before, model.parameters(), strict=True)], metrics


@ESTIMATOR
@pytest.mark.parametrize("tokens", [14, 60, 1000])
def test_an_update_holds_the_policy_tokens_of_all_rows_also_of_those_without_an_advantage(
    name: str, tokens: int
) -> None:
    settings = replace(HELD, kl_estimator=name)
    assert sum(not row.advantage.policy for row in UNEVEN_ROWS) > 1
    wanted = held_by_hand(UNEVEN_ROWS, settings)
    found, metrics = stepped(UNEVEN_ROWS, settings, tokens)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)
    assert metrics["kl_reference"] > 0.01 and metrics["entropy"] > 1.0
    assert "kl_reference" not in stepped(UNEVEN_ROWS, ObjectiveSettings())[1]


RUN = [
    "algorithm.kl_weight=0.5",
    "algorithm.entropy_weight=0.01",
    "train.reward=random",
    "train.learning_rate=0.001",
    "train.checkpoint_every_steps=1",
    "rollout.rollouts_per_prompt=4",
    "rollout.max_response_tokens=40",
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_policy(tmp_path_factory)


@pytest.mark.parametrize("name", ["k3", "exact"])
def test_a_resumed_run_is_held_to_where_it_began_and_ends_on_the_same_bytes(
    name: str, policy: Path, tmp_path: Path
) -> None:
    own = [f"policy.model={policy}", *RUN, f"algorithm.kl_estimator={name}"]
    recipe = counting_recipe(tmp_path)
    for folder in ("whole", "cut"):
        output = f"run.output={tmp_path / folder}"
        if folder == "cut":
            succeed("train", recipe, *own, output, "train.steps=2")
        more = ["--allow-change", "train.steps"] if folder == "cut" else []
        succeed("train", recipe, *own, output, "train.steps=4", *more)
    whole, cut = (tmp_path / folder for folder in ("whole", "cut"))
    assert (whole / "metrics.jsonl").read_bytes() == (cut / "metrics.jsonl").read_bytes()
    assert (whole / "policy/model.safetensors").read_bytes() == (
        cut / "policy/model.safetensors"
    ).read_bytes()
    assert (whole / "reference.json").read_bytes() == (cut / "reference.json").read_bytes()
    metrics = [json.loads(line) for line in (cut / "metrics.jsonl").read_text().splitlines()]
    held = [row["kl_reference"] for row in metrics]
    assert held[2] > 1e-4, held  # step 3 is the first after the resume: its weights are no longer the start's
    assert all(row["entropy"] > 0 for row in metrics)


def test_another_policy_in_the_place_of_the_one_that_the_run_began_with_is_refused(
    policy: Path, tmp_path: Path
) -> None:
    model = tmp_path / "policy"
    shutil.copytree(policy, model)
    own = [f"policy.model={model}", *RUN, f"run.output={tmp_path / 'run'}"]
    recipe = counting_recipe(tmp_path)
    succeed("train", recipe, *own, "train.steps=1")
    weights = load_file(model / "model.safetensors")
    weights[sorted(weights)[0]] += 1e-3
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    refused = run_cli("train", recipe, *own, "train.steps=2", "--allow-change", "train.steps")
    assert refused.exit_code == 2 and "has other weights than at the run's beginning" in refused.output


def test_kl_of_a_run_that_samples_nothing_is_refused(policy: Path, tmp_path: Path) -> None:
    own = [f"policy.model={policy}", f"run.output={tmp_path / 'run'}", "algorithm.kl_weight=0.1"]
    sft = ["rollout.rollouts_per_prompt=0", "rollout.experts_per_prompt=1"]
    refused = run_cli("train", counting_recipe(tmp_path), *own, *sft)
    assert refused.exit_code == 2 and "set algorithm.kl_weight = 0" in refused.output
