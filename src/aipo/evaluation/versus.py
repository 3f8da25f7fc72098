"""Two evaluations of the same questions, paired question by question.

Owns what is compared and which folders may be. Must not sample, nor know how results are shown.
Invariant: only finished evaluations of equal questions, prompts, graders and sampling are compared; anything
else is an error that shows the difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aipo.core.passk import pass_at_k
from aipo.evaluation.intervals import clopper_pearson, holm
from aipo.evaluation.manifest import EvaluationError, Manifest, differences, read_manifest
from aipo.evaluation.samples import Sample, SampleFile, refuse_foreign
from aipo.evaluation.scores import ALL, Interval, as_record, curve_ks, results, stratified_interval
from aipo.evaluation.solved_sets import SolvedSets, solved_sets
from aipo.evaluation.statistics import Difference, paired_difference


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A finished evaluation, read back."""

    label: str
    manifest: Manifest
    samples: tuple[Sample, ...]

    def of(self, benchmark: str, condition: str) -> list[Sample]:
        """Return the samples of one benchmark in one condition."""
        return [s for s in self.samples if (s.benchmark, s.condition) == (benchmark, condition)]


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Pair:
    """Two evaluations, benchmark by benchmark."""

    a: str
    b: str
    benchmarks: tuple[BenchmarkDifference, ...]
    overall: float
    """Mean over benchmarks of the differences of Avg@n."""
    overall_interval: Interval


def read_evaluation(folder: Path, finished: bool = True) -> Evaluation:
    """Return a folder's evaluation. Raises `EvaluationError` or `RecordError`; so does an unfinished one."""
    manifest, file = read_manifest(folder), SampleFile(folder)
    samples = tuple(file.read().values())
    refuse_foreign(file.path, samples, manifest.policy, {q.name: q.digest for q in manifest.benchmarks})
    if finished and len(samples) != manifest.samples:
        raise EvaluationError(
            f"{folder}: {len(samples)} of {manifest.samples} samples are there; the same `aipo evaluate` "
            "command goes on, compare afterwards"
        )
    return Evaluation(str(folder), manifest, samples)


def refuse_unequal(evaluations: Sequence[Evaluation]) -> None:
    """Refuse evaluations that differ in more than policy, seed and agents. Raises `EvaluationError`."""
    first = evaluations[0]
    for other in evaluations[1:]:
        told = ("policy", "seed", "agents", "prompts")
        changed = differences(first.manifest, other.manifest, told)
        if first.manifest.prompts["solo"] != other.manifest.prompts["solo"]:
            changed.append(
                f"prompts.solo: {first.manifest.prompts['solo']} | {other.manifest.prompts['solo']}"
            )
        if changed:
            raise EvaluationError(
                f"{first.label} and {other.label} were evaluated differently; evaluate both with the same "
                "settings:\n  " + "\n  ".join(changed)
            )


def compared(evaluations: Sequence[Evaluation]) -> list[Pair]:
    """Return each later evaluation against the first, as (first, later), in the condition `solo`."""
    refuse_unequal(evaluations)
    first, *others = evaluations
    names = [questions.name for questions in first.manifest.benchmarks]
    found = [
        [paired(first.of(name, "solo"), other.of(name, "solo"), 1) for name in names] for other in others
    ]
    corrected = iter(holm([difference.p_value for row in found for difference in row]))
    pairs = []
    for other, row in zip(others, found, strict=True):
        benchmarks = tuple(
            BenchmarkDifference(
                name,
                difference,
                next(corrected),
                _curve(first.of(name, "solo"), other.of(name, "solo")),
                solved_sets(results(first.of(name, "solo")), results(other.of(name, "solo"))),
            )
            for name, difference in zip(names, row, strict=True)
        )
        pairs.append(_pair(first, other, benchmarks))
    return pairs


def agents_worth(evaluation: Evaluation) -> list[tuple[str, Difference, float]]:
    """Return, by benchmark, how much higher Avg@n is with agents than alone, and its p-value after Holm."""
    names = [questions.name for questions in evaluation.manifest.benchmarks]
    found = [paired(evaluation.of(name, "agents"), evaluation.of(name, "solo"), 1) for name in names]
    return list(zip(names, found, holm([each.p_value for each in found]), strict=True))


def paired(a: Sequence[Sample], b: Sequence[Sample], k: int) -> Difference:
    """Return pass@k of `a` minus that of `b` over the same questions of one benchmark.

    Where no question differs all resamples agree on 0. A mean difference of m over all questions would make
    at least the share |m| of them differ, so the exact bound for 0 of Q questions holds for |m|.
    """
    found = paired_difference([as_record(a, "a", "solo")], [as_record(b, "b", "solo")], ALL, k)
    if found.problems and found.low == found.high == 0:
        _, bound = clopper_pearson(0, found.problems)
        return replace(found, low=-bound, high=bound)
    return found


def _curve(a: Sequence[Sample], b: Sequence[Sample]) -> dict[int, Difference]:
    n = max(result.samples for result in results(a))
    return {k: paired(a, b, k) for k in curve_ks(n)}


def _pair(a: Evaluation, b: Evaluation, benchmarks: tuple[BenchmarkDifference, ...]) -> Pair:
    """Add the mean over benchmarks: questions are drawn anew in each benchmark, together for both sides."""
    values = []
    for benchmark in benchmarks:
        sides = [results(each.of(benchmark.name, "solo")) for each in (a, b)]
        table = np.array([[pass_at_k(r.graded, r.correct, 1) for r in side] for side in sides])
        moved = table[0] - table[1]
        values.append(moved[~np.isnan(moved)])
    if any(not len(each) for each in values):
        return Pair(a.label, b.label, benchmarks, float("nan"), (float("nan"), float("nan")))
    overall = float(np.mean([each.mean() for each in values]))
    return Pair(a.label, b.label, benchmarks, overall, stratified_interval(values))
