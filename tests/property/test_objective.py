"""The objective against a slow reference of J, written token by token from method.md, and its invariances.

Loss and gradient do not depend on order, micro-batches or padding; a token that is not trained has exactly
zero gradient; without FEEDBACK tokens AIPO is the base algorithm to the last bit; the weights are a mean's.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, log

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aipo.core.advantages import Advantage
from aipo.core.batch import Aggregation, Row, TokenBatch, collate, trained_tokens, weighted_rows
from aipo.core.coefficients import Coefficient, CoefficientSettings
from aipo.core.objective import ObjectiveSettings, objective_loss, objective_sums
from aipo.core.surrogates import Clip, Surrogate, SurrogateSettings
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Source
from aipo.train.batch import microbatches
from surrogates_for_tests import clipped, is_outside, policy_terms, sequence_value

PAD, HORIZON = 99, 40
quiet = settings(deadline=None)


@dataclass(frozen=True)
class Case:
    """Streams of one global batch, their advantages, and log p of each token now and when it was sampled."""

    streams: list[TokenStream]
    advantages: list[Advantage]
    log_p: list[list[float]]
    recomputed: list[list[float]]

    def rows(self, objective: ObjectiveSettings, aggregation: Aggregation) -> list[Row]:
        trained = objective.feedback_trained
        rows = weighted_rows(
            self.streams, self.advantages, aggregation, feedback_trained=trained, horizon_tokens=HORIZON
        )
        return [replace(row, recomputed=tuple(old)) for row, old in zip(rows, self.recomputed, strict=True)]

    def policy_log_p(self, number: int) -> tuple[list[float], list[float]]:
        """log p of one stream's POLICY tokens, now and when they were sampled."""
        where = [t for t, source in enumerate(self.streams[number].sources) if source is Source.POLICY]
        return [self.log_p[number][t] for t in where], [self.recomputed[number][t] for t in where]


def log_probs(rng: random.Random, source: Source, clips: tuple[Clip, Clip]) -> tuple[float, float]:
    """Draw log p now and then; any numbers where they are not read. No ratio stands on a clip's edge."""
    if source in (Source.PROMPT, Source.SCAFFOLD):
        return rng.uniform(-50.0, 50.0), rng.uniform(-50.0, 50.0)
    edges = [log(edge) for clip in clips for edge in (1 - clip.low, 1 + clip.high)]
    while True:
        old = rng.uniform(-12.0 if source is Source.FEEDBACK else -3.0, 0.0)
        new = min(0.0, old + rng.uniform(-0.8, 0.8))
        if all(abs(new - old - edge) > 1e-6 for edge in edges):
            return new, old


@st.composite
def cases(draw: st.DrawFn, objective: ObjectiveSettings, feedback: bool = True) -> Case:
    """Structure by Hypothesis, so that it shrinks; numbers by a drawn seed."""
    kinds = [Source.POLICY, Source.SCAFFOLD, *[Source.FEEDBACK] * feedback]
    run = st.tuples(st.sampled_from(kinds), st.integers(0, 4))
    shapes = draw(st.lists(st.tuples(st.integers(1, 3), st.lists(run, max_size=5)), min_size=1, max_size=6))
    rng = random.Random(draw(st.integers(0, 2**32 - 1)))
    case = Case([], [], [], [])
    for prompt, runs in shapes:
        segments, news, olds = [], [], []
        for source, length in [(Source.PROMPT, prompt), *runs]:
            clips = (objective.surrogate.clip, objective.coefficient.clip)
            pairs = [log_probs(rng, source, clips) for _ in range(length)]
            news += [new for new, _ in pairs]
            olds += [old for _, old in pairs]
            sampled = tuple(old for _, old in pairs) if source is Source.POLICY else ()
            segments.append(Segment(source, tuple(rng.randrange(90) for _ in pairs), sampled))
        case.streams.append(TokenStream(tuple(segments)))
        case.advantages.append(Advantage(*rng.choices([-1.3, -0.4, 0.0, 0.6, 1.7], k=2)))
        case.log_p.append(news)
        case.recomputed.append(olds)
    return case


