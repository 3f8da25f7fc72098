"""The plugin's loss on verl's jagged tensors is our own trainer's, and without feedback verl's own.

`scripts/parity.sh` runs this. The rollouts go the whole way of their numbers: credit on the driver as
`integrations/verl/credit.py` gives it, mini-batch by mini-batch, then the loss on nested tensors as verl's
workers hold them, in micro-batches and on ranks.
"""

from itertools import product
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from aipo.core.algorithms import ALGORITHMS
from aipo.core.coefficients import COEFFICIENTS
from aipo.core.types import Source
from aipo.integrations.verl.loss import AipoLoss, LossError
from aipo.training.algorithm import base_algorithm, objective_settings
from support.verl_batches import (
    HORIZON,
    LOST,
    UNGRADED,
    WON,
    Batch,
    batch_of,
    data_of,
    jagged,
    own,
    plugin,
    plugin_parts,
    recipe,
    same,
    settings,
    whole,
)

pytest.importorskip("tensordict", reason="verl is not installed: scripts/parity.sh makes its environment")
pytest.importorskip(
    "verl.workers.utils.padding", reason="verl is not installed: scripts/parity.sh makes its environment"
)
pytestmark = pytest.mark.parity

ON_VERL = ("grpo", "dapo", "dr_grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline")
ON_VERL += ("gspo", "cispo")
"""The algorithms that verl offers too; `gppo` runs on the plugin all the same."""


def both(of: Batch, algorithm: Any, number: int = 1, reward: str = "verdict") -> None:
    """Compare both trainers on the same groups."""
    same(own(of, algorithm, number, reward), plugin(of, recipe(algorithm, number, reward=reward)))


@pytest.mark.parametrize(("name", "coefficient"), list(product([*ON_VERL, "gppo"], COEFFICIENTS)))
def test_loss_and_gradient_are_our_own_trainers(name: str, coefficient: str) -> None:
    algorithm = settings(name, coefficient, clip_low=0.2, clip_high=0.28)
    copies = 0
    for seed in range(3):
        of = batch_of(seed)
        ours = own(of, algorithm, 2)
        same(ours, plugin(of, recipe(algorithm, 2)))
        assert any(gradient.any() for _, gradients in ours for gradient in gradients.values())
        copies += sum(name.startswith("copy") for _, gradients in ours for name in gradients)
    assert copies > 0


@pytest.mark.parametrize("rule", ["signed", "signed_unit", "positive", "over_solo", "always"])
@pytest.mark.parametrize("split", [True, False])
def test_every_rule_of_feedback_and_baseline_is_our_own_trainers(rule: str, split: bool) -> None:
    algorithm = settings("dapo", "floored", feedback_advantage=rule, split_baselines=split)
    both(batch_of(7), algorithm)


@pytest.mark.parametrize("name", ["dapo", "grpo", "dr_grpo", "rloo"])
def test_ungraded_rollouts_leave_group_and_denominator_as_in_our_own_trainer(name: str) -> None:
    algorithm = settings(name, "floored")
    for seed in range(4):
        of = batch_of(seed, verdicts=(WON, LOST, UNGRADED))
        assert any(m.grade.verdict is UNGRADED for g in of.groups for m in g.members)
        both(of, algorithm)


@pytest.mark.parametrize("coefficient", ["floored", "agent", "ratio"])
def test_the_correction_for_another_sampler_is_our_own_trainers(coefficient: str) -> None:
    both(batch_of(3), settings("dapo", coefficient, mismatch_truncation=1.02), 2)


