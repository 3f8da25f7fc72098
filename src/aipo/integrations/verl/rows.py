"""The rows of a step in verl's transfer queue, laid out in mini-batches and written with their credit.

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
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.utils.seqlen_balancing import (
    calculate_workload,
    get_seqlen_balanced_partitions,
    log_seqlen_unbalance,
)

from aipo.core.types import Source
from aipo.integrations.verl.copies import PADDING, add_copies
from aipo.integrations.verl.credit import ALONE, RowCredit
from aipo.integrations.verl.loss import FEEDBACK_ADVANTAGES, SOURCES, WEIGHTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Rows in the order that verl's workers take them, each rank one run of them, cut in order."""

    batch: KVBatchMeta
    credits: dict[str, RowCredit]
    """By key; padding rows have none."""
    rows_of_minibatch: int
    """On all ranks together, padding included."""
    balance: dict[str, float]
    """verl's metrics of how even the ranks are."""


def laid_out(
    drawn: KVBatchMeta, parts: Sequence[Sequence[RowCredit]], ranks: int, end_id: int, prefix: str
) -> Layout:
    """Return the rows that are learnt from, with rows for copies and as much padding as ranks need.

    The other rows of `drawn` are forgotten. Each mini-batch holds the rows of its own part only.
    """
    flat = [row for part in parts for row in part]
    added = iter(add_copies(drawn, [row for row in flat if row.is_copy]))
    keys = {id(row): next(added) if row.is_copy else row.key for row in flat}
    credits = {keys[id(row)]: row for row in flat}
    size = -(-max(map(len, parts)) // ranks) * ranks
    batch = _padded(_selected(drawn, credits), size * len(parts), end_id)
    place = {key: i for i, key in enumerate(batch.keys)}
    spare = iter(range(len(flat), len(batch)))
    lengths = [int(tag["seq_len"]) for tag in batch.tags]
    by_rank: list[list[int]] = [[] for _ in range(ranks)]
    for part in parts:
        here = [place[keys[id(row)]] for row in part]
        here += [next(spare) for _ in range(size - len(here))]
        work = calculate_workload(torch.tensor([lengths[i] for i in here], dtype=torch.int64))
        shares = get_seqlen_balanced_partitions(work, k_partitions=ranks, equal_size=True)
        for rows, share in zip(by_rank, shares, strict=True):
            rows += [here[i] for i in share]
    balance = log_seqlen_unbalance(seqlen_list=lengths, partitions=by_rank, prefix=prefix)
    batch.reorder([i for rows in by_rank for i in rows])
    return Layout(batch=batch, credits=credits, rows_of_minibatch=size, balance=balance)


def _selected(drawn: KVBatchMeta, credits: Mapping[str, RowCredit]) -> KVBatchMeta:
    """Return the rows that are learnt from, copies too; clear the others."""
    partition = drawn.partition_id
    if others := [key for key in drawn.keys if key not in credits]:
        tq.kv_clear(keys=others, partition_id=partition)
    tags = tq.kv_list(partition)[partition]
    for key, credit in credits.items():
        if not credit.row.stream.count(Source.POLICY):  # a copy or an expert: nobody sampled it
            tags[key][PADDING] = True
    keys = list(credits)
    return KVBatchMeta(
        keys=keys,
        tags=[tags[key] for key in keys],
        partition_id=partition,
        fields=drawn.fields,
        extra_info=drawn.extra_info,
    )


def _padded(batch: KVBatchMeta, rows: int, end_id: int) -> KVBatchMeta:
    return batch if len(batch) == rows else upsample_batch_to_divisible_size(batch, rows, end_id)


def write_credits(layout: Layout) -> None:
    """Write each row's baseline group, weight, FEEDBACK advantage and reward; of padding also its sources."""
    batch = layout.batch
    credits = [layout.credits.get(key) for key in batch.keys]
    lengths = [_length(credit) for credit in credits]
    of = [credit.row if credit else None for credit in credits]
    fields = {
        "uid": NonTensorStack(*(_baseline(c, key) for c, key in zip(credits, batch.keys, strict=True))),
        WEIGHTS: _constant([row.weight if row else 0.0 for row in of], lengths),
        FEEDBACK_ADVANTAGES: _constant([row.advantage.feedback if row else 0.0 for row in of], lengths),
        "rm_scores": _at_the_end([credit.reward if credit else 0.0 for credit in credits], lengths),
    }
    _put(batch, batch.keys, fields)
    if padding := [key for key in batch.keys if key not in layout.credits]:
        # verl copies the first row's fields into them and shortens only those that it knows.
        _put(batch, padding, {SOURCES: _jagged([torch.tensor([int(Source.SCAFFOLD)])] * len(padding))})


def write_advantages(layout: Layout) -> None:
    """Write the POLICY advantages that `core` has given, at POLICY tokens."""
    values = []
    for key in layout.batch.keys:
        credit = layout.credits.get(key)
        if credit is None:
            values.append(torch.zeros(1))
            continue
        stream = credit.row.stream
        sources = torch.tensor([int(source) for source in stream.sources[stream.prompt_length :]])
        values.append((sources == Source.POLICY).float() * credit.row.advantage.policy)
    advantages = _jagged(values)
    _put(layout.batch, layout.batch.keys, {"advantages": advantages, "returns": advantages.clone()})


def forget_lone_advantages(layout: Layout) -> None:
    """Write 0 as the advantage of rows without siblings, whose reward verl's estimators take as it is."""
    lone = {key: credit for key, credit in layout.credits.items() if credit.siblings == 1}
    if lone:
        zeros = _constant([0.0] * len(lone), [_length(credit) for credit in lone.values()])
        _put(layout.batch, list(lone), {"advantages": zeros})


def _put(batch: KVBatchMeta, keys: Sequence[str], fields: dict[str, Any]) -> None:
    tq.kv_batch_put(
        keys=list(keys), partition_id=batch.partition_id, fields=TensorDict(fields, batch_size=len(keys))
    )


def _baseline(credit: RowCredit | None, key: str) -> str:
    return f"{ALONE}/{key}" if credit is None or credit.is_copy else credit.baseline


def _length(credit: RowCredit | None) -> int:
    return 1 if credit is None else len(credit.row.stream) - credit.row.stream.prompt_length


def _constant(values: Sequence[float], lengths: Sequence[int]) -> Tensor:
    return _jagged([torch.full((n,), v, dtype=torch.float32) for v, n in zip(values, lengths, strict=True)])


def _at_the_end(values: Sequence[float], lengths: Sequence[int]) -> Tensor:
    rows = [torch.zeros(n) for n in lengths]
    for row, value in zip(rows, values, strict=True):
        row[-1] = value
    return _jagged(rows)


def _jagged(rows: Sequence[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor([row.clone() for row in rows], layout=torch.jagged)
