"""The objective against a slow reference of J (docs/method.md#objective), and its invariances.

Loss and gradient do not depend on order, micro-batches or padding; a token that is not trained has exactly
zero gradient; without FEEDBACK tokens AIPO is the base algorithm to the last bit.
"""

from dataclasses import replace
from math import exp

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from aipo.core.advantages import Advantage
from aipo.core.batch import collate
from aipo.core.coefficients import COEFFICIENTS
from aipo.core.objective import ObjectiveSettings, objective_sums
from aipo.core.types import Source
from aipo.training.batch import microbatches
from support.objectives import (
    AGGREGATION_NAMES,
    PAD,
    SETTINGS_AND_CASES,
    Case,
    assert_same,
    cases,
    computed,
    objectives,
    quiet,
    reference,
)
from support.surrogates import is_outside, sequence_value


@quiet
@given(SETTINGS_AND_CASES, AGGREGATION_NAMES)
def test_loss_and_gradient_are_those_of_the_reference(
    drawn: tuple[ObjectiveSettings, Case], aggregation: str
) -> None:
    s, case = drawn
    loss, gradient = computed(case.rows(s, aggregation), case.log_p, s)
    expected, slopes = reference(case, s, aggregation)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    lengths = map(len, case.streams)
    assert_same([row[:n] for row, n in zip(gradient.tolist(), lengths, strict=True)], slopes)


@quiet
@given(SETTINGS_AND_CASES, AGGREGATION_NAMES, st.data())
def test_order_micro_batches_and_padding_change_nothing(
    drawn: tuple[ObjectiveSettings, Case], aggregation: str, data: st.DataObject
) -> None:
    s, case = drawn
    rows = case.rows(s, aggregation)
    number = {id(row): i for i, row in enumerate(rows)}
    parts = microbatches(data.draw(st.permutations(rows)), data.draw(st.integers(1, 80)))
    total, gradients = 0.0, [[0.0]] * len(rows)
    for part in parts:
        numbers = [number[id(row)] for row in part]
        loss, gradient = computed(part, [case.log_p[i] for i in numbers], s, data.draw(st.integers(0, 3)))
        total += loss.item()
        for i, row in zip(numbers, gradient.tolist(), strict=True):
            gradients[i] = row[: len(case.streams[i])]
    whole, at_once = computed(rows, case.log_p, s)
    assert total == pytest.approx(whole.item(), rel=1e-9, abs=1e-9)
    assert_same(gradients, [row[: len(own)] for row, own in zip(at_once.tolist(), case.log_p, strict=True)])


@quiet
@given(SETTINGS_AND_CASES, AGGREGATION_NAMES, st.data())
def test_ranks_that_share_a_batch_add_up_to_one_that_has_it_whole(
    drawn: tuple[ObjectiveSettings, Case], aggregation: str, data: st.DataObject
) -> None:
    """Any split of the rows over ranks, each with micro-batches of its own."""
    s, case = drawn
    rows = case.rows(s, aggregation)
    ranks = data.draw(st.integers(1, 4))
    owner = data.draw(st.lists(st.integers(0, ranks - 1), min_size=len(rows), max_size=len(rows)))
    whole, at_once = computed(rows, case.log_p, s)
    total, gradients = 0.0, [[0.0]] * len(rows)
    for rank in range(ranks):
        own = [i for i in range(len(rows)) if owner[i] == rank]
        number = {id(rows[i]): i for i in own}
        for part in microbatches([rows[i] for i in own], data.draw(st.sampled_from([1, 20, 10_000]))):
            numbers = [number[id(row)] for row in part]
            loss, gradient = computed(part, [case.log_p[i] for i in numbers], s)
            total += loss.item()
            for i, row in zip(numbers, gradient.tolist(), strict=True):
                gradients[i] = row[: len(case.streams[i])]
    assert total == pytest.approx(whole.item(), rel=1e-9, abs=1e-9)
    assert_same(gradients, [row[: len(own)] for row, own in zip(at_once.tolist(), case.log_p, strict=True)])


