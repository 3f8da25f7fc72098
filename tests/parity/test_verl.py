"""Advantages and policy losses equal those of verl's core_algos; `scripts/parity.sh` runs this.

Differences that are meant:
- in a group of one verl takes the reward itself as the advantage, here it is exactly 0;
- verl bounds A < 0 a second time (dual clip, ratio 3); it is switched off here, as this project has none;
- verl's mean over a sequence's tokens divides by their number + 1e-8.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aipo.core.advantages import group_relative, whitened
from aipo.core.algorithms import ALGORITHMS
from support.parity import WIDTH, Sample, clip_of, ours, sample

core_algos = pytest.importorskip(
    "verl.trainer.ppo.core_algos", reason="verl is not installed: scripts/parity.sh makes its environment"
)
pytestmark = pytest.mark.parity

LOSSES = {
    "grpo": "vanilla",
    "dapo": "vanilla",
    "dr_grpo": "vanilla",
    "rloo": "vanilla",
    "reinforce_plus_plus": "vanilla",
    "gspo": "gspo",
    "cispo": "cispo",
}
MODES = {
    "token_mean": "token-mean",
    "sequence_mean": "seq-mean-token-mean",
    "sequence_sum": "seq-mean-token-sum",
    "horizon": "seq-mean-token-sum-norm",
}


def theirs(of: Sample, name: str, dual_clip: float = 1e9) -> tuple[Tensor, Tensor]:
    from verl.workers.config import ActorConfig

    clip = clip_of(name)
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        use_dynamic_bsz=True,
        clip_ratio_low=clip.low,
        clip_ratio_high=clip.high,
        clip_ratio_c=dual_clip,
    )
    log_p = of.news.clone().requires_grad_()
    loss, _ = core_algos.get_policy_loss_fn(LOSSES[name])(
        old_log_prob=of.olds,
        log_prob=log_p,
        advantages=of.advantages.unsqueeze(-1).expand(-1, WIDTH),
        response_mask=of.mask.double(),
        loss_agg_mode=MODES[ALGORITHMS[name].aggregation],
        config=config,
    )
    loss.backward()
    assert log_p.grad is not None
    return loss.detach(), log_p.grad


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_verls(name: str, seed: int) -> None:
    of = sample(seed)
    (loss, gradient), (their_loss, their_gradient) = ours(of, name), theirs(of, name)
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-7, abs=1e-9)
    assert torch.allclose(gradient, their_gradient, rtol=1e-7, atol=1e-12)
    assert gradient.any() and not gradient[~of.mask].any()


def test_verls_dual_clip_is_the_only_thing_that_is_switched_off() -> None:
    of = sample(0)
    of.news[:] = of.olds + 2.0  # ratio 7.4
    of.advantages[:] = -1.0
    assert theirs(of, "dapo", 3.0)[0].item() == pytest.approx(3.0)
    assert ours(of, "dapo")[0].item() == pytest.approx(np.exp(2.0))


REWARDS = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.5, 0.0, 0.25]
GROUPS = ["a", "a", "b", "a", "b", "b", "c", "c", "d", "d", "d"]
LENGTHS = [3, 7, 1, 4, 2, 5, 6, 1, 2, 7, 3]


def verl_advantages(function: Callable[..., Any], **more: Any) -> list[float]:
    """One advantage a rollout; verl repeats it at each of its tokens."""
    mask = torch.tensor([[float(t < n) for t in range(WIDTH)] for n in LENGTHS], dtype=torch.float64)
    rewards = torch.zeros_like(mask)
    for i, (reward, length) in enumerate(zip(REWARDS, LENGTHS, strict=True)):
        rewards[i, length - 1] = reward
    advantages, _ = function(token_level_rewards=rewards, response_mask=mask, **more)
    for row, length in zip(advantages, LENGTHS, strict=True):
        assert torch.allclose(row[:length], row[0]) and not row[length:].any()
    return advantages[:, 0].tolist()


def grouped(estimator: str) -> list[float]:
    found = [0.0] * len(REWARDS)
    for name in set(GROUPS):
        at = [i for i, each in enumerate(GROUPS) if each == name]
        for i, a in zip(at, group_relative([REWARDS[i] for i in at], estimator), strict=True):
            found[i] = a
    return found


@pytest.mark.parametrize(
    ("estimator", "function", "more"),
    [
        ("group_normalised", "compute_grpo_outcome_advantage", {}),
        (
            "group_centred",
            "compute_grpo_outcome_advantage",
            {"norm_adv_by_std_in_grpo": False},
        ),
        ("leave_one_out", "compute_rloo_outcome_advantage", {}),
        ("leave_one_out", "compute_rloo_vectorized_outcome_advantage", {}),
    ],
)
def test_group_advantages_are_verls(estimator: str, function: str, more: dict[str, Any]) -> None:
    theirs = verl_advantages(getattr(core_algos, function), index=np.array(GROUPS), **more)
    # verl's means and deviations of a group are float32 sums
    assert grouped(estimator) == pytest.approx(theirs, rel=1e-6, abs=1e-6)


def test_reinforce_plus_plus_is_verls() -> None:
    from verl.trainer.config import AlgoConfig

    theirs = verl_advantages(
        core_algos.compute_reinforce_plus_plus_outcome_advantage, config=AlgoConfig(gamma=1.0)
    )
    assert whitened(grouped("batch_normalised"), LENGTHS) == pytest.approx(theirs, abs=1e-6)


def test_reinforce_plus_plus_with_baseline_is_verls() -> None:
    theirs = verl_advantages(
        core_algos.compute_reinforce_plus_plus_baseline_outcome_advantage, index=np.array(GROUPS)
    )
    centred = grouped("group_centred_batch_normalised")
    assert whitened(centred, LENGTHS) == pytest.approx(theirs, abs=1e-6)


def test_a_group_of_one_is_where_verl_and_this_project_differ() -> None:
    mask, rewards = torch.ones(1, 1), torch.ones(1, 1)
    for name in ("compute_grpo_outcome_advantage", "compute_rloo_outcome_advantage"):
        advantages, _ = getattr(core_algos, name)(
            token_level_rewards=rewards, response_mask=mask, index=np.array(["a"])
        )
        assert advantages.item() == pytest.approx(1.0)
    for estimator in ("group_normalised", "leave_one_out"):
        assert group_relative([1.0], estimator) == [0.0]
