"""Local Ray and verl's transfer queue carry the source stream from process to process to the loss.

One process writes rollouts as verl's agent-loop worker does, one record a call; the driver pads the batch
with verl's own padding, gives credit and writes it; a third process reads rows as verl's actor worker does
and takes the loss. It must be the loss of the same rollouts here.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from aipo.config.settings import RolloutSettings, Settings, TrainSettings
from aipo.core.batch import collate
from aipo.core.objective import ObjectiveSettings, objective_loss
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Condition, ConsultOutcome, Source, StopReason, Verdict
from aipo.grading import Grade
from aipo.rollout.episode import Consultation, Rollout
from aipo.rollout.group import MemberRollout

pytest.importorskip("verl", reason="verl is not installed: scripts/verl.sh makes its environment")
tq = pytest.importorskip(
    "transfer_queue", reason="verl's transfer queue is not installed: scripts/verl.sh makes its environment"
)
ray = pytest.importorskip("ray", reason="Ray is not installed: scripts/verl.sh makes its environment")
pytestmark = pytest.mark.verl

from aipo.integrations.verl.credit import rows_by_minibatch, taught_by  # noqa: E402
from aipo.integrations.verl.groups import read_groups  # noqa: E402
from aipo.integrations.verl.loss import LossError  # noqa: E402
from aipo.integrations.verl.rows import (  # noqa: E402
    Layout,
    forget_lone_advantages,
    laid_out,
    write_advantages,
    write_credits,
)

END = 3
RECIPE = Settings(
    rollout=RolloutSettings(max_response_tokens=16),
    train=TrainSettings(minibatches_per_step=1, prompts_per_step=1),
)
SOLO = (9, 9, 9)
WON, LOST, UNGRADED = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNGRADED


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    ray.init(num_cpus=16, include_dashboard=False, object_store_memory=200_000_000)
    from omegaconf import OmegaConf

    backend = {"storage_backend": "SimpleStorage"}
    storage = {"SimpleStorage": {"total_storage_size": 1000, "num_data_storage_units": 1}}
    tq.init(OmegaConf.create({"enable": True, "backend": backend | storage}))
    yield
    tq.close()
    ray.shutdown()


def stream(policy: int, feedback: int, prompt: int) -> TokenStream:
    def sampled(n: int) -> Segment:
        return Segment(Source.POLICY, tuple(range(10, 10 + n)), tuple(-0.5 - 0.1 * i for i in range(n)))

    segments = [Segment(Source.PROMPT, (1,) * prompt), sampled(policy)]
    if feedback:
        segments += [Segment(Source.FEEDBACK, (7,) * feedback), Segment(Source.SCAFFOLD, (8,)), sampled(1)]
    return TokenStream(tuple(segments))


def members() -> list[MemberRollout]:
    """One group: two consulting rollouts, two solo ones, and a third solo one that could not be graded."""
    table = [
        (Condition.CONSULTING, WON, stream(3, 4, 5)),
        (Condition.CONSULTING, LOST, stream(2, 2, 5)),
        (Condition.SOLO, LOST, stream(6, 0, 2)),
        (Condition.SOLO, WON, stream(1, 0, 2)),
        (Condition.SOLO, UNGRADED, stream(4, 0, 2)),
    ]
    asked = Consultation(
        agent="verify",
        request="?",
        outcome=ConsultOutcome.ANSWERED,
        reply="!",
        reply_tokens=2,
        detail="",
        context="",
        latency_s=0.1,
    )
    return [
        MemberRollout(
            id=f"p#{i}",
            condition=condition,
            rollout=Rollout(
                stream=s,
                response="",
                policy_text="",
                stop=StopReason.END,
                consultations=(asked,) if condition is Condition.CONSULTING else (),
                consult_spans=((7, 9), (12, 13)) if i == 0 else (),
            ),
            grade=Grade(verdict, "why"),
        )
        for i, (condition, verdict, s) in enumerate(table)
    ]


def write(partition: str, found: list[MemberRollout], drop: int | None = None) -> list[str]:
    """As `AgentLoopWorkerTQ._agent_loop_postprocess` does, in a process of its own; returns the keys."""
    import transfer_queue as tq
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    from aipo.integrations.verl.output import Around, Measured, output_of

    tq.init()
    keys = []
    for session, member in enumerate(found):
        around = Around(prompt_ids=(1, 1), solo_prompt_ids=SOLO, end_id=END)
        output = output_of(member, around, Measured(0.1, (1,), 1))
        problem = {"id": "p", "text": "?", "gold": "!", "stratum": "all", "more": ""}
        field = output.as_dict() | {"uid": "u", "session_id": session}
        field["extra_info"] = {"index": 0, "problem": problem}
        if session == drop:
            del field["token_sources"]
        field["loss_mask"] = field["response_mask"]
        field["input_ids"] = torch.cat([field["prompts"], field["responses"]])
        field["position_ids"] = torch.arange(len(field["input_ids"]))
        keys.append(f"u_{session}_0")
        lengths = {"seq_len": len(field["input_ids"]), "min_global_steps": 1, "max_global_steps": 1}
        tags = [{"status": "success", **lengths}]
        tq.kv_batch_put(
            keys=keys[-1:], partition_id=partition, fields=list_of_dict_to_tensordict([field]), tags=tags
        )
    return keys


def loss_in_a_worker(batch: Any) -> tuple[float, list[float], dict[str, float]]:
    """As verl's actor worker: all fields of the batch's keys, then the loss on jagged log-probabilities."""
    import transfer_queue as tq

    from aipo.integrations.verl.loss import AipoLoss

    tq.init()
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id)
    lengths = (data["prompts"].offsets().diff() + data["responses"].offsets().diff()).tolist()
    assert lengths == data["input_ids"].offsets().diff().tolist()
    leaf = torch.linspace(-2.0, -0.1, sum(lengths)).requires_grad_()
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    log_probs = torch.nested.nested_tensor_from_jagged(leaf, offsets)
    data.set_non_tensor("dp_size", 1)
    loss, metrics = AipoLoss(ObjectiveSettings())({"log_probs": log_probs}, data)
    loss.backward()
    assert leaf.grad is not None
    return loss.item(), leaf.grad.tolist(), {name: m.aggregate() for name, m in metrics.items()}


def driver(partition: str, found: list[MemberRollout], ranks: int = 1) -> Layout:
    """Write in another process, give credit, lay out, write it: the trainer's part of a step."""
    from transfer_queue import KVBatchMeta

    keys = ray.get(ray.remote(write).remote(partition, found))
    tags = tq.kv_list(partition)[partition]
    batch = KVBatchMeta(keys=keys, tags=[tags[key] for key in keys], partition_id=partition)
    drawn = read_groups(batch)
    (group,) = drawn.groups
    assert group.members == tuple(ungraded_as_scaffold(found))
    parts = rows_by_minibatch(
        taught_by(drawn.groups, RECIPE.algorithm, RECIPE), drawn.keys, RECIPE.algorithm, RECIPE
    )
    layout = laid_out(batch, parts, ranks, END, "seqlen")
    write_credits(layout)
    write_advantages(layout)
    return layout


