"""The plugin's loss on verl's jagged tensors is our own trainer's, and without feedback verl's own.

`scripts/parity.sh` runs this. The rollouts go the whole way of their numbers: credit on the driver as
`integrations/verl/credit.py` gives it, mini-batch by mini-batch, then the loss on nested tensors as verl's
workers hold them, in micro-batches and on ranks.
"""

from itertools import product
from random import Random

import pytest
import torch
from torch import Tensor

from aipo.core.algorithms import ALGORITHMS
from aipo.core.coefficients import COEFFICIENTS
from aipo.core.types import Source
from aipo.integrations.verl.loss import AipoLoss, LossError
from aipo.integrations.verl.plan import Plan
from support.verl_batches import (
    HORIZON,
    LOST,
    UNGRADED,
    WON,
    Batch,
    batch_of,
    data_of,
    facts_of,
    jagged,
    own,
    plan_of,
    plugin,
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


@pytest.mark.parametrize(("name", "coefficient"), list(product([*ON_VERL, "gppo"], COEFFICIENTS)))
def test_loss_and_gradient_are_our_own_trainers(name: str, coefficient: str) -> None:
    algorithm = settings(name, coefficient, clip_low=0.2, clip_high=0.28)
    for seed in range(3):
        of = batch_of(seed)
        ours = own(of, algorithm, 2)
        same(ours, plugin(of, plan_of(algorithm), 2))
        assert any(gradient.any() for _, gradients in ours for gradient in gradients.values())


@pytest.mark.parametrize("rule", ["signed", "signed_unit", "positive", "over_solo"])
@pytest.mark.parametrize("split", [True, False])
def test_every_rule_of_feedback_and_baseline_is_our_own_trainers(rule: str, split: bool) -> None:
    algorithm = settings("dapo", "floored", feedback_advantage=rule, split_baselines=split)
    of = batch_of(7)
    same(own(of, algorithm, 1), plugin(of, plan_of(algorithm), 1))


@pytest.mark.parametrize("name", ["dapo", "grpo", "dr_grpo", "rloo"])
def test_ungraded_rollouts_leave_group_and_denominator_as_in_our_own_trainer(name: str) -> None:
    algorithm = settings(name, "floored")
    for seed in range(4):
        of = batch_of(seed, verdicts=(WON, LOST, UNGRADED))
        assert any(m.grade.verdict is UNGRADED for m in of.members)
        same(own(of, algorithm, 1), plugin(of, plan_of(algorithm), 1))


@pytest.mark.parametrize("coefficient", ["floored", "agent", "ratio"])
def test_the_correction_for_another_sampler_is_our_own_trainers(coefficient: str) -> None:
    algorithm = settings("dapo", coefficient, mismatch_truncation=1.02)
    of = batch_of(3)
    same(own(of, algorithm, 2), plugin(of, plan_of(algorithm), 2))


@pytest.mark.parametrize(("ranks", "micro"), [(1, 16), (1, 1), (2, 3), (4, 2)])
def test_ranks_and_microbatches_change_no_gradient(ranks: int, micro: int) -> None:
    plan = plan_of(settings("grpo", "floored"))
    of = batch_of(5, verdicts=(WON, LOST, UNGRADED))
    same(plugin(of, plan, 1), plugin(of, plan, 1, ranks, micro))


# verl's own loss

VERLS = {"gspo": "gspo", "cispo": "cispo"}
MODES = {
    "token_mean": "token-mean",
    "sequence_mean": "seq-mean-token-mean",
    "sequence_sum": "seq-mean-token-sum",
    "horizon": "seq-mean-token-sum-norm",
}


def verls_own(of: Batch, name: str, plan: Plan, given: list[float]) -> tuple[Tensor, dict[int, Tensor]]:
    """verl's `ppo_loss` on the same jagged tensors, in one batch, its dual clip out of reach."""
    from verl.workers.config import ActorConfig
    from verl.workers.config.actor import PolicyLossConfig
    from verl.workers.utils.losses import ppo_loss

    clip = plan.objective.surrogate.clip
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=4,
        use_dynamic_bsz=True,
        clip_ratio_low=clip.low,
        clip_ratio_high=clip.high,
        clip_ratio_c=1e9,
        loss_agg_mode=MODES[plan.aggregation],
        loss_scale_factor=HORIZON if plan.aggregation == "horizon" else None,
        policy_loss=PolicyLossConfig(loss_mode=VERLS.get(name, "vanilla")),
    )
    facts = [facts_of(member) for member in of.members]
    rows = list(range(len(facts)))
    leaves = {i: of.new[i].clone().requires_grad_() for i in rows}
    data = data_of(of, rows, facts, [(0.0, 0.0, given[i]) for i in rows])
    data["response_mask"] = jagged([(s == Source.POLICY).long() for s in data["token_sources"].unbind()])
    tokens = sum(f.policy_tokens for f in facts)
    for key, value in {"dp_size": 1, "batch_num_tokens": tokens, "global_batch_size": len(rows)}.items():
        data.set_non_tensor(key, value)
    loss, _ = ppo_loss(config, {"log_probs": whole(of, leaves)}, data)
    loss.backward()
    return loss.detach(), {i: leaf.grad for i, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("coefficient", ["floored", "masked", "ratio"])
@pytest.mark.parametrize("name", ON_VERL)
def test_without_feedback_it_is_verls_own_loss(name: str, coefficient: str) -> None:
    clip = {"gspo": (0.05, 0.07), "cispo": (1.0, 0.3)}.get(name, (None, None))
    algorithm = settings(name, coefficient, clip_low=clip[0], clip_high=clip[1])
    plan = plan_of(algorithm)
    for seed in range(4):
        of = batch_of(seed, feedback=False)
        given = [Random(seed + i).uniform(-2.0, 2.0) for i in range(len(of.members))]
        ours = plugin(of, plan, 1, micro=99, policy=given)
        same(ours, [verls_own(of, name, plan, given)])
        assert any(gradient.any() for gradient in ours[0][1].values())


# what must not pass silently


def test_a_batch_without_sources_is_refused() -> None:
    of = batch_of(0)
    plan = plan_of(settings("dapo", "floored"))
    data = data_of(of, [0], [facts_of(m) for m in of.members], [(1.0, 0.0, 0.0)])
    data.set_non_tensor("dp_size", 1)
    del data["token_sources"]
    with pytest.raises(LossError, match="token_sources"):
        AipoLoss(plan)({"log_probs": whole(of, {0: of.new[0]})}, data)


def test_sources_of_another_length_than_the_response_are_refused() -> None:
    """A padding row of verl's is a copy of the first row that keeps the first row's sources."""
    of = batch_of(0)
    plan = plan_of(settings("dapo", "floored"))
    data = data_of(of, [0, 1], [facts_of(m) for m in of.members], [(1.0, 0.0, 0.0)] * 2)
    data.set_non_tensor("dp_size", 1)
    longer = [torch.cat([row, row]) for row in data["token_sources"].unbind()]
    data["token_sources"] = jagged(longer)
    with pytest.raises(LossError, match="row 0"):
        AipoLoss(plan)({"log_probs": whole(of, {0: of.new[0], 1: of.new[1]})}, data)


def test_the_loss_goes_to_the_workers_by_pickle() -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    plan = plan_of(settings("cispo", "agent"))
    sent = cloudpickle.dumps(AipoLoss(plan))
    assert cloudpickle.loads(sent) == AipoLoss(plan)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_plan_survives_its_table(name: str) -> None:
    plan = plan_of(settings(name, "shaped"))
    assert Plan.from_table(plan.table()) == plan