@st.composite
def objectives(draw: st.DrawFn) -> ObjectiveSettings:
    clips = [Clip(draw(st.floats(0.05, 0.6)), draw(st.floats(0.05, 0.6))) for _ in range(2)]
    kind, floor, shape = (
        draw(st.sampled_from(Coefficient)),
        draw(st.floats(0.01, 1.0)),
        draw(st.floats(0.01, 1.0)),
    )
    coefficient = CoefficientSettings(kind, floor, shape, clips[1])
    surrogate = SurrogateSettings(draw(st.sampled_from(Surrogate)), clips[0])
    return ObjectiveSettings(surrogate, coefficient, draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])))


AGGREGATIONS = st.sampled_from(Aggregation)
SETTINGS_AND_CASES = objectives().flatmap(lambda objective: st.tuples(st.just(objective), cases(objective)))


def feedback(p: float, old: float, a: float, s: CoefficientSettings) -> tuple[float, float]:
    """C A and its derivative W A, from the table of method.md."""
    lifted = max(p, s.floor) if a > 0 else p
    table: dict[Coefficient, Callable[[], tuple[float, float]]] = {
        Coefficient.MASKED: lambda: (0.0, 0.0),
        Coefficient.RATIO: lambda: clipped(p / old, a, s.clip),
        Coefficient.UNIT: lambda: (p * a, p * a),
        Coefficient.SHAPED: lambda: (p / (p + s.shape) * a, s.shape * p / (p + s.shape) ** 2 * a),
        Coefficient.ATTENUATED: lambda: (p / max(p, s.floor) * a, min(1.0, p / s.floor) * a),
        Coefficient.STOPGRAD: lambda: (lifted * log(p) * a, lifted * a),
        Coefficient.FLOORED: lambda: (lifted * a, lifted * a),
        Coefficient.LIKELIHOOD: lambda: (log(p) * a, a),
    }
    return table[s.kind]()


def reference(case: Case, s: ObjectiveSettings, aggregation: Aggregation) -> tuple[float, list[list[float]]]:
    """-J and its gradient, token by token; knows no tensor, no padding and no row."""
    trained = {Source.POLICY}
    if s.feedback_weight != 0 and s.coefficient.kind is not Coefficient.MASKED:
        trained.add(Source.FEEDBACK)
    counts = [sum(source in trained for source in stream.sources) for stream in case.streams]
    loss, gradients = 0.0, []
    for number, stream in enumerate(case.streams):
        gradient = [0.0] * len(stream)
        own, clip = case.advantages[number], s.surrogate.clip
        terms = iter(policy_terms(s.surrogate.kind, *case.policy_log_p(number), own.policy, clip))
        for t, source in enumerate(stream.sources):
            if source not in trained:
                continue
            sequences = len([count for count in counts if count])
            n = {
                Aggregation.TOKEN_MEAN: sum(counts),
                Aggregation.SEQUENCE_MEAN: sequences * counts[number],
                Aggregation.SEQUENCE_SUM: sequences,
                Aggregation.HORIZON: sequences * HORIZON,
            }[aggregation]
            p, old = exp(case.log_p[number][t]), exp(case.recomputed[number][t])
            if source is Source.POLICY:
                value, slope = next(terms)
            else:
                value, slope = feedback(p, old, own.feedback, s.coefficient)
                value, slope = s.feedback_weight * value, s.feedback_weight * slope
            loss -= value / n
            gradient[t] = -slope / n
        gradients.append(gradient)
    return loss, gradients


