"""A slow reference of the objective J, written token by token (docs/method.md#objective), and its cases."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp, log

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from aipo.core.advantages import Advantage
from aipo.core.batch import AGGREGATIONS, Row, TokenBatch, collate, weighted_rows
from aipo.core.coefficients import COEFFICIENTS
from aipo.core.feedback import CoefficientSettings
from aipo.core.objective import ObjectiveSettings, objective_loss
from aipo.core.surrogates import SURROGATES, Clip, SurrogateSettings
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Source
from support.surrogates import clipped, policy_terms

PAD, HORIZON = 99, 40
quiet = settings(deadline=None)


@dataclass(frozen=True)
class Case:
    """Streams of one global batch, their advantages, and log p of each token now and when it was sampled."""

    streams: list[TokenStream]
    advantages: list[Advantage]
    log_p: list[list[float]]
    recomputed: list[list[float]]

    def rows(self, objective: ObjectiveSettings, aggregation: str) -> list[Row]:
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
        draw(st.sampled_from(list(COEFFICIENTS))),
        draw(st.floats(0.01, 1.0)),
        draw(st.floats(0.01, 1.0)),
    )
    below_zero = draw(st.booleans())
    coefficient = CoefficientSettings(
        kind=kind, floor=floor, shape=shape, clip=clips[1], unit_below_zero=below_zero
    )
    surrogate = SurrogateSettings(draw(st.sampled_from(list(SURROGATES))), clips[0])
    return ObjectiveSettings(
        surrogate=surrogate,
        coefficient=coefficient,
        feedback_weight=draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
    )


AGGREGATION_NAMES = st.sampled_from(list(AGGREGATIONS))
SETTINGS_AND_CASES = objectives().flatmap(lambda objective: st.tuples(st.just(objective), cases(objective)))


def feedback(p: float, old: float, a: float, s: CoefficientSettings) -> tuple[float, float]:
    """C A and its derivative W A, from the table of docs/method.md#coefficients."""
    lifted = max(p, s.floor) if a > 0 else p
    if a < 0 and s.unit_below_zero and s.kind != "masked":
        return p * a, p * a
    table: dict[str, Callable[[], tuple[float, float]]] = {
        "masked": lambda: (0.0, 0.0),
        "ratio": lambda: clipped(p / old, a, s.clip),
        "agent": lambda: (min(p / old, s.truncation) * a,) * 2,  # `old` is the agent's q
        "unit": lambda: (p * a, p * a),
        "shaped": lambda: (p / (p + s.shape) * a, s.shape * p / (p + s.shape) ** 2 * a),
        "attenuated": lambda: (p / max(p, s.floor) * a, min(1.0, p / s.floor) * a),
        "stopgrad": lambda: (lifted * log(p) * a, lifted * a),
        "floored": lambda: (lifted * a, lifted * a),
        "likelihood": lambda: (log(p) * a, a),
    }
    return table[s.kind]()


def reference(case: Case, s: ObjectiveSettings, aggregation: str) -> tuple[float, list[list[float]]]:
    """-J and its gradient, token by token; knows no tensor, no padding and no row."""
    trained = {Source.POLICY}
    if s.feedback_weight != 0 and s.coefficient.kind != "masked":
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
                "token_mean": sum(counts),
                "sequence_mean": sequences * counts[number],
                "sequence_sum": sequences,
                "horizon": sequences * HORIZON,
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
        ids=pad(batch.ids, PAD),
        sources=pad(batch.sources, Source.SCAFFOLD),
        attended=pad(batch.attended, 0),
        log_p_old=pad(batch.log_p_old, 5.0),
        policy_advantage=pad(batch.policy_advantage, 5.0),
        feedback_advantage=pad(batch.feedback_advantage, 5.0),
        weight=pad(batch.weight, 5.0),
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