@pytest.mark.parametrize(
    "more",
    [
        {"agent_token_price": 0.01},
        {"overlong_buffer_tokens": 24},
        {"kl_weight": 0.1},
        {"entropy_weight": 0.05},
        {"kl_weight": 0.1, "entropy_weight": 0.05, "mismatch_truncation": 1.02},
        {"stripped_copies": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["dapo", "grpo", "reinforce_plus_plus"])
def test_every_part_of_the_method_is_our_own_trainers(name: str, more: dict[str, Any]) -> None:
    changes = []
    for seed in range(3):
        of = batch_of(seed)
        both(of, settings(name, "floored", **more), 2)
        plain, changed = (own(of, settings(name, "floored", **extra), 2) for extra in ({}, more))
        changes.append([loss for loss, _ in plain] != [loss for loss, _ in changed])
    assert any(changes)  # or nothing was compared


@pytest.mark.parametrize(
    ("name", "coefficient"), [("dapo", "shaped"), ("grpo", "likelihood"), ("reinforce_plus_plus", "shaped")]
)
@pytest.mark.parametrize("split", [True, False])
def test_experts_are_our_own_trainers(name: str, coefficient: str, split: bool) -> None:
    """LUFFY: an expert is a correct solo sibling, and all of it is FEEDBACK."""
    algorithm = settings(name, coefficient, feedback_advantage="signed", split_baselines=split)
    for seed in range(3):
        both(batch_of(seed, experts=1, verdicts=(WON, LOST, UNGRADED)), algorithm, 2)


def test_supervised_fine_tuning_is_our_own_trainers() -> None:
    from dataclasses import replace

    of = batch_of(2, experts=1)
    alone = Batch(of.seed, [replace(group, members=()) for group in of.groups])
    algorithm = settings("dapo", "likelihood", feedback_advantage="signed")
    both(alone, algorithm, 2)
    assert all(g.any() for _, gradients in own(alone, algorithm, 2) for g in gradients.values())


def test_random_rewards_are_our_own_trainers() -> None:
    for seed in range(3):
        both(batch_of(seed), settings("dapo", "floored"), 2, "random")


def test_rewards_of_ones_own_are_our_own_trainers() -> None:
    from dataclasses import replace

    from aipo.grading import Grade

    of, rng = batch_of(4), Random(4)
    groups = [
        replace(
            group,
            members=tuple(
                replace(m, grade=Grade(m.grade.verdict, "", reward=rng.uniform(-1, 1))) for m in group.members
            ),
        )
        for group in of.groups
    ]
    both(Batch(of.seed, groups), settings("grpo", "floored"), 2)


@pytest.mark.parametrize(("ranks", "micro"), [(1, 16), (1, 1), (2, 3), (4, 2)])
def test_ranks_and_microbatches_change_no_gradient(ranks: int, micro: int) -> None:
    of, algorithm = batch_of(5, verdicts=(WON, LOST, UNGRADED)), settings("grpo", "floored")
    same(plugin(of, recipe(algorithm, 1)), plugin(of, recipe(algorithm, 1), ranks, micro))


# verl's own loss

VERLS = {"gspo": "gspo", "cispo": "cispo"}
MODES = {
    "token_mean": "token-mean",
    "sequence_mean": "seq-mean-token-mean",
    "sequence_sum": "seq-mean-token-sum",
    "horizon": "seq-mean-token-sum-norm",
}


def verls_own(
    of: Batch, name: str, algorithm: Any, given: dict[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """verl's `ppo_loss` on the same jagged tensors, in one batch, its dual clip out of reach."""
    from verl.workers.config import ActorConfig
    from verl.workers.config.actor import PolicyLossConfig
    from verl.workers.utils.losses import ppo_loss

    base = base_algorithm(algorithm)
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=4,
        use_dynamic_bsz=True,
        clip_ratio_low=base.clip.low,
        clip_ratio_high=base.clip.high,
        clip_ratio_c=1e9,
        loss_agg_mode=MODES[base.aggregation],
        loss_scale_factor=HORIZON if base.aggregation == "horizon" else None,
        policy_loss=PolicyLossConfig(loss_mode=VERLS.get(name, "vanilla")),
    )
    (credits,), names = plugin_parts(of, recipe(algorithm, 1))
    each = {names[id(credit.row.stream)]: credit for credit in credits}
    numbers = {name: of.of(name, credit.row.stream) for name, credit in each.items()}
    leaves = {name: n.new.clone().requires_grad_() for name, n in numbers.items()}
    data = data_of(credits, list(numbers.values()), [given[name] for name in each])
    data["response_mask"] = jagged([(s == Source.POLICY).long() for s in data["token_sources"].unbind()])
    tokens = sum(credit.row.stream.count(Source.POLICY) for credit in credits)
    streams = [credit.row.stream for credit in credits]
    for key, value in {"dp_size": 1, "batch_num_tokens": tokens, "global_batch_size": len(credits)}.items():
        data.set_non_tensor(key, value)
    loss, _ = ppo_loss(config, {"log_probs": whole(streams, list(leaves.values()))}, data)
    loss.backward()
    return loss.detach(), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("coefficient", ["floored", "masked", "ratio"])
@pytest.mark.parametrize("name", ON_VERL)
def test_without_feedback_it_is_verls_own_loss(name: str, coefficient: str) -> None:
    clip = {"gspo": (0.05, 0.07), "cispo": (1.0, 0.3)}.get(name, (None, None))
    algorithm = settings(name, coefficient, clip_low=clip[0], clip_high=clip[1])
    for seed in range(4):
        of = batch_of(seed, feedback=False)
        members = [member.id for group in of.groups for member in group.members]
        given = {member: Random(f"{seed} {member}").uniform(-2.0, 2.0) for member in members}
        ours = plugin(of, recipe(algorithm, 1), micro=99, policy=given)
        same(ours, [verls_own(of, name, algorithm, given)])
        assert any(gradient.any() for gradient in ours[0][1].values())


# what must not pass silently


def loss_and_data(rows: int) -> tuple[AipoLoss, dict[str, Tensor], Any]:
    of, algorithm = batch_of(0), settings("dapo", "floored", kl_weight=0.1, entropy_weight=0.1)
    (credits,), names = plugin_parts(of, recipe(algorithm, 1))
    credits = credits[:rows]
    numbers = [of.of(names[id(credit.row.stream)], credit.row.stream) for credit in credits]
    data = data_of(credits, numbers)
    data.set_non_tensor("dp_size", 1)
    log_probs = whole([credit.row.stream for credit in credits], [n.new for n in numbers])
    return AipoLoss(objective_settings(algorithm)), {"log_probs": log_probs, "entropy": log_probs}, data


@pytest.mark.parametrize("name", ["token_sources", "ref_log_prob"])
def test_a_batch_without_a_field_that_is_read_is_refused(name: str) -> None:
    loss, output, data = loss_and_data(1)
    loss(output, data)
    del data[name]
    with pytest.raises(LossError, match=name):
        loss(output, data)


def test_an_entropy_that_is_not_there_is_refused() -> None:
    loss, output, data = loss_and_data(1)
    with pytest.raises(LossError, match="entropy"):
        loss({"log_probs": output["log_probs"]}, data)


def test_sources_of_another_length_than_the_response_are_refused() -> None:
    """A padding row of verl's is a copy of the first row that keeps the first row's sources."""
    loss, output, data = loss_and_data(2)
    longer = [torch.cat([row, row]) for row in data["token_sources"].unbind()]
    data["token_sources"] = jagged(longer)
    with pytest.raises(LossError, match="row 0"):
        loss(output, data)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_loss_goes_to_the_workers_by_pickle(name: str) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    loss = AipoLoss(objective_settings(settings(name, "agent", kl_weight=0.1)), 2.0)
    assert cloudpickle.loads(cloudpickle.dumps(loss)) == loss
