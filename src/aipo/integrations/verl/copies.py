"""Consult-stripped copies on verl: rows that the driver adds, once it knows which of them teach.

A copy's row has every field of its rollout's row, because verl's transfer queue drops a field that one row
lacks. It has no POLICY token, so verl's own averages and estimators do not see it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.padding_utils import build_padding_position_ids
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from aipo.integrations.verl.credit import RowCredit
from aipo.integrations.verl.loss import SOURCES

PADDING = "is_padding"
"""verl's tag of rows that its metrics leave out."""
LEFT_OUT = ("routed_experts", "multi_modal_inputs")
"""Fields about a rollout's own tokens that a copy has no values of."""


def add_copies(batch: KVBatchMeta, copies: Sequence[RowCredit]) -> list[str]:
    """Add a row for each copy; return their keys, in order. `batch` holds the rollouts' rows and more."""
    if not copies:
        return []
    tags = dict(zip(batch.keys, batch.tags, strict=True))
    rows = tq.kv_batch_get(keys=[copy.key for copy in copies], partition_id=batch.partition_id)
    keys, fields, own_tags = [], [], []
    for i, copy in enumerate(copies):
        uid, session, _ = copy.key.rsplit("_", 2)
        # A session of its own: verl takes the last output of a session as the one with its outcome.
        keys.append(f"{uid}copy_{session}_0")
        fields.append(_fields({name: rows[i][name] for name in rows.keys()}, copy))  # noqa: SIM118
        own_tags.append(_tag(tags[copy.key], copy))
    tq.kv_batch_put(
        keys=keys,
        partition_id=batch.partition_id,
        fields=list_of_dict_to_tensordict(fields),
        tags=own_tags,
    )
    return keys


def _fields(of_rollout: dict[str, Any], copy: RowCredit) -> dict[str, Any]:
    stream = copy.row.stream
    begin = stream.prompt_length
    ids = torch.tensor(stream.ids, dtype=torch.int64)
    sources = torch.tensor([int(source) for source in stream.sources[begin:]], dtype=torch.int64)
    zeros = torch.zeros_like(sources)
    attended = torch.ones_like(ids)
    values = {name: value for name, value in of_rollout.items() if name not in LEFT_OUT}
    return values | {
        "prompts": ids[:begin],
        "responses": ids[begin:],
        "input_ids": ids,
        "attention_mask": attended,
        "position_ids": build_padding_position_ids(of_rollout.get("position_ids"), attended),
        "response_mask": zeros,
        "loss_mask": zeros,
        "rm_scores": zeros.float(),
        "rollout_log_probs": torch.tensor(stream.log_probs[begin:], dtype=torch.float32),
        SOURCES: sources,
    }


def _tag(of_rollout: dict[str, Any], copy: RowCredit) -> dict[str, Any]:
    length, prompt = len(copy.row.stream), copy.row.stream.prompt_length
    return of_rollout | {
        "prompt_len": prompt,
        "response_len": length - prompt,
        "seq_len": length,
    }
