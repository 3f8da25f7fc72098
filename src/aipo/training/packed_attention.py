"""Attention over packed rows in which nobody computes what the mask would throw away.

A kernel that is given a mask computes the whole square of a row, and of a group's tree most of that square is
one rollout looking at another. Here a block of queries meets the keys on its own path alone. On a GPU, where
a launch costs more than what it leaves out, the masked kernel stays [not measured there].
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from aipo.training.prefixes import PackedRows

NAME = "packed_sdpa"
"""Of the attention implementation; without blocks it is transformers' `sdpa`."""
BLOCK_TOKENS = 256
"""Queries of a block at most: of its own keys, half lie in its future."""
_BLOCKS = "packed_blocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive queries, and the ranges of positions that they may look at; themselves are the last."""

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    mask: Tensor
    """(queries, keys), True where a query may look."""


def blocks_of(rows: PackedRows) -> list[list[Block]]:
    """Return the blocks of each row, in order; those of padding are not among them."""
    return [
        list(_blocks(ends, int(1 + (positions > 0).sum())))
        for ends, positions in zip(rows.ends, rows.positions, strict=True)
    ]


def _blocks(ends: Tensor, number: int) -> Iterator[Block]:
    """Yield the blocks of a row whose first `number` tokens are no padding."""
    ends = ends[:number]
    index = torch.arange(number, device=ends.device)
    begins = [0, *(torch.nonzero(ends[:-1] <= index[1:]).flatten() + 1).tolist(), number]
    for begin, end in pairwise(begins):
        path = list(_ranges(ends[:begin] > begin))
        for start in range(begin, end, BLOCK_TOKENS):
            stop = min(start + BLOCK_TOKENS, end)
            keys = (*path, *([(begin, start)] if start > begin else []), (start, stop))
            seen = sum(b - a for a, b in keys)
            mask = torch.ones(stop - start, seen, dtype=torch.bool, device=ends.device)
            yield Block(start=start, stop=stop, keys=keys, mask=mask.tril(seen - (stop - start)))


def _ranges(chosen: Tensor) -> Iterator[tuple[int, int]]:
    """Yield the ranges of consecutive positions that are chosen."""
    edges = torch.nn.functional.pad(chosen.int(), (1, 1)).diff()
    starts, stops = (torch.nonzero(edges == edge).flatten().tolist() for edge in (1, -1))
    yield from zip(starts, stops, strict=True)


def attend_by_blocks(model: PreTrainedModel) -> None:
    """Let a model use the blocks of a mask that has some; it computes what it did where there are none."""
    if model.config._attn_implementation == "sdpa" and model.device.type == "cpu":
        model.set_attn_implementation(NAME)


def with_blocks(model: PreTrainedModel, rows: PackedRows, mask: Tensor) -> Tensor:
    """Return the rows' mask; to a model that can use them it also carries the rows' blocks."""
    if model.config._attn_implementation == NAME and mask.device.type == "cpu":
        setattr(mask, _BLOCKS, blocks_of(rows))
    return mask


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' `sdpa` does, block by block where the mask has blocks; (B, T, heads, size).

    Queries are (B, heads, T, size), keys and values may have fewer heads.
    """
    blocks = getattr(attention_mask, _BLOCKS, None)
    if blocks is None or kwargs.get("dropout") or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    rows = zip(query.split(1), key.split(1), value.split(1), blocks, strict=True)
    attended = [_attended(q, k, v, of_row, kwargs.get("scaling")) for q, k, v, of_row in rows]
    return torch.cat(attended).transpose(1, 2).contiguous(), None


def _attended(
    query: Tensor, key: Tensor, value: Tensor, blocks: list[Block], scaling: float | None
) -> Tensor:
    """Return one row's attention, (1, heads, T, size); 0 where there is padding."""
    length = query.shape[2]
    cuts = sorted({0, length, *(edge for block in blocks for pair in block.keys for edge in pair)})
    sizes = [b - a for a, b in pairwise(cuts)]
    place = {cut: i for i, cut in enumerate(cuts)}
    queries, keys, values = (tensor.split(sizes, dim=2) for tensor in (query, key, value))

    def joined(parts: tuple[Tensor, ...], ranges: tuple[tuple[int, int], ...]) -> Tensor:
        return torch.cat([part for a, b in ranges for part in parts[place[a] : place[b]]], dim=2)

    found = [
        scaled_dot_product_attention(
            joined(queries, block.keys[-1:]),
            joined(keys, block.keys),
            joined(values, block.keys),
            attn_mask=block.mask,
            scale=scaling,
        )
        for block in blocks
    ]
    padding = length - blocks[-1].stop
    return torch.cat([*found, value.new_zeros(*value.shape[:2], padding, value.shape[3])], dim=2)


AttentionInterface.register(NAME, packed_sdpa)
AttentionMaskInterface.register(NAME, sdpa_mask)
