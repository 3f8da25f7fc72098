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

from aipo.core.advantages import Advantage
from aipo.core.batch import collate, weighted_rows
from aipo.core.objective import ObjectiveSettings, objective_loss
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Condition, Source, StopReason, Verdict
from aipo.grading import Grade
from aipo.integrations.verl.plan import Plan
from aipo.rollout.episode import Rollout
from aipo.rollout.group import MemberRollout

pytest.importorskip("verl", reason="verl is not installed: scripts/verl.sh makes its environment")
tq = pytest.importorskip(
    "transfer_queue", reason="verl's transfer queue is not installed: scripts/verl.sh makes its environment"
)
ray = pytest.importorskip("ray", reason="Ray is not installed: scripts/verl.sh makes its environment")
pytestmark = pytest.mark.verl

from aipo.integrations.verl.credit import credits_of  # noqa: E402
from aipo.integrations.verl.loss import LossError  # noqa: E402
from aipo.integrations.verl.rows import forget_advantages, read_rows, write_credits  # noqa: E402

END = 3
PLAN = Plan(consulting=2, solo=2, max_response_tokens=16)
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
    return [
        MemberRollout(
            id=str(i),
            condition=condition,
            rollout=Rollout(
                stream=s, response="", policy_text="", stop=StopReason.END, consultations=(), consult_spans=()
            ),
            grade=Grade(verdict, "why"),
        )
        for i, (condition, verdict, s) in enumerate(table)
    ]


def write(partition: str, found: list[MemberRollout], drop: int | None = None) -> list[str]:
    """As `AgentLoopWorkerTQ._agent_loop_postprocess` does, in a process of its own; returns the keys."""
    import transfer_queue as tq
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    from aipo.integrations.verl.output import Measured, output_of

    tq.init()
    keys = []
    for session, member in enumerate(found):
        output = output_of(member, (1, 1), END, Measured(0.1, (1,), 1))
        field = output.as_dict() | {"uid": "u", "session_id": session}
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


def loss_in_a_worker(batch: Any, plan: Plan) -> tuple[float, list[float], dict[str, float]]:
    """As verl's actor worker: all fields of the batch's keys, then the loss on jagged log-probabilities."""
    import transfer_queue as tq

    from aipo.integrations.verl.loss import AipoLoss

    tq.init()
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id)
    lengths = (data["prompts"].offsets().diff() + data["responses"].offsets().diff()).tolist()
    leaf = torch.linspace(-2.0, -0.1, sum(lengths)).requires_grad_()
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    log_probs = torch.nested.nested_tensor_from_jagged(leaf, offsets)
    data.set_non_tensor("dp_size", 1)
    loss, metrics = AipoLoss(plan)({"log_probs": log_probs}, data)
    loss.backward()
    assert leaf.grad is not None
    return loss.item(), leaf.grad.tolist(), {name: m.aggregate() for name, m in metrics.items()}


def driver(partition: str, found: list[MemberRollout], multiple: int) -> tuple[Any, Any, Any]:
    """Write in another process, pad as verl does, give credit, write it: the trainer's part of a step."""
    from transfer_queue import KVBatchMeta
    from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size

    keys = ray.get(ray.remote(write).remote(partition, found))
    tags = tq.kv_list(partition)[partition]
    batch = KVBatchMeta(keys=keys, tags=[tags[key] for key in keys], partition_id=partition)
    batch = upsample_batch_to_divisible_size(batch, multiple, END)
    rows = read_rows(batch)
    credits = credits_of([row.facts for row in rows], [list(range(len(rows)))], PLAN)
    write_credits(batch, rows, credits)
    return batch, rows, credits