@quiet
@given(SETTINGS_AND_CASES, AGGREGATION_NAMES)
def test_tokens_that_are_not_trained_and_padding_have_exactly_zero_gradient(
    drawn: tuple[ObjectiveSettings, Case], aggregation: str
) -> None:
    s, case = drawn
    _, gradient = computed(case.rows(s, aggregation), case.log_p, s, more=2)
    for row, stream in zip(gradient, case.streams, strict=True):
        for t, source in enumerate(stream.sources):
            skipped = source is Source.FEEDBACK and not s.feedback_trained
            if skipped or source in (Source.PROMPT, Source.SCAFFOLD):
                assert row[t].item() == 0.0
        assert (row[len(stream) :] == 0.0).all()


@quiet
@given(SETTINGS_AND_CASES, AGGREGATION_NAMES)
def test_a_row_without_advantage_has_exactly_zero_gradient(
    drawn: tuple[ObjectiveSettings, Case], aggregation: str
) -> None:
    s, case = drawn
    case.advantages[0] = Advantage(0.0, 0.0)
    _, gradient = computed(case.rows(s, aggregation), case.log_p, s)
    assert (gradient[0] == 0.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@quiet
@given(
    objectives().flatmap(lambda s: st.tuples(st.just(s), cases(s, feedback=False))),
    AGGREGATION_NAMES,
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_without_feedback_tokens_every_coefficient_is_the_base_algorithm_bit_for_bit(
    dtype: torch.dtype, drawn: tuple[ObjectiveSettings, Case], aggregation: str, weight: float
) -> None:
    s, case = drawn
    base = replace(s, coefficient=replace(s.coefficient, kind="masked"))
    loss, gradient = computed(case.rows(base, aggregation), case.log_p, base, dtype=dtype)
    for kind in COEFFICIENTS:
        full = replace(s, coefficient=replace(s.coefficient, kind=kind), feedback_weight=weight)
        other_loss, other_gradient = computed(case.rows(full, aggregation), case.log_p, full, dtype=dtype)
        assert torch.equal(loss, other_loss)
        assert torch.equal(gradient, other_gradient)


@quiet
@given(SETTINGS_AND_CASES)
def test_a_feedback_weight_of_zero_is_the_coefficient_masked(drawn: tuple[ObjectiveSettings, Case]) -> None:
    s, case = drawn
    off = replace(s, feedback_weight=0.0)
    masked = replace(s, coefficient=replace(s.coefficient, kind="masked"))
    results = [computed(case.rows(each, "token_mean"), case.log_p, each) for each in (off, masked)]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@quiet
@given(SETTINGS_AND_CASES)
def test_the_sums_for_the_records_count_what_they_are_named_after(
    drawn: tuple[ObjectiveSettings, Case],
) -> None:
    s, case = drawn
    assume(any(stream.count(Source.POLICY) for stream in case.streams))
    batch = collate(case.rows(s, "token_mean"), PAD, torch.float64)
    width = batch.ids.shape[1]
    log_p = torch.tensor([own + [-1.0] * (width - len(own)) for own in case.log_p], dtype=torch.float64)
    expected = dict.fromkeys(objective_sums(log_p, batch, s), 0.0)
    for number, (stream, own) in enumerate(zip(case.streams, case.advantages, strict=True)):
        news, olds = case.log_p[number], case.recomputed[number]
        for source, new, old in zip(stream.sources, news, olds, strict=True):
            if source is Source.POLICY:
                expected["policy_tokens"] += 1
                ratio = exp(new - old)
                if s.surrogate.kind == "sequence":
                    ratio = sequence_value(*case.policy_log_p(number))
                expected["clipped"] += is_outside(ratio, own.policy, s.surrogate.clip)
                expected["ratio"] += exp(new - old)
                expected["kl"] += exp(new - old) - 1 - (new - old)
                expected["policy_nll"] -= new
            elif source is Source.FEEDBACK:
                expected["feedback_tokens"] += 1
                expected["feedback_p"] += exp(new)
                expected["credited_tokens"] += own.feedback > 0
                expected["credited_p"] += exp(new) * (own.feedback > 0)
    assert objective_sums(log_p, batch, s) == pytest.approx(expected, rel=1e-9, abs=1e-9)