def ungraded_as_scaffold(found: list[MemberRollout]) -> list[MemberRollout]:
    """What nothing trains on is carried as SCAFFOLD; log-probabilities have the precision of float32."""
    from dataclasses import replace

    members = []
    for session, member in enumerate(found):
        assert member.rollout is not None
        lost = member.grade.verdict is UNGRADED
        segments = [
            Segment(Source.SCAFFOLD, s.ids)
            if lost and at
            else replace(s, log_probs=tuple(torch.tensor(s.log_probs).tolist()))
            if s.source is not Source.FEEDBACK
            else replace(s, log_probs=(0.0,) * len(s.ids))
            for at, s in enumerate(member.rollout.stream.segments)
        ]
        members.append(
            replace(
                member,
                id=f"p#{session}",
                rollout=replace(member.rollout, stream=TokenStream(tuple(segments))),
            )
        )
    return members


def test_the_rows_of_a_step_reach_the_loss_in_another_process(cluster: None) -> None:
    """A group with a copy on four ranks: three rows of padding, and the loss of the same rows here."""
    found = members()
    layout = driver("one", found, ranks=4)
    batch = layout.batch
    assert len(batch) == 8 and layout.rows_of_minibatch == 8
    copies = [key for key, credit in layout.credits.items() if credit.is_copy]
    assert len(layout.credits) == 5 and len(copies) == 1
    assert not tq.kv_list("one")["one"].keys() - set(batch.keys)  # the ungraded row is forgotten
    copy = tq.kv_batch_get(keys=copies, partition_id="one")
    assert copy["prompts"].unbind()[0].tolist() == list(SOLO)
    assert copy["responses"].unbind()[0].tolist() == [10, 11, 7, 7, 7, 10]
    old = {
        key: [-1.0] * (len(c.row.stream) - c.row.stream.prompt_length) for key, c in layout.credits.items()
    }
    from tensordict import TensorDict

    jagged = [torch.tensor(old.get(key, [-1.0])) for key in batch.keys]
    fields = {"old_log_probs": torch.nested.as_nested_tensor(jagged, layout=torch.jagged)}
    tq.kv_batch_put(keys=batch.keys, partition_id="one", fields=TensorDict(fields, batch_size=len(batch)))
    loss, gradient, metrics = ray.get(ray.remote(loss_in_a_worker).remote(batch))

    lengths = [len(layout.credits[k].row.stream) if k in layout.credits else 128 for k in batch.keys]
    log_p = torch.linspace(-2.0, -0.1, sum(lengths))
    starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    own, expected = torch.zeros(()), torch.zeros_like(log_p)
    for at, key in enumerate(batch.keys):
        if key not in layout.credits:
            assert not any(gradient[starts[at] : starts[at + 1]])  # verl's padding
            continue
        row = layout.credits[key].row
        given = collate([_with_old(row, -1.0)], 0)
        leaf = torch.cat([torch.zeros(1), log_p[starts[at] : starts[at + 1] - 1]]).requires_grad_()
        part = objective_loss(leaf.unsqueeze(0), given, ObjectiveSettings())
        part.backward()
        own += part.detach()
        expected[starts[at] : starts[at + 1] - 1] = leaf.grad[1:]  # type: ignore[index]
    assert loss == pytest.approx(own.item(), abs=1e-6)
    assert gradient == pytest.approx(expected.tolist(), abs=1e-6)
    assert any(gradient[starts[batch.keys.index(copies[0])] :][:9])
    assert metrics["actor/aipo_sum/feedback_tokens"] == 12.0