def test_sources_reach_the_loss_in_another_process_and_padding_trains_nothing(cluster: None) -> None:
    found = members()
    batch, rows, credits = driver("one", found, multiple=4)
    assert len(rows) == 8 and [row.facts.padding for row in rows] == [False] * 5 + [True] * 3
    given = [0.7, -0.7, -0.3, 0.3, 9.0, 9.0, 9.0, 9.0]  # verl's estimator; nonsense where nothing counts
    old = [torch.full((len(row.sources),), -1.0) for row in rows]
    from tensordict import TensorDict

    fields = {
        "advantages": [torch.full((len(row.sources),), a) for row, a in zip(rows, given, strict=True)],
        "old_log_probs": old,
    }
    nested = {name: torch.nested.as_nested_tensor(v, layout=torch.jagged) for name, v in fields.items()}
    tq.kv_batch_put(keys=batch.keys, partition_id="one", fields=TensorDict(nested, batch_size=len(rows)))
    loss, gradient, metrics = ray.get(ray.remote(loss_in_a_worker).remote(batch, PLAN))

    # the same rollouts, as this package's own trainer sees them
    streams = [m.rollout.stream for m in found[:4] if m.rollout]
    feedback = [credit.feedback for credit in credits[:4]]
    assert feedback == [0.5, 0.0, 0.0, 0.5]  # over the solo siblings' mean of 1/2
    advantages = [Advantage(a, f) for a, f in zip(given[:4], feedback, strict=True)]
    own = collate(
        [
            _with_old(row, -1.0)
            for row in weighted_rows(streams, advantages, "token_mean", feedback_trained=True)
        ],
        0,
    )
    lengths = [127 + 1 if row.facts.padding else len(m.rollout.stream) for row, m in _paired(rows, found)]
    line = torch.linspace(-2.0, -0.1, sum(lengths))
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    width = own.ids.shape[1]
    # position t of a model's output speaks of token t + 1
    shifted = [
        torch.nn.functional.pad(line[start : start + len(t) - 1], (1, width - len(t)))
        for start, t in zip(starts, streams, strict=False)
    ]
    leaf = torch.stack(shifted).requires_grad_()
    wanted = objective_loss(leaf, own, ObjectiveSettings())
    wanted.backward()
    assert leaf.grad is not None
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    for start, t, row_gradient in zip(starts, streams, leaf.grad, strict=False):
        assert gradient[start : start + len(t) - 1] == pytest.approx(
            row_gradient[1 : len(t)].tolist(), abs=1e-6
        )
    assert not any(gradient[starts[4] :])  # the ungraded row, and verl's padding
    assert metrics["actor/aipo_sum/feedback_tokens"] == 6.0
    assert metrics["actor/aipo_sum/policy_tokens"] == sum(t.count(Source.POLICY) for t in streams)


def _paired(rows: list[Any], found: list[MemberRollout]) -> list[tuple[Any, Any]]:
    return [(row, found[min(i, len(found) - 1)]) for i, row in enumerate(rows)]


def _with_old(row: Any, old: float) -> Any:
    from dataclasses import replace

    segments = [
        replace(s, log_probs=(old,) * len(s.ids)) if s.source is Source.POLICY else s
        for s in row.stream.segments
    ]
    return replace(row, stream=TokenStream(tuple(segments)))


def test_verls_own_estimator_sees_groups_without_ungraded_rows(cluster: None) -> None:
    """After credit, verl's GRPO on what the queue holds is `core`'s within each condition."""
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    batch, rows, _ = driver("two", members(), multiple=1)
    data = tq.kv_batch_get(
        keys=batch.keys, partition_id="two", select_fields=["uid", "rm_scores", "response_mask"]
    )
    padded = {name: data[name].to_padded_tensor(0.0) for name in ("rm_scores", "response_mask")}
    names = data["uid"].tolist() if hasattr(data["uid"], "tolist") else list(data["uid"])
    advantages, _ = compute_grpo_outcome_advantage(padded["rm_scores"], padded["response_mask"], names)
    first = [row[padded["response_mask"][i].bool()][:1].tolist() for i, row in enumerate(advantages)]
    assert first == [pytest.approx([x], abs=1e-5) if x else [] for x in (0.7071, -0.7071, -0.7071, 0.7071, 0)]
    assert len(set(names)) == 3  # consulting, solo, and the row that is compared with nothing
    assert [bool(tag.get("is_padding")) for tag in batch.tags] == [False] * 4 + [True]
    stored = tq.kv_list("two")["two"]
    assert stored[batch.keys[4]]["is_padding"] is True and rows[4].about.reason == "why"


def test_lone_rows_can_be_given_no_advantage(cluster: None) -> None:
    from tensordict import TensorDict

    batch, rows, _ = driver("three", members(), multiple=1)
    ones = [torch.ones(len(row.sources)) for row in rows]
    nested = torch.nested.as_nested_tensor(ones, layout=torch.jagged)
    fields = TensorDict({"advantages": nested}, batch_size=len(rows))
    tq.kv_batch_put(keys=batch.keys, partition_id="three", fields=fields)
    forget_advantages(batch, [1, 3], rows)
    data = tq.kv_batch_get(keys=batch.keys, partition_id="three", select_fields=["advantages"])
    assert [bool(row.any()) for row in data["advantages"].unbind()] == [True, False, True, False, True]


def test_one_record_without_sources_stops_the_step(cluster: None) -> None:
    """The transfer queue drops a field of a whole batch, silently, where one record lacks it."""
    from transfer_queue import KVBatchMeta

    keys = ray.get(ray.remote(write).remote("four", members(), 2))
    tags = tq.kv_list("four")["four"]
    batch = KVBatchMeta(keys=keys, tags=[tags[key] for key in keys], partition_id="four")
    with pytest.raises((LossError, ValueError), match="token_sources"):
        read_rows(batch)
