"""What a finished evaluation of a checkpoint says: Avg@n, pass@k, their means, and differences to others.

An UNGRADED sample is in no denominator of a share of CORRECT ones, and is counted beside it. Equal samples
give equal scores, whatever their order. Only finished evaluations of equal questions, prompts, graders and
sampling are compared; anything else is an error that shows the difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path

import numpy as np

from aipo.core.passk import pass_at_k
from aipo.core.types import Verdict
from aipo.evaluation.intervals import (
    Interval,
    SolvedSets,
    Z,
    all_questions,
    clopper_pearson,
    fixed_questions,
    holm,
    solved_sets,
)
from aipo.evaluation.manifest import EvaluationError, Manifest, differences, read_manifest
from aipo.evaluation.records import EvaluationRecord
from aipo.evaluation.samples import ALL, TOO_LONG, Sample, SampleFile, as_record, refuse_foreign
from aipo.evaluation.statistics import Difference, Floats, estimate, paired_difference, stratified_interval


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A folder of `aipo evaluate CHECKPOINT`, read back."""

    label: str
    manifest: Manifest
    samples: tuple[Sample, ...]

    def of(self, benchmark: str, condition: str = "solo") -> list[Sample]:
        """Return the samples of one benchmark in one condition."""
        return [s for s in self.samples if (s.benchmark, s.condition) == (benchmark, condition)]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its benchmarks."""
        return tuple(questions.name for questions in self.manifest.benchmarks)

    def records(self) -> list[EvaluationRecord]:
        """Return one record for each condition and benchmark, whose `split` is the benchmark's name."""
        alone = str(self.manifest.sampling["solo_mode"])
        return [
            replace(
                as_record(self.of(name, condition), self.label, stratum=""),
                seed=self.manifest.seed,
                split=name,
                mode=alone if condition == "solo" else condition,
            )
            for condition in self.manifest.conditions
            for name in self.names
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassAtK:
    """pass@k over questions with its interval over new questions; NaN where no question has k graded
    samples."""

    k: int
    value: float
    interval: Interval
    left_out: int
    """Questions with fewer than k graded samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Overall:
    """The mean of Avg@n over benchmarks, each with the same weight; NaN if one has none."""

    condition: str
    average: float
    fixed: Interval
    population: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkDifference:
    """One benchmark, one pair: how much higher `a` is than `b`."""

    name: str
    difference: Difference
    """Of Avg@n."""
    holm_p: float
    """Its p-value, corrected for all benchmarks of all pairs of the comparison."""
    curve: Mapping[int, Difference]
    """Of pass@k, by k; not corrected, for the eye."""
    sets: SolvedSets


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two evaluations, benchmark by benchmark."""

    a: str
    b: str
    benchmarks: tuple[BenchmarkDifference, ...]
    overall: float
    """Mean over benchmarks of the differences of Avg@n."""
    overall_interval: Interval


def read_evaluation(folder: Path) -> Evaluation:
    """Return a folder's evaluation. Raises `EvaluationError` or `RecordError`; so does an unfinished one."""
    manifest, file = read_manifest(folder), SampleFile(folder)
    samples = tuple(file.read().values())
    refuse_foreign(file.path, samples, manifest.policy, {q.name: q.digest for q in manifest.benchmarks})
    if len(samples) != manifest.samples:
        raise EvaluationError(
            f"{folder}: {len(samples)} of {manifest.samples} samples are there; the same `aipo evaluate` "
            "command continues, compare afterwards"
        )
    return Evaluation(str(folder), manifest, samples)


def scores(evaluation: Evaluation) -> list[Score]:
    """Return the scores by condition, benchmark and stratum; `all` first, strata where there are several."""
    found = []
    for condition in evaluation.manifest.conditions:
        for questions in evaluation.manifest.benchmarks:
            own = evaluation.of(questions.name, condition)
            strata = sorted({sample.stratum for sample in own})
            for stratum in [*([ALL] if own else []), *(strata if len(strata) > 1 else [])]:
                chosen = [s for s in own if stratum == ALL or s.stratum == stratum]
                found.append(_score(chosen, stratum, questions.samples))
    return found


def overall(evaluation: Evaluation, condition: str = "solo") -> Overall:
    """Return the mean over benchmarks. Its sources of chance are independent from benchmark to benchmark.

    **fixed**: normal, from the benchmarks' sampling errors; NaN where one has none. **population**:
    percentiles of the mean of the benchmarks' bootstrap means: a bootstrap over questions, stratified by
    benchmark.
    """
    records = [as_record(evaluation.of(name, condition), "policy") for name in evaluation.names]
    shares = [_measured(_shares(record)) for record in records]
    if any(not len(each) for each in shares):
        return Overall(condition=condition, average=nan, fixed=(nan, nan), population=(nan, nan))
    average = float(np.mean([each.mean() for each in shares]))
    errors = [estimate([record], ALL, 1).sampling_se for record in records]
    half = Z * sum(error**2 for error in errors) ** 0.5 / len(errors)
    fixed = (nan, nan) if isnan(half) or half == 0 else (max(0.0, average - half), min(1.0, average + half))
    return Overall(condition=condition, average=average, fixed=fixed, population=stratified_interval(shares))


def compared(evaluations: Sequence[Evaluation]) -> list[Pair]:
    """Return each later evaluation against the first, as (first, later), in the condition `solo`.

    Raises `EvaluationError` where they differ in more than policy, seed and agents.
    """
    first, *others = evaluations
    for other in others:
        _refuse_unequal(first, other)
    found = [[paired(first.of(name), other.of(name), 1) for name in first.names] for other in others]
    corrected = iter(holm([difference.p_value for row in found for difference in row]))
    return [
        _pair(first, other, [(difference, next(corrected)) for difference in row])
        for other, row in zip(others, found, strict=True)
    ]


def agents_worth(evaluation: Evaluation) -> list[tuple[str, Difference, float]]:
    """Return, by benchmark, how much higher Avg@n is with agents than alone, and its p-value after Holm."""
    names = evaluation.names
    found = [paired(evaluation.of(name, "agents"), evaluation.of(name), 1) for name in names]
    return list(zip(names, found, holm([each.p_value for each in found]), strict=True))


def paired(a: Sequence[Sample], b: Sequence[Sample], k: int) -> Difference:
    """Return pass@k of `a` minus that of `b` over the same questions of one benchmark.

    Where no question differs all resamples agree on 0. A mean difference of m over all questions would make
    at least the share |m| of them differ, so the exact bound for 0 of Q questions holds for |m|.
    """
    found = paired_difference([as_record(a, "a")], [as_record(b, "b")], ALL, k)
    if found.problems and found.low == found.high == 0:
        _, bound = clopper_pearson(0, found.problems)
        return replace(found, low=-bound, high=bound)
    return found


def curve_ks(n: int) -> list[int]:
    """Return 1, 2, 4 .. up to n, and n.

    >>> curve_ks(1), curve_ks(6)
    ([1], [1, 2, 4, 6])
    """
    return sorted({*(2**i for i in range(n.bit_length())), n})


def _score(samples: Sequence[Sample], stratum: str, n: int) -> Score:
    first = samples[0]
    record = [as_record(samples, "policy")]
    average = estimate(record, ALL, 1)
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
        pass_at=tuple(_pass_at(record, k) for k in curve_ks(n)),
        correct=correct,
        graded=graded,
        truncated=sum(s.truncated for s in samples) / len(samples),
        ungraded=len(samples) - graded,
        too_long=sum(s.reason == TOO_LONG for s in by_problem.values()),
        unreadable=sum(s.unknown_tokens > 0 for s in by_problem.values()),
        response_tokens=sum(s.response_tokens for s in samples),
        prompt_tokens=sum(s.prompt_tokens for s in samples),
        agent_tokens=sum(s.agent_tokens for s in samples),
        consultations=sum(s.consultations for s in samples),
    )


