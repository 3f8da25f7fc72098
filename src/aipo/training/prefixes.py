"""Sequences that share beginnings as one tree: each distinct token goes through the model once.

The rollouts of a group share their prompt, a consult-stripped copy shares its prompt and often more with its
solo siblings. A tree lays the distinct tokens out in one packed row, depth first, so that the descendants of
a token are the positions from it up to `end`: attention may look from i at j exactly where j <= i < end[j].
A token's position is its depth, so rotary embeddings and sliding windows see what they would see in the
padded sequence, and the log-probability of a token, given its parent's hidden state, is the same number.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aipo.core.tokens import TokenStream

ROOT = -1
"""The parent of a first token, which nothing predicts."""
TREE_TOKENS = (512, 1024, 2048, 4096, 8192)
"""Sizes of trees that are tried: a larger one shares more, but each token attends over the whole row."""
WORTH = 0.9
"""Packing must cost less than this share of padding: its mask and its gathers are not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixTree:
    """Some sequences packed into one row of N distinct tokens."""

    ids: tuple[int, ...]
    depths: tuple[int, ...]
    parents: tuple[int, ...]
    ends: tuple[int, ...]
    """One past the last descendant of each token."""
    nodes: tuple[tuple[int, ...], ...]
    """For each sequence, in the order given, where its tokens stand in the row."""

    def __len__(self) -> int:
        return len(self.ids)


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many first tokens two sequences have in common.

    >>> shared_length([1, 2, 3], [1, 2, 4, 5])
    2
    """
    short = min(len(a), len(b))
    if a[:short] == b[:short]:
        return short
    return next(i for i in range(short) if a[i] != b[i])


def prefix_tree(sequences: Sequence[tuple[int, ...]]) -> PrefixTree:
    """Return the tree of some sequences.

    >>> tree = prefix_tree([(1, 2, 3), (1, 2, 4, 5)])
    >>> tree.ids, tree.depths, tree.ends, tree.nodes
    ((1, 2, 3, 4, 5), (0, 1, 2, 2, 3), (5, 5, 3, 5, 5), ((0, 1, 2), (0, 1, 3, 4)))
    """
    ids: list[int] = []
    depths: list[int] = []
    parents: list[int] = []
    ends: list[int] = []
    nodes: list[tuple[int, ...]] = [()] * len(sequences)
    path: list[int] = []
    last: tuple[int, ...] = ()
    for index in sorted(range(len(sequences)), key=lambda i: sequences[i]):
        sequence = sequences[index]
        shared = shared_length(sequence, last)
        for node in path[shared:]:
            ends[node] = len(ids)
        path = path[:shared]
        for depth in range(shared, len(sequence)):
            parents.append(path[-1] if path else ROOT)
            path.append(len(ids))
            ids.append(sequence[depth])
            depths.append(depth)
            ends.append(0)
        nodes[index], last = tuple(path), sequence
    for node in path:
        ends[node] = len(ids)
    return PrefixTree(
        ids=tuple(ids), depths=tuple(depths), parents=tuple(parents), ends=tuple(ends), nodes=tuple(nodes)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """Trees as tensors: what the model reads, and which of its outputs the tokens of a batch are read from.

    R trees of at most N tokens; the batch has B sequences of at most T tokens.
    """

    ids: Tensor
    """(R, N)"""
    positions: Tensor
    """(R, N)"""
    ends: Tensor
    """(R, N); a padding token sees itself alone."""
    predictors: Tensor
    """(M,): where, in R x N, the hidden state stands that predicts each of the M tokens wanted."""
    targets: Tensor
    """(M,): their ids."""
    places: Tensor
    """(B, T): which of the M each token of the batch is; M where none is wanted."""

    def to(self, device: torch.device) -> "PackedRows":
        """Return the same on a device."""
        return PackedRows(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def allowed(self, window: int = 0) -> Tensor:
        """Return the attention mask (R, 1, N, N), True where query i may look at key j.

        `window`: how many last positions a query sees, itself included; 0: all.
        """
        index = torch.arange(self.ids.shape[1], device=self.ids.device)
        query, key = index.view(1, -1, 1), index.view(1, 1, -1)
        mask = (key <= query) & (query < self.ends.unsqueeze(1))
        if window:
            mask &= self.positions.unsqueeze(2) - self.positions.unsqueeze(1) < window
        return mask.unsqueeze(1)

    def spread(self, values: Tensor) -> Tensor:
        """Return (M,) values as (B, T), 0 where none is wanted."""
        return torch.cat([values, values.new_zeros(1)])[self.places]


def packed_rows(trees: Sequence[PrefixTree], wanted_from: Sequence[Sequence[int]], pad_id: int) -> PackedRows:
    """Return the tensors of some trees; the batch has the sequences of one tree after the other.

    `wanted_from`: for each sequence of each tree, the first position whose log-probability is wanted, at
    least 1.
    """
    width = max(map(len, trees))
    length = max(len(nodes) for tree in trees for nodes in tree.nodes)
    ids = torch.full((len(trees), width), pad_id)
    positions = torch.zeros((len(trees), width), dtype=torch.long)
    ends = torch.arange(1, width + 1).repeat(len(trees), 1)
    predictors: list[int] = []
    targets: list[int] = []
    places: list[list[int]] = []
    for row, (tree, first_of) in enumerate(zip(trees, wanted_from, strict=True)):
        number = len(tree)
        ids[row, :number] = torch.tensor(tree.ids)
        positions[row, :number] = torch.tensor(tree.depths)
        ends[row, :number] = torch.tensor(tree.ends)
        place: dict[int, int] = {}
        for nodes, first in zip(tree.nodes, first_of, strict=True):
            of_sequence = [-1] * length
            for position in range(first, len(nodes)):
                node = nodes[position]
                if node not in place:
                    place[node] = len(targets)
                    predictors.append(row * width + tree.parents[node])
                    targets.append(tree.ids[node])
                of_sequence[position] = place[node]
            places.append(of_sequence)
    where = torch.tensor(places)
    return PackedRows(
        ids=ids,
        positions=positions,
        ends=ends,
        predictors=torch.tensor(predictors, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        places=where.masked_fill(where < 0, len(targets)),
    )


@dataclass(frozen=True, slots=True)
class PassCost:
    """What a token costs in a forward and backward pass, in any one unit [estimated from the shapes]."""

    token: float
    """By itself: the matrix products."""
    attended: float
    """For each position of its row: attention behind a mask, which that does not make cheaper. Blocks on a
    CPU (`aipo.training.packed_attention`) take less, so trees are rather too small there than too large."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "PassCost":
        """Return that of a model: six operations a parameter, twelve a layer, hidden unit and position."""
        config: Any = model.config.get_text_config(decoder=True)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return cls(6.0 * parameters, 12.0 * config.hidden_size * config.num_hidden_layers)

    def row(self, tokens: int) -> float:
        """Return the cost of one row."""
        return tokens * (self.token + self.attended * tokens)


