"""Loss, gradient and advantages equal those of TRL's own GRPOTrainer; `scripts/parity.sh` runs this.

Differences that are meant:
- TRL adds 1e-4 to the group's standard deviation, this project (and verl) 1e-6;
- TRL's `epsilon_high` of CISPO is the bound itself, here the bound is 1 + `clip_high`;
- TRL averages over all rollouts of a batch, this project over those with a trained token.
"""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from aipo.core.advantages import STD_EPSILON, group_relative
from aipo.core.surrogates import Clip
from support.parity import WIDTH, Sample, clip_of, ours, sample
from support.policies import random_policy

trl = pytest.importorskip("trl", reason="TRL is not installed: scripts/parity.sh makes its environment")
pytestmark = pytest.mark.parity

LOSSES = {
    # name: loss_type, importance_sampling_level
    "grpo": ("grpo", "token"),
    "dapo": ("dapo", "token"),
    "dr_grpo": ("dr_grpo", "token"),
    "gspo": ("grpo", "sequence"),
    "cispo": ("cispo", "token"),
}
TRL_STD_EPSILON = 1e-4


class Table(torch.nn.Module):
    """A policy that is a table of log-probabilities, answering as TRL's patched models do."""

    def __init__(self, log_p: Tensor) -> None:
        super().__init__()
        self.log_p = torch.nn.Parameter(log_p.clone())

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        prompt = torch.zeros_like(self.log_p[:, : input_ids.shape[1] - WIDTH])
        log_probs = torch.cat([prompt, self.log_p], dim=1)
        return SimpleNamespace(log_probs=log_probs, entropy=torch.zeros_like(log_probs))


def trainer_of(name: str, model: Table, clip: Clip) -> Any:
    """A bare GRPOTrainer: the attributes that `_compute_loss` reads, and its own methods."""
    trainer = trl.GRPOTrainer.__new__(trl.GRPOTrainer)
    loss_type, level = LOSSES[name]
    trainer.model = model.train()
    trainer.accelerator = Accelerator(cpu=True)
    trainer.args = SimpleNamespace(delta=None, steps_per_generation=1)
    trainer.loss_type, trainer.importance_sampling_level = loss_type, level
    trainer.epsilon_low = clip.low
    trainer.epsilon_high = 1 + clip.high if name == "cispo" else clip.high
    trainer.beta, trainer.top_entropy_quantile, trainer.off_policy_mask_threshold = 0.0, 1.0, None
    trainer.aux_loss_enabled = trainer.use_vllm = trainer._entropy_bonus_enabled = False
    trainer.vllm_importance_sampling_correction = False
    trainer.max_completion_length, trainer.current_gradient_accumulation_steps = WIDTH, 1
    trainer._metrics = {"train": defaultdict(list)}
    return trainer


def theirs(of: Sample, name: str, clip: Clip | None = None, beta: float = 0.0) -> tuple[Tensor, Tensor]:
    model = Table(of.news)
    inputs = {
        "prompt_ids": torch.ones(len(of.news), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(of.news), 1, dtype=torch.long),
        "completion_ids": torch.full_like(of.mask, 2, dtype=torch.long),
        "completion_mask": of.attended.long(),
        "tool_mask": (of.mask | ~of.attended).long(),
        "advantages": of.advantages,
        "old_per_token_logps": of.olds,
        "ref_per_token_logps": of.references,
        "num_items_in_batch": of.mask.sum(),
    }
    trainer = trainer_of(name, model, clip or clip_of(name))
    trainer.beta, trainer.args.use_bias_correction_kl = beta, False
    loss = trainer._compute_loss(model, inputs)
    loss.backward()
    assert model.log_p.grad is not None
    return loss.detach(), model.log_p.grad


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_trls(name: str, seed: int) -> None:
    of = sample(seed)
    (loss, gradient), (their_loss, their_gradient) = ours(of, name), theirs(of, name)
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-9, abs=1e-12)
    assert torch.allclose(gradient, their_gradient, rtol=1e-9, atol=1e-12)
    assert gradient.any() and not gradient[~of.mask].any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", LOSSES)
def test_kl_to_a_reference_and_its_gradient_are_trls(name: str, seed: int) -> None:
    of = sample(seed)
    (loss, gradient), (their_loss, their_gradient) = ours(of, name, 0.4), theirs(of, name, beta=0.4)
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-9, abs=1e-12)
    assert torch.allclose(gradient, their_gradient, rtol=1e-9, atol=1e-12)
    assert (gradient - ours(of, name)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_the_samples_leave_the_trust_region(name: str) -> None:
    """Or the test above would prove less than it says."""
    samples = [sample(seed) for seed in range(8)]
    inside = [torch.allclose(theirs(of, name)[1], theirs(of, name, Clip(1.0, 99.0))[1]) for of in samples]
    assert inside.count(False) >= 6


def test_a_batch_with_a_rollout_of_no_trained_token_differs_by_the_number_of_rollouts() -> None:
    of = sample(0)
    of.mask[2] = False  # the rollout of one token
    of.attended[2] = False
    loss, gradient = ours(of, "grpo")
    their_loss, their_gradient = theirs(of, "grpo")
    assert loss.item() * 4 / 5 == pytest.approx(their_loss.item(), rel=1e-9)
    assert torch.allclose(gradient * 4 / 5, their_gradient, rtol=1e-9, atol=1e-12)


REWARDS = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]


def trl_advantages(folder: Path, model: Path, scale_rewards: str) -> list[float]:
    """Let a real trainer sample three groups of four and score them with REWARDS."""
    from datasets import Dataset

    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        num_generations=4,
        per_device_train_batch_size=12,
        max_completion_length=2,
        scale_rewards=scale_rewards,
        bf16=False,
    )
    prompts = [{"prompt": text} for text in ("one", "two", "three") for _ in range(4)]
    trainer = trl.GRPOTrainer(
        model=str(model),
        reward_funcs=lambda completions, **_: REWARDS[: len(completions)],
        args=arguments,
        train_dataset=Dataset.from_list(prompts),
    )
    return trainer._generate_and_score_completions(prompts)["advantages"].tolist()


@pytest.mark.parametrize("scale_rewards", ["group", "none"])
def test_advantages_are_trls_but_for_the_epsilon(
    scale_rewards: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = trl_advantages(tmp_path, random_policy(tmp_path_factory, "qwen2.5"), scale_rewards)
    estimator = "group_normalised" if scale_rewards == "group" else "group_centred"
    wanted = []
    for start in (0, 4, 8):
        rewards = torch.tensor(REWARDS[start : start + 4], dtype=torch.float64)
        std = rewards.std().item()
        factor = (std + STD_EPSILON) / (std + TRL_STD_EPSILON) if scale_rewards == "group" else 1.0
        wanted += [factor * a for a in group_relative(rewards.tolist(), estimator)]
    assert found == pytest.approx(wanted, abs=1e-6)
    assert found[4:8] == [0.0] * 4  # no variance
