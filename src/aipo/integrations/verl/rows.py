"""The rows of a step in verl's transfer queue: read, and written back with what they are credited with.

What is written has one value for each response token of each row, padding rows included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transfer_queue as tq
from tensordict import NonTensorStack, TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta

from aipo.core.types import Source, Verdict
from aipo.integrations.verl.about import ABOUT, About
from aipo.integrations.verl.credit import RowCredit, RowFacts
from aipo.integrations.verl.loss import FEEDBACK_ADVANTAGES, SOURCES, WEIGHTS, LossError

PADDING = "is_padding"
"""verl's tag of rows that fill up a batch; its own metrics leave them out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One row: its facts, what the rollout said of itself, its sources and its score."""

    facts: RowFacts
    about: About
    sources: Tensor
    score: Tensor


def read_rows(batch: KVBatchMeta) -> list[StepRow]:
    """Return the rows of a batch, in its order. Raises `LossError` for rows of another agent loop."""
    wanted = ["uid", SOURCES, "extra_fields", "rm_scores", "response_mask"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=wanted)
    if missing := [name for name in wanted if name not in data]:
        raise LossError(
            f"rows of this step have no {missing}: they did not all come from the agent loop `aipo`; set "
            "rollout.agent.default_agent_loop=aipo, and write the data with `aipo data export`"
        )
    columns = (_list(data["uid"]), _list(data["extra_fields"]), data["rm_scores"], data["response_mask"])
    uids, extras, scores, masks = columns
    sources = data[SOURCES]
    return [
        _row(str(uids[i]), extras[i], sources[i], (scores[i], masks[i]), batch.tags[i])
        for i in range(len(batch.keys))
    ]


def _row(
    uid: str,
    extra: Mapping[str, Any],
    sources: Tensor,
    columns: tuple[Tensor, Tensor],
    tag: Mapping[str, Any],
) -> StepRow:
    score, mask = columns
    about = About.from_table(extra[ABOUT])
    padding = bool(tag.get(PADDING, False))
    if padding:  # verl copies the first row's fields into it and shortens only those that it knows
        sources = torch.full_like(mask, Source.SCAFFOLD)
    facts = RowFacts(
        group=uid,
        verdict=about.verdict,
        condition=about.condition,
        policy_tokens=int((sources == Source.POLICY).sum()),
        feedback_tokens=int((sources == Source.FEEDBACK).sum()),
        response_tokens=len(sources),
        padding=padding,
    )
    return StepRow(facts=facts, about=about, sources=sources, score=score)


def write_credits(batch: KVBatchMeta, rows: Sequence[StepRow], credits: Sequence[RowCredit]) -> None:
    """Write each row's baseline group, sources, weight, FEEDBACK advantage and score.

    UNGRADED rows are tagged as padding, so that verl's own means over a batch leave them out.
    """
    each = list(zip(rows, credits, strict=True))
    fields = {
        "uid": NonTensorStack(*(credit.baseline for credit in credits)),
        SOURCES: _jagged([row.sources for row in rows]),
        WEIGHTS: _jagged([_filled(row, credit.weight) for row, credit in each]),
        FEEDBACK_ADVANTAGES: _jagged([_filled(row, credit.feedback) for row, credit in each]),
        "rm_scores": _jagged([_with_penalty(row, credit) for row, credit in each]),
    }
    for row, tag in zip(rows, batch.tags, strict=True):
        if row.facts.verdict is Verdict.UNGRADED:
            tag[PADDING] = True
    tq.kv_batch_put(
        keys=batch.keys,
        partition_id=batch.partition_id,
        fields=TensorDict(fields, batch_size=len(rows)),
        tags=batch.tags,
    )


def forget_advantages(batch: KVBatchMeta, which: Sequence[int], rows: Sequence[StepRow]) -> None:
    """Write 0 as the advantage of some rows."""
    if not which:
        return
    zeros = _jagged([_filled(rows[i], 0.0) for i in which])
    tq.kv_batch_put(
        keys=[batch.keys[i] for i in which],
        partition_id=batch.partition_id,
        fields=TensorDict({"advantages": zeros}, batch_size=len(which)),
    )


def _with_penalty(row: StepRow, credit: RowCredit) -> Tensor:
    score = row.score.clone()
    score[-1] += credit.penalty
    return score


def _filled(row: StepRow, value: float) -> Tensor:
    return torch.full((len(row.sources),), value, dtype=torch.float32)


def _jagged(rows: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor([row.clone() for row in rows], layout=torch.jagged)


def _list(column: Any) -> list[Any]:
    return list(column.tolist() if hasattr(column, "tolist") else column)
