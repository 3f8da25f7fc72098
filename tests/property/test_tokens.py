"""Token streams: whatever the segments, ids, sources and log-probabilities stay aligned, or nothing is built.

Also: a consult-stripped copy drops exactly the spans it is told to and holds nothing that the policy sampled.
"""

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aipo.core.batch import trained_tokens
from aipo.core.tokens import Segment, TokenStream, expert_stream, stripped_copy
from aipo.core.types import Source

IDS = st.lists(st.integers(0, 99), max_size=5).map(tuple)
SOME_IDS = st.lists(st.integers(0, 99), min_size=1, max_size=5).map(tuple)
LOG_PROB = st.floats(-100.0, 1e-4)
PAIRS = st.lists(st.tuples(st.integers(0, 99), LOG_PROB), max_size=5)


def with_log_probs(source: Source) -> st.SearchStrategy[Segment]:
    return PAIRS.map(lambda pairs: Segment(source, tuple(i for i, _ in pairs), tuple(p for _, p in pairs)))


INSERTED = st.builds(Segment, st.sampled_from([Source.FEEDBACK, Source.SCAFFOLD]), IDS)
INSERTED |= with_log_probs(Source.FEEDBACK)  # of an agent that reports them
SAMPLED = with_log_probs(Source.POLICY)
PROMPTS = st.builds(Segment, st.just(Source.PROMPT), SOME_IDS)
SEGMENTS = st.tuples(PROMPTS, st.lists(SAMPLED | INSERTED, max_size=6)).map(
    lambda parts: (parts[0], *parts[1])
)
STREAMS = SEGMENTS.map(TokenStream)
quiet = settings(deadline=None)


@st.composite
def streams_with_spans(draw: st.DrawFn) -> tuple[TokenStream, list[tuple[int, int]]]:
    """A stream and half-open spans of its positions: empty, overlapping and inside the prompt too."""
    stream = draw(STREAMS)
    place = st.integers(0, len(stream))
    spans = st.lists(st.tuples(place, place).map(lambda pair: (min(pair), max(pair))), max_size=4)
    return stream, draw(spans)


@quiet
@given(SEGMENTS)
def test_every_token_has_one_id_one_source_and_one_log_probability(segments: tuple[Segment, ...]) -> None:
    stream = TokenStream(segments)
    assert len(stream) == len(stream.ids) == len(stream.sources) == len(stream.log_probs)
    assert sum(stream.count(source) for source in Source) == len(stream)
    for source in Source:
        assert stream.count(source) == sum(each is source for each in stream.sources)
    assert stream.prompt_length == stream.count(Source.PROMPT) == len(segments[0].ids)


@quiet
@given(SEGMENTS)
def test_the_ids_are_those_that_the_engine_was_fed_in_their_order(segments: tuple[Segment, ...]) -> None:
    fed: list[int] = []
    for number, segment in enumerate(segments, start=1):
        fed.extend(segment.ids)
        assert TokenStream(segments[:number]).ids == tuple(fed)


@quiet
@given(SEGMENTS)
def test_each_token_keeps_what_its_segment_says_of_it(segments: tuple[Segment, ...]) -> None:
    stream, at = TokenStream(segments), 0
    for segment in segments:
        for offset, token in enumerate(segment.ids):
            assert stream.ids[at] == token
            assert stream.sources[at] is segment.source
            assert stream.log_probs[at] == (segment.log_probs[offset] if segment.log_probs else 0.0)
            at += 1
    assert at == len(stream)


@quiet
@given(SEGMENTS)
def test_the_policys_log_probabilities_stand_at_its_tokens(segments: tuple[Segment, ...]) -> None:
    stream = TokenStream(segments)
    sampled = [p for segment in segments if segment.source is Source.POLICY for p in segment.log_probs]
    pairs = list(zip(stream.log_probs, stream.sources, strict=True))
    assert [p for p, source in pairs if source is Source.POLICY] == sampled
    assert all(p == 0.0 for p, source in pairs if source in (Source.PROMPT, Source.SCAFFOLD))


