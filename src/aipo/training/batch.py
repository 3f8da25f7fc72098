"""From what groups teach to the rows of one optimiser step.

A token's weight is that of its whole mini-batch, however that is cut into micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from aipo.config.settings import AlgorithmSettings
from aipo.core.advantages import ESTIMATORS, Advantage, whitened
from aipo.core.batch import Row, weighted_rows
from aipo.core.types import Source
from aipo.training.algorithm import base_algorithm, objective_settings
from aipo.training.credit import Credit
from aipo.training.log_probs import PolicyForward
from aipo.training.prefixes import PassCost, cheapest_trees, distinct_tokens

PASS_TOKENS_CPU, PASS_TOKENS_GPU = 32, 1024
"""What a forward and backward pass costs beside its tokens, in tokens: on a CPU next to nothing (measured:
benchmarks/update.py); on a GPU, which small passes leave idle, 50 ms of launching kernels [estimated]."""
LEAST_PARAMETERS = 5_000_000
"""Of a smaller policy, finding what rows share takes longer than computing it again [estimated]."""
ENOUGH_TOKENS_CPU = 1024
"""Tokens, padded or packed, beyond which a pass on a CPU becomes no cheaper for each, but leaves the cache:
SmolLM2-135M's update takes 32 s with at most 1,024, and a gigabyte less, 38 s with 2,048."""


def pass_tokens(limit: int, on_cpu: bool) -> int:
    """Return how many tokens a pass pads to at most, where `limit` is `train.microbatch_tokens`."""
    return min(limit, ENOUGH_TOKENS_CPU) if on_cpu else limit


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Rows that go through the model in one pass."""

    rows: list[Row]
    counted: bool = True
    """Whether it is to be counted; a rank's filler is not."""
    trees: tuple[int, ...] = ()
    """How many of the rows, in order, are packed into each prefix tree; (): all are padded."""


def minibatches(
    credits: Sequence[Sequence[Credit]], algorithm: AlgorithmSettings, number: int, max_response_tokens: int
) -> list[list[Row]]:
    """Split groups, in order, into `number` optimiser steps; each is one global batch with its own N."""
    base = base_algorithm(algorithm)
    if ESTIMATORS[base.estimator].over_batch:
        credits = _whitened(credits)
    result = []
    for part in range(number):
        share = credits[part * len(credits) // number : (part + 1) * len(credits) // number]
        flat = [credit for group in share for credit in group]
        rows = weighted_rows(
            [c.stream for c in flat],
            [c.advantage for c in flat],
            base.aggregation,
            feedback_trained=objective_settings(algorithm).feedback_trained,
            horizon_tokens=max_response_tokens,
        )
        result.append(
            [
                replace(row, without_requests=credit.without_requests)
                for row, credit in zip(rows, flat, strict=True)
            ]
        )
    return result


def _whitened(credits: Sequence[Sequence[Credit]]) -> list[list[Credit]]:
    """Return the credits with POLICY advantages normalised over the whole step; FEEDBACK's stay."""
    sampled = [c for group in credits for c in group if c.stream.count(Source.POLICY)]
    values = whitened([c.advantage.policy for c in sampled], [c.stream.count(Source.POLICY) for c in sampled])
    new = {id(c): value for c, value in zip(sampled, values, strict=True)}
    return [
        [
            replace(c, advantage=Advantage(new.get(id(c), c.advantage.policy), c.advantage.feedback))
            for c in group
        ]
        for group in credits
    ]


def microbatches_of_rank(
    rows: Sequence[Row], max_tokens: int, pass_tokens: int, rank: int, size: int
) -> list[Microbatch]:
    """Return what one of `size` ranks takes of the rows, as `microbatches`; equally many parts on all ranks.

    A rank that has fewer fills up with a row that weighs nothing, because ranks wait for one another in each
    pass. The flag says whether a part is to be counted.
    """
    ordered = sorted(rows, key=lambda row: len(row.stream))
    shares = [microbatches(ordered[other::size], max_tokens, pass_tokens) for other in range(size)]
    return filled_up([Microbatch(part) for part in shares[rank]], max(map(len, shares)), ordered)


def filled_up(parts: list[Microbatch], number: int, rows: Sequence[Row]) -> list[Microbatch]:
    """Return a rank's parts with as many that weigh nothing as make them `number`."""
    filler = [Microbatch([replace(row, weight=0.0)], counted=False) for row in rows[:1]]
    return parts + filler * (number - len(parts))


def microbatches(rows: Sequence[Row], max_tokens: int, pass_tokens: int = 0) -> list[list[Row]]:
    """Cut rows, sorted by length, so that no part pads to more than `max_tokens` tokens.

    Of all such cuts it is the cheapest, where a part costs the tokens that it pads to, and `pass_tokens` for
    being a pass of its own. Degenerate cases: a longer row is a part by itself; no rows, no parts.
    """
    rows = sorted(rows, key=lambda row: len(row.stream))
    lengths = [len(row.stream) for row in rows]
    cost, end = [0] * (len(rows) + 1), [0] * (len(rows) + 1)
    """Of the cheapest cut of the rows from each one on: what it costs, and where its first part ends."""
    for first in reversed(range(len(rows))):
        cost[first], end[first] = lengths[first] + pass_tokens + cost[first + 1], first + 1
        for last in range(first + 1, len(rows)):
            padded = (last + 1 - first) * lengths[last]
            if padded > max_tokens:
                break
            if (whole := padded + pass_tokens + cost[last + 1]) <= cost[first]:
                cost[first], end[first] = whole, last + 1
    parts: list[list[Row]] = []
    first = 0
    while first < len(rows):
        parts.append(rows[first : end[first]])
        first = end[first]
    return parts


class SharedPrefixes:
    """Cuts a mini-batch into packed micro-batches, where that is cheaper than padding and the model can."""

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        """`model`: a `PolicyForward`, however wrapped, or a transformers model."""
        plain = accelerator.unwrap_model(model)
        self._forward = PolicyForward(plain) if isinstance(plain, PreTrainedModel) else plain
        policy = self._forward.policy
        self._device, self._cost = accelerator.device, PassCost.of(policy)
        self._small = sum(p.numel() for p in policy.parameters()) < LEAST_PARAMETERS

    def microbatches(
        self, rows: Sequence[Row], max_tokens: int, rank: int, size: int
    ) -> list[Microbatch] | None:
        """Return the micro-batches of one of `size` ranks; None where the rows are to be padded."""
        max_tokens = pass_tokens(max_tokens, self._device.type == "cpu")
        if self._small:
            return None
        trees = cheapest_trees([row.stream.ids for row in rows], max_tokens, self._cost)
        if trees is None or not self._forward.can_pack():
            return None
        lengths = [distinct_tokens([rows[i].stream.ids for i in tree]) for tree in trees]
        order = sorted(range(len(trees)), key=lambda i: lengths[i])
        shares = [self._passes(order[other::size], lengths, max_tokens) for other in range(size)]
        parts = []
        for one_pass in shares[rank]:
            packed = [trees[tree] for tree in one_pass]
            members = [rows[i] for tree in packed for i in tree]
            parts.append(Microbatch(members, trees=tuple(map(len, packed))))
        return filled_up(parts, max(map(len, shares)), rows)

    @staticmethod
    def _passes(order: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
        """Return trees, given in the order of their lengths, by pass: none pads to more than `max_tokens`."""
        passes: list[list[int]] = []
        for tree in order:
            if not passes or (len(passes[-1]) + 1) * lengths[tree] > max_tokens:
                passes.append([])
            passes[-1].append(tree)
        return passes