def widened(batch: TokenBatch, more: int) -> TokenBatch:
    """The same batch with more padding on the right, with other numbers in it."""

    def pad(values: torch.Tensor, fill: float) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, more), value=fill)

    return TokenBatch(
        pad(batch.ids, PAD),
        pad(batch.sources, Source.SCAFFOLD),
        pad(batch.attended, 0),
        *(pad(values, 5.0) for values in (batch.log_p_old, batch.policy_advantage)),
        *(pad(values, 5.0) for values in (batch.feedback_advantage, batch.weight)),
    )


def computed(
    rows: list[Row],
    log_p: list[list[float]],
    s: ObjectiveSettings,
    more: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """-J's share of one micro-batch and its gradient, padding included; log p at padding is any number."""
    batch = widened(collate(rows, PAD, dtype), more)
    width = batch.ids.shape[1]
    values = [own + [-3.0 - i for i in range(width - len(own))] for own in log_p]
    variable = torch.tensor(values, dtype=dtype, requires_grad=True)
    loss = objective_loss(variable, batch, s)
    loss.backward()
    assert variable.grad is not None
    return loss.detach(), variable.grad


def assert_same(found: list[list[float]], expected: list[list[float]]) -> None:
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-9, abs=1e-9)


@quiet
@given(SETTINGS_AND_CASES, AGGREGATIONS)
def test_loss_and_gradient_are_those_of_the_reference(
    drawn: tuple[ObjectiveSettings, Case], aggregation: Aggregation
) -> None:
    s, case = drawn
    loss, gradient = computed(case.rows(s, aggregation), case.log_p, s)
    expected, slopes = reference(case, s, aggregation)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    lengths = map(len, case.streams)
    assert_same([row[:n] for row, n in zip(gradient.tolist(), lengths, strict=True)], slopes)