@quiet
@given(st.sampled_from([Source.POLICY, Source.FEEDBACK]), IDS, st.lists(LOG_PROB, max_size=6).map(tuple))
def test_log_probabilities_that_are_not_one_for_each_token_cannot_be_built(
    source: Source, ids: tuple[int, ...], log_probs: tuple[float, ...]
) -> None:
    unreported = source is Source.FEEDBACK and not log_probs
    if len(ids) == len(log_probs) or unreported:
        assert Segment(source, ids, log_probs).log_probs == log_probs
    else:
        with pytest.raises(ValueError, match="log-probabilities"):
            Segment(source, ids, log_probs)


@pytest.mark.parametrize("source", [Source.PROMPT, Source.SCAFFOLD])
def test_tokens_that_nobody_sampled_cannot_carry_log_probabilities(source: Source) -> None:
    with pytest.raises(ValueError, match="not sampled"):
        Segment(source, (1, 2), (-1.0, -1.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 0.001, 0.7])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_log_probability_that_is_none_cannot_be_built(bad: float, at: int) -> None:
    log_probs = [-1.0, -1.0, -1.0]
    log_probs[at] = bad
    with pytest.raises(ValueError, match="not a finite number"):
        Segment(Source.POLICY, (1, 2, 3), tuple(log_probs))


def test_a_certain_token_may_be_rounded_to_a_hair_above_zero() -> None:
    assert Segment(Source.POLICY, (1, 2), (0.0, 5e-5)).log_probs == (0.0, 5e-5)


@quiet
@given(SEGMENTS, st.data())
def test_a_stream_without_its_prompt_first_and_only_first_cannot_be_built(
    segments: tuple[Segment, ...], data: st.DataObject
) -> None:
    with pytest.raises(ValueError, match="begins with a PROMPT"):
        TokenStream(segments[1:])
    with pytest.raises(ValueError, match="begins with a PROMPT"):
        TokenStream((Segment(Source.PROMPT, ()), *segments[1:]))
    at = data.draw(st.integers(1, len(segments)))
    with pytest.raises(ValueError, match="one PROMPT segment"):
        TokenStream((*segments[:at], Segment(Source.PROMPT, (7,)), *segments[at:]))


@quiet
@given(SEGMENTS)
def test_a_stream_cannot_be_changed_after_it_was_checked(segments: tuple[Segment, ...]) -> None:
    stream = TokenStream(segments)
    with pytest.raises(FrozenInstanceError):
        stream.segments = segments  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        stream.segments[0].ids = ()  # type: ignore[misc]


@quiet
@given(streams_with_spans(), SOME_IDS)
def test_a_stripped_copy_drops_exactly_the_spans_and_swaps_the_prompt(
    case: tuple[TokenStream, list[tuple[int, int]]], solo: tuple[int, ...]
) -> None:
    stream, spans = case
    kept, known = [], []
    for position in range(stream.prompt_length, len(stream)):
        if not any(start <= position < end for start, end in spans):
            kept.append(stream.ids[position])
            known.append(stream.log_probs[position])
    copy = stripped_copy(stream, spans, solo)
    assert copy.ids == (*solo, *kept)
    assert copy.log_probs == (*[0.0] * len(solo), *known)  # whoever wrote a token, wrote it with that
    assert copy.prompt_length == len(solo)


@quiet
@given(streams_with_spans(), SOME_IDS)
def test_a_stripped_copy_holds_prompt_and_feedback_only(
    case: tuple[TokenStream, list[tuple[int, int]]], solo: tuple[int, ...]
) -> None:
    copy = stripped_copy(*case, solo)
    assert set(copy.sources) <= {Source.PROMPT, Source.FEEDBACK}
    assert copy.sources[: len(solo)] == (Source.PROMPT,) * len(solo)
    assert copy.count(Source.FEEDBACK) == len(copy) - len(solo)


@quiet
@given(STREAMS, SOME_IDS)
def test_a_copy_with_nothing_kept_trains_nothing(stream: TokenStream, solo: tuple[int, ...]) -> None:
    copy = stripped_copy(stream, [(stream.prompt_length, len(stream))], solo)
    assert copy.ids == solo
    assert trained_tokens(copy, feedback_trained=True) == 0


@quiet
@given(SOME_IDS, IDS)
def test_an_experts_words_are_all_feedback(prompt: tuple[int, ...], solution: tuple[int, ...]) -> None:
    stream = expert_stream(prompt, solution)
    assert stream.ids == (*prompt, *solution)
    assert stream.sources == (Source.PROMPT,) * len(prompt) + (Source.FEEDBACK,) * len(solution)
