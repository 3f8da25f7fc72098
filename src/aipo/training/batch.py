"""From what groups teach to the rows of one optimiser step.

A token's weight is that of its whole mini-batch, however that is cut into micro-batches.
"""

from collections.abc import Sequence
from dataclasses import replace

from aipo.config.settings import AlgorithmSettings
from aipo.core.advantages import ESTIMATORS, Advantage, whitened
from aipo.core.batch import Row, weighted_rows
from aipo.core.types import Source
from aipo.training.algorithm import base_algorithm, objective_settings
from aipo.training.credit import Credit

PASS_TOKENS_CPU, PASS_TOKENS_GPU = 32, 1024
"""What a forward and backward pass costs beside its tokens, in tokens: on a CPU next to nothing (measured:
benchmarks/update.py); on a GPU, which small passes leave idle, 50 ms of launching kernels [estimated]."""
ENOUGH_TOKENS_CPU = 1024
"""Padded tokens beyond which a pass on a CPU becomes no cheaper for each, but leaves the cache."""


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
        result.append(rows)
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
) -> list[tuple[list[Row], bool]]:
    """Return what one of `size` ranks takes of the rows, as `microbatches`; equally many parts on all ranks.

    A rank that has fewer fills up with a row that weighs nothing, because ranks wait for one another in each
    pass. The flag says whether a part is to be counted.
    """
    ordered = sorted(rows, key=lambda row: len(row.stream))
    shares = [microbatches(ordered[other::size], max_tokens, pass_tokens) for other in range(size)]
    missing = max(map(len, shares)) - len(shares[rank])
    filler = [([replace(row, weight=0.0)], False) for row in ordered[:1]]
    return [(part, True) for part in shares[rank]] + filler * missing


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