def _pass_at(record: Sequence[EvaluationRecord], k: int) -> PassAtK:
    found = estimate(record, ALL, k)
    interval = all_questions(found.value, found.low, found.high, found.problems)
    return PassAtK(k=k, value=found.value, interval=interval, left_out=found.left_out)


def _shares(record: EvaluationRecord) -> Floats:
    """Return the share of correct ones of each question's graded samples; NaN without any."""
    return np.array([pass_at_k(r.graded, r.correct, 1) for r in record.results], dtype=np.float64)


def _measured(values: Floats) -> Floats:
    kept: Floats = values[~np.isnan(values)]
    return kept


def _pair(a: Evaluation, b: Evaluation, found: Sequence[tuple[Difference, float]]) -> Pair:
    """Add curves, sets and the mean over benchmarks, for which questions are drawn anew in each benchmark,
    together for both sides."""
    benchmarks, moved = [], []
    for name, (difference, corrected) in zip(a.names, found, strict=True):
        own, other = a.of(name), b.of(name)
        one, two = as_record(own, "a"), as_record(other, "b")
        ks = curve_ks(max(result.samples for result in one.results))
        benchmarks.append(
            BenchmarkDifference(
                name=name,
                difference=difference,
                holm_p=corrected,
                curve={k: paired(own, other, k) for k in ks},
                sets=solved_sets(one.results, two.results),
            )
        )
        moved.append(_measured(_shares(one) - _shares(two)))
    whole = all(map(len, moved))
    return Pair(
        a=a.label,
        b=b.label,
        benchmarks=tuple(benchmarks),
        overall=float(np.mean([each.mean() for each in moved])) if whole else nan,
        overall_interval=stratified_interval(moved) if whole else (nan, nan),
    )


def _refuse_unequal(first: Evaluation, other: Evaluation) -> None:
    changed = differences(first.manifest, other.manifest, ("policy", "seed", "agents", "prompts"))
    prompts = [each.manifest.prompts["solo"] for each in (first, other)]
    if prompts[0] != prompts[1]:
        changed.append(f"prompts.solo: {prompts[0]} | {prompts[1]}")
    if changed:
        raise EvaluationError(
            f"{first.label} and {other.label} were evaluated differently; evaluate both with the same "
            "settings:\n  " + "\n  ".join(changed)
        )
