"""Weights are a mean's, whatever the batch is then cut, ordered or padded to."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aipo.core.batch import collate, trained_tokens, weighted_rows
from aipo.core.objective import ObjectiveSettings
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Source
from aipo.training.batch import microbatches
from support.objectives import AGGREGATION_NAMES, HORIZON, PAD, SETTINGS_AND_CASES, Case, quiet


@quiet
@given(SETTINGS_AND_CASES, AGGREGATION_NAMES, st.booleans())
def test_the_weights_are_those_of_the_mean_that_the_aggregation_is_named_after(
    drawn: tuple[ObjectiveSettings, Case], aggregation: str, trained: bool
) -> None:
    _, case = drawn
    rows = weighted_rows(
        case.streams, case.advantages, aggregation, feedback_trained=trained, horizon_tokens=HORIZON
    )
    counts = [trained_tokens(stream, trained) for stream in case.streams]
    shares = [row.weight * count for row, count in zip(rows, counts, strict=True)]
    if aggregation in ("token_mean", "sequence_mean"):  # means over tokens
        assert sum(shares) == pytest.approx(1.0 if any(counts) else 0.0, abs=1e-12)
    if aggregation == "sequence_mean":
        assert max(shares) == pytest.approx(min([share for share in shares if share], default=0.0))
    else:  # every trained token weighs the same
        assert len({row.weight for row, count in zip(rows, counts, strict=True) if count}) <= 1
    if aggregation in ("sequence_sum", "horizon"):
        factor = HORIZON if aggregation == "horizon" else 1
        assert sum(row.weight * factor for row in rows) == pytest.approx(1.0 if any(counts) else 0.0)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("source", [Source.POLICY, Source.FEEDBACK, Source.SCAFFOLD])
def test_policy_tokens_are_trained_and_feedback_tokens_where_it_is_asked_for(
    source: Source, trained: bool
) -> None:
    segment = Segment(source, (2, 3), (-1.0, -1.0) if source is Source.POLICY else ())
    stream = TokenStream((Segment(Source.PROMPT, (1,)), segment))
    counted = source is Source.POLICY or (trained and source is Source.FEEDBACK)
    assert trained_tokens(stream, trained) == 2 * counted


@quiet
@given(SETTINGS_AND_CASES, AGGREGATION_NAMES, st.integers(1, 120), st.integers(0, 40))
def test_micro_batches_hold_every_row_once_with_its_weight_and_fit(
    drawn: tuple[ObjectiveSettings, Case], aggregation: str, most: int, pass_tokens: int
) -> None:
    s, case = drawn
    rows = case.rows(s, aggregation)
    parts = microbatches(rows, most, pass_tokens)
    assert sorted(id(row) for part in parts for row in part) == sorted(map(id, rows))
    for part in parts:
        batch = collate(part, PAD, torch.float64)
        assert batch.ids.numel() <= most or len(part) == 1
        assert batch.weight[:, 0].tolist() == [row.weight for row in part]
    paid = sum(collate(part, PAD).ids.numel() + pass_tokens for part in parts)
    assert paid == cheapest(sorted(map(len, case.streams)), most, pass_tokens)


def cheapest(lengths: list[int], most: int, pass_tokens: int) -> int:
    """Try every cut of rows sorted by length."""
    if not lengths:
        return 0
    sizes = (n for n in range(1, len(lengths) + 1) if n == 1 or n * lengths[n - 1] <= most)
    return min(n * lengths[n - 1] + pass_tokens + cheapest(lengths[n:], most, pass_tokens) for n in sizes)


@quiet
@given(SETTINGS_AND_CASES, AGGREGATION_NAMES)
def test_a_batch_holds_each_stream_and_pads_what_is_neither_attended_nor_trained(
    drawn: tuple[ObjectiveSettings, Case], aggregation: str
) -> None:
    s, case = drawn
    rows = case.rows(s, aggregation)
    batch = collate(rows, PAD, torch.float64)
    width = max(map(len, case.streams))
    assert batch.ids.shape == (len(rows), width)
    for i, (row, stream) in enumerate(zip(rows, case.streams, strict=True)):
        n, rest = len(stream), width - len(stream)
        assert batch.ids[i].tolist() == [*stream.ids, *[PAD] * rest]
        assert batch.sources[i].tolist() == [*stream.sources, *[Source.SCAFFOLD] * rest]
        assert batch.attended[i].tolist() == [True] * n + [False] * rest
        assert batch.policy_mask[i].sum() == stream.count(Source.POLICY)
        assert batch.feedback_mask[i].sum() == stream.count(Source.FEEDBACK)
        for t, (source, old) in enumerate(zip(stream.sources, row.log_p_old, strict=True)):
            expected = case.recomputed[i][t] if source is Source.FEEDBACK else stream.log_probs[t]
            assert batch.log_p_old[i, t].item() == old == expected
        assert replace(row, recomputed=None).log_p_old == stream.log_probs
        own = (batch.policy_advantage, batch.feedback_advantage, batch.weight)
        wanted = (row.advantage.policy, row.advantage.feedback, row.weight)
        assert all(set(v[i].tolist()) == {w} for v, w in zip(own, wanted, strict=True))
