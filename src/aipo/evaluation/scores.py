"""From samples to scores: Avg@n and pass@k of each benchmark and stratum, and their mean over benchmarks.

Owns what is counted. Must not know how samples were made, nor how results are shown. Invariant: an UNGRADED
sample is in no denominator of a share of CORRECT ones, and is counted beside it; equal samples give equal
scores, whatever their order.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np

from aipo.core.passk import pass_at_k
from aipo.core.types import Verdict
from aipo.evaluation.benchmark_run import TOO_LONG, truncated
from aipo.evaluation.intervals import Z, all_questions, fixed_questions
from aipo.evaluation.manifest import Manifest
from aipo.evaluation.records import SCHEMA, EvaluationRecord, ProblemResult
from aipo.evaluation.samples import Sample
from aipo.evaluation.statistics import Estimate, Floats, estimate, resampled_means

ALL = "all"
"""The stratum that every question of a benchmark is in."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class PassAtK:
    """pass@k over questions with its interval over new questions; NaN where no question has k graded
    samples."""

    k: int
    value: float
    interval: Interval
    left_out: int
    """Questions with fewer than k graded samples."""


@dataclass(frozen=True, slots=True)
class Score:
    """How one condition did on a benchmark, or on one of its strata. Shares are in [0, 1]."""

    benchmark: str
    condition: str
    stratum: str
    questions: int
    samples: int
    """n: samples of each question."""
    average: float
    """Avg@n: the mean over questions of the share of their graded samples that are CORRECT."""
    fixed: Interval
    """95 %: over new samples of these questions."""
    population: Interval
    """95 %: over a new set of questions."""
    sampling_se: float
    question_se: float
    pass_at: tuple[PassAtK, ...]
    correct: int
    graded: int
    truncated: float
    """Share of all samples that were cut at the limit of tokens."""
    ungraded: int
    too_long: int
    """Questions whose prompt does not fit the policy's context: wrong."""
    unreadable: int
    """Questions whose prompt holds words that the tokenizer does not know: asked all the same."""
    response_tokens: int
    prompt_tokens: int
    agent_tokens: int
    consultations: int

    @property
    def all_samples(self) -> int:
        """Samples, ungraded ones included."""
        return self.graded + self.ungraded


@dataclass(frozen=True, slots=True)
class Overall:
    """The mean of Avg@n over benchmarks, each with the same weight; NaN if one has none."""

    condition: str
    average: float
    fixed: Interval
    population: Interval


def scores(manifest: Manifest, samples: Iterable[Sample]) -> list[Score]:
    """Return the scores by condition, benchmark and stratum; `all` first, strata where there are several."""
    found: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        found.setdefault((sample.condition, sample.benchmark), []).append(sample)
    result = []
    for condition in manifest.conditions:
        for questions in manifest.benchmarks:
            own = found.get((condition, questions.name), [])
            strata = sorted({sample.stratum for sample in own})
            named = [ALL] if len(strata) < 2 else [ALL, *strata]
            for stratum in named if own else []:
                chosen = [s for s in own if stratum == ALL or s.stratum == stratum]
                result.append(_score(chosen, stratum, questions.samples))
    return result


def overall(manifest: Manifest, samples: Sequence[Sample], condition: str) -> Overall:
    """Return the mean over benchmarks. Its sources of chance are independent from benchmark to benchmark.

    **fixed**: normal, from the benchmarks' sampling errors; NaN where one has none. **population**:
    percentiles of the mean of the benchmarks' bootstrap means: a bootstrap over questions, stratified by
    benchmark.
    """
    shares, errors = [], []
    for questions in manifest.benchmarks:
        own = [s for s in samples if (s.condition, s.benchmark) == (condition, questions.name)]
        shares.append(question_shares(own, 1))
        errors.append(_estimate(own, 1).sampling_se if own else nan)
    if any(not len(each) for each in shares):
        return Overall(condition, nan, (nan, nan), (nan, nan))
    average = float(np.mean([each.mean() for each in shares]))
    half = Z * sum(error**2 for error in errors) ** 0.5 / len(errors)
    fixed = (nan, nan) if isnan(half) or half == 0 else (max(0.0, average - half), min(1.0, average + half))
    return Overall(condition, average, fixed, stratified_interval(shares))