@quiet
@given(SETTINGS_AND_CASES, AGGREGATIONS, st.data())
def test_order_micro_batches_and_padding_change_nothing(
    drawn: tuple[ObjectiveSettings, Case], aggregation: Aggregation, data: st.DataObject
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
@given(SETTINGS_AND_CASES, AGGREGATIONS, st.data())
def test_ranks_that_share_a_batch_add_up_to_one_that_has_it_whole(
    drawn: tuple[ObjectiveSettings, Case], aggregation: Aggregation, data: st.DataObject
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
@given(SETTINGS_AND_CASES, AGGREGATIONS)
def test_tokens_that_are_not_trained_and_padding_have_exactly_zero_gradient(
    drawn: tuple[ObjectiveSettings, Case], aggregation: Aggregation
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
@given(SETTINGS_AND_CASES, AGGREGATIONS)
def test_a_row_without_advantage_has_exactly_zero_gradient(
    drawn: tuple[ObjectiveSettings, Case], aggregation: Aggregation
) -> None:
    s, case = drawn
    case.advantages[0] = Advantage(0.0, 0.0)
    _, gradient = computed(case.rows(s, aggregation), case.log_p, s)
    assert (gradient[0] == 0.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@quiet
@given(
    objectives().flatmap(lambda s: st.tuples(st.just(s), cases(s, feedback=False))),
    AGGREGATIONS,
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_without_feedback_tokens_every_coefficient_is_the_base_algorithm_bit_for_bit(
    dtype: torch.dtype, drawn: tuple[ObjectiveSettings, Case], aggregation: Aggregation, weight: float
) -> None:
    s, case = drawn
    base = replace(s, coefficient=replace(s.coefficient, kind=Coefficient.MASKED))
    loss, gradient = computed(case.rows(base, aggregation), case.log_p, base, dtype=dtype)
    for kind in Coefficient:
        full = replace(s, coefficient=replace(s.coefficient, kind=kind), feedback_weight=weight)
        other_loss, other_gradient = computed(case.rows(full, aggregation), case.log_p, full, dtype=dtype)
        assert torch.equal(loss, other_loss)
        assert torch.equal(gradient, other_gradient)


@quiet
@given(SETTINGS_AND_CASES)
def test_a_feedback_weight_of_zero_is_the_coefficient_masked(drawn: tuple[ObjectiveSettings, Case]) -> None:
    s, case = drawn
    off = replace(s, feedback_weight=0.0)
    masked = replace(s, coefficient=replace(s.coefficient, kind=Coefficient.MASKED))
    results = [computed(case.rows(each, Aggregation.TOKEN_MEAN), case.log_p, each) for each in (off, masked)]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@quiet
@given(SETTINGS_AND_CASES, AGGREGATIONS, st.booleans())
def test_the_weights_are_those_of_the_mean_that_the_aggregation_is_named_after(
    drawn: tuple[ObjectiveSettings, Case], aggregation: Aggregation, trained: bool
) -> None:
    _, case = drawn
    rows = weighted_rows(
        case.streams, case.advantages, aggregation, feedback_trained=trained, horizon_tokens=HORIZON
    )
    counts = [trained_tokens(stream, trained) for stream in case.streams]
    shares = [row.weight * count for row, count in zip(rows, counts, strict=True)]
    if aggregation in (Aggregation.TOKEN_MEAN, Aggregation.SEQUENCE_MEAN):  # means over tokens
        assert sum(shares) == pytest.approx(1.0 if any(counts) else 0.0, abs=1e-12)
    if aggregation is Aggregation.SEQUENCE_MEAN:
        assert max(shares) == pytest.approx(min([share for share in shares if share], default=0.0))
    else:  # every trained token weighs the same
        assert len({row.weight for row, count in zip(rows, counts, strict=True) if count}) <= 1
    if aggregation in (Aggregation.SEQUENCE_SUM, Aggregation.HORIZON):
        factor = HORIZON if aggregation is Aggregation.HORIZON else 1
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
@given(SETTINGS_AND_CASES, AGGREGATIONS, st.integers(1, 120))
def test_micro_batches_hold_every_row_once_with_its_weight_and_fit(
    drawn: tuple[ObjectiveSettings, Case], aggregation: Aggregation, most: int
) -> None:
    s, case = drawn
    rows = case.rows(s, aggregation)
    parts = microbatches(rows, most)
    assert sorted(id(row) for part in parts for row in part) == sorted(map(id, rows))
    for part in parts:
        batch = collate(part, PAD, torch.float64)
        assert batch.ids.numel() <= most or len(part) == 1
        assert batch.weight[:, 0].tolist() == [row.weight for row in part]
    for part, following in pairwise(parts):  # none is cut without need
        assert (len(part) + 1) * len(following[0].stream) > most


@quiet
@given(SETTINGS_AND_CASES, AGGREGATIONS)
def test_a_batch_holds_each_stream_and_pads_what_is_neither_attended_nor_trained(
    drawn: tuple[ObjectiveSettings, Case], aggregation: Aggregation
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


@quiet
@given(SETTINGS_AND_CASES)
def test_the_sums_for_the_records_count_what_they_are_named_after(
    drawn: tuple[ObjectiveSettings, Case],
) -> None:
    s, case = drawn
    assume(any(stream.count(Source.POLICY) for stream in case.streams))
    batch = collate(case.rows(s, Aggregation.TOKEN_MEAN), PAD, torch.float64)
    width = batch.ids.shape[1]
    log_p = torch.tensor([own + [-1.0] * (width - len(own)) for own in case.log_p], dtype=torch.float64)
    expected = dict.fromkeys(objective_sums(log_p, batch, s), 0.0)
    for number, (stream, own) in enumerate(zip(case.streams, case.advantages, strict=True)):
        news, olds = case.log_p[number], case.recomputed[number]
        for source, new, old in zip(stream.sources, news, olds, strict=True):
            if source is Source.POLICY:
                expected["policy_tokens"] += 1
                ratio = exp(new - old)
                if s.surrogate.kind is Surrogate.SEQUENCE:
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