def _with_old(row: Any, old: float) -> Any:
    from dataclasses import replace

    segments = [
        replace(s, log_probs=(old,) * len(s.ids)) if s.source is Source.POLICY else s
        for s in row.stream.segments
    ]
    return replace(row, stream=TokenStream(tuple(segments)))


def test_verls_own_estimator_sees_groups_without_ungraded_rows_and_copies(cluster: None) -> None:
    """After credit, verl's GRPO on what the queue holds is `core`'s within each condition."""
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    layout = driver("two", members())
    wanted = ["uid", "rm_scores", "response_mask", "advantages"]
    data = tq.kv_batch_get(keys=layout.batch.keys, partition_id="two", select_fields=wanted)
    padded = {name: data[name].to_padded_tensor(0.0) for name in wanted[1:]}
    names = data["uid"].tolist() if hasattr(data["uid"], "tolist") else list(data["uid"])
    advantages, _ = compute_grpo_outcome_advantage(padded["rm_scores"], padded["response_mask"], names)
    assert torch.allclose(advantages, padded["advantages"], atol=1e-5) and bool(advantages.any())
    assert len(set(names)) == 3  # consulting, solo, and the copy, which is compared with nothing
    padding = [tag.get("is_padding", False) for tag in layout.batch.tags]
    assert padding == [layout.credits[key].is_copy for key in layout.batch.keys]


def test_lone_rows_can_be_given_no_advantage(cluster: None) -> None:
    from tensordict import TensorDict

    layout = driver("three", [members()[0], *members()[2:4]])
    keys = layout.batch.keys
    ones = [
        torch.ones(len(c.row.stream) - c.row.stream.prompt_length) for c in map(layout.credits.get, keys) if c
    ]
    nested = torch.nested.as_nested_tensor(ones, layout=torch.jagged)
    tq.kv_batch_put(
        keys=keys, partition_id="three", fields=TensorDict({"advantages": nested}, batch_size=len(keys))
    )
    forget_lone_advantages(layout)
    data = tq.kv_batch_get(keys=keys, partition_id="three", select_fields=["advantages"])
    kept = {key: bool(row.any()) for key, row in zip(keys, data["advantages"].unbind(), strict=True)}
    assert {layout.credits[key].baseline: taken for key, taken in kept.items()} == {
        "0/consulting": False,
        "0/solo": True,
        "none": False,
    }


def test_one_record_without_sources_stops_the_step(cluster: None) -> None:
    """The transfer queue drops a field of a whole batch, silently, where one record lacks it."""
    from transfer_queue import KVBatchMeta

    keys = ray.get(ray.remote(write).remote("four", members(), 2))
    tags = tq.kv_list("four")["four"]
    batch = KVBatchMeta(keys=keys, tags=[tags[key] for key in keys], partition_id="four")
    with pytest.raises((LossError, ValueError), match="token_sources"):
        read_groups(batch)