def stratified_interval(values: Sequence[Floats]) -> Interval:
    """Return the 95 % bootstrap interval of the mean over groups of their means; drawn apart in each group.

    NaN where a group has fewer than two values, or where nothing varies.
    """
    if any(len(group) < 2 for group in values):
        return nan, nan
    means = np.mean([resampled_means(group, 100 + i) for i, group in enumerate(values)], axis=0)
    low, high = np.quantile(means, [0.025, 0.975])
    return (nan, nan) if low == high else (float(low), float(high))


def question_shares(samples: Sequence[Sample], k: int) -> Floats:
    """Return pass@k of each question, in the order of their ids; questions with fewer graded samples are
    left out."""
    values = np.array([pass_at_k(r.graded, r.correct, k) for r in results(samples)], dtype=np.float64)
    measured: Floats = values[~np.isnan(values)]
    return measured


def results(samples: Iterable[Sample], stratum: str = ALL) -> tuple[ProblemResult, ...]:
    """Return the counts of each question, in the order of their ids."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.problem, []).append(sample)
    return tuple(
        ProblemResult(
            problem=problem,
            stratum=stratum,
            samples=len(own),
            correct=sum(s.verdict == Verdict.CORRECT for s in own),
            ungraded=sum(not s.graded for s in own),
            truncated=sum(map(truncated, own)),
        )
        for problem, own in sorted(found.items())
    )


def as_record(samples: Sequence[Sample], label: str, mode: str, stratum: str = ALL) -> EvaluationRecord:
    """Return samples of one benchmark as the record that `statistics` and `plots` read."""
    return EvaluationRecord(SCHEMA, label, label, 0, 0, "test", mode, results(samples, stratum))


def curve_ks(n: int) -> list[int]:
    """Return 1, 2, 4 .. up to n, and n.

    >>> curve_ks(1), curve_ks(6)
    ([1], [1, 2, 4, 6])
    """
    return sorted({*(2**i for i in range(n.bit_length())), n})


def _score(samples: Sequence[Sample], stratum: str, n: int) -> Score:
    first = samples[0]
    average = _estimate(samples, 1)
    correct = sum(s.verdict == Verdict.CORRECT for s in samples)
    graded = sum(s.graded for s in samples)
    by_problem: Mapping[str, Sample] = {s.problem: s for s in samples}
    return Score(
        benchmark=first.benchmark,
        condition=first.condition,
        stratum=stratum,
        questions=len(by_problem),
        samples=n,
        average=average.value,
        fixed=fixed_questions(average.value, average.sampling_se, correct, graded),
        population=all_questions(average.value, average.low, average.high, average.problems),
        sampling_se=average.sampling_se,
        question_se=average.question_se,
        pass_at=tuple(_pass_at(samples, k) for k in curve_ks(n)),
        correct=correct,
        graded=graded,
        truncated=sum(map(truncated, samples)) / len(samples),
        ungraded=len(samples) - graded,
        too_long=sum(s.reason == TOO_LONG for s in by_problem.values()),
        unreadable=sum(s.unknown_tokens > 0 for s in by_problem.values()),
        response_tokens=sum(s.response_tokens for s in samples),
        prompt_tokens=sum(s.prompt_tokens for s in samples),
        agent_tokens=sum(s.agent_tokens for s in samples),
        consultations=sum(s.consultations for s in samples),
    )


def _pass_at(samples: Sequence[Sample], k: int) -> PassAtK:
    found = _estimate(samples, k)
    interval = all_questions(found.value, found.low, found.high, found.problems)
    return PassAtK(k, found.value, interval, found.left_out)


def _estimate(samples: Sequence[Sample], k: int) -> Estimate:
    return estimate([as_record(samples, "policy", "solo")], ALL, k)