def in_trees(sequences: Sequence[tuple[int, ...]], max_tokens: int) -> list[list[int]]:
    """Return the indices of the sequences of each tree, trees of at most `max_tokens` distinct tokens.

    Sequences that share most stand side by side. Degenerate cases: a longer sequence is a tree by itself;
    one that shares not even its first token with the one before begins a new tree.

    >>> in_trees([(1, 2, 3), (7, 8), (1, 2, 4)], 4)
    [[0, 2], [1]]
    """
    trees: list[list[int]] = []
    tokens = 0
    last: tuple[int, ...] = ()
    for index in sorted(range(len(sequences)), key=lambda i: sequences[i]):
        shared = shared_length(sequences[index], last)
        added = len(sequences[index]) - shared
        if not shared or tokens + added > max_tokens:
            trees.append([])
            tokens, added = 0, len(sequences[index])
        trees[-1].append(index)
        tokens, last = tokens + added, sequences[index]
    return trees


def cheapest_trees(
    sequences: Sequence[tuple[int, ...]], max_tokens: int, cost: PassCost
) -> list[list[int]] | None:
    """Return the trees that cost least, none of more than `max_tokens`; None where padding is no dearer."""
    padded = sum(cost.row(len(sequence)) for sequence in sequences)
    best: list[list[int]] | None = None
    least = WORTH * padded
    for size in TREE_TOKENS:
        trees = in_trees(sequences, min(size, max_tokens))
        packed = sum(cost.row(distinct_tokens([sequences[i] for i in tree])) for tree in trees)
        if packed < least:
            best, least = trees, packed
    return best


def distinct_tokens(sequences: Sequence[tuple[int, ...]]) -> int:
    """Return how many tokens the tree of some sequences has.

    >>> distinct_tokens([(1, 2, 3), (1, 2, 4, 5)])
    5
    """
    ordered = sorted(sequences)
    shared = (shared_length(b, a) for a, b in pairwise(ordered))
    return sum(map(len, ordered)) - sum(shared)


def packed_streams(streams: Sequence[TokenStream], sizes: Sequence[int], pad_id: int) -> PackedRows:
    """Return streams, the first `sizes[0]` of which make the first tree, packed; prompts are not wanted."""
    rest = iter(streams)
    trees = [list(islice(rest, size)) for size in sizes]
    return packed_rows(
        [prefix_tree([stream.ids for stream in tree]) for tree in trees],
        [[stream.prompt_length for stream in tree] for tree in trees],
        pad_id,
    )
