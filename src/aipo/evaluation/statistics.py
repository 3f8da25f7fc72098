"""What may be concluded from evaluation records: pass@k with its uncertainty, and paired differences.

Everything here is deterministic in its arguments. A problem with fewer than k graded samples is left out and
counted, never scored 0.

Three sources of chance, kept apart: other *samples* of the same problems (`sampling_se`), other *problems*
(`question_se`) and other *training seeds*. The interval covers all three when there are at least 2 seeds, and
only the first two when there is one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from math import nan

import numpy as np
from numpy.typing import NDArray

from aipo.core.passk import pass_at_k
from aipo.evaluation.records import EvaluationRecord, ProblemResult

RESAMPLES = 5_000
"""Bootstrap resamples, and random sign flips: an interval's end moves by about 1 % of its width."""

EXACT_SIGNS = 12
"""Up to this many problems that differ, all 2^m sign patterns are enumerated."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """pass@k on one stratum, a share, with its 95 % interval. NaN: these records cannot tell."""

    value: float
    low: float
    high: float
    sampling_se: float
    """Standard error over new samples of these problems by these policies."""
    question_se: float
    """Standard error over a new set of problems for these policies."""
    problems: int
    """Problems that entered."""
    left_out: int
    """Problems with fewer than k graded samples in some seed."""
    samples: int
    """Graded samples per problem and seed; the smallest that entered."""
    seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """pass@k of a minus that of b, with a 95 % interval and a two-sided p-value."""

    value: float
    low: float
    high: float
    p_value: float
    problems: int
    left_out: int
    seeds: int


def estimate(records: Sequence[EvaluationRecord], stratum: str, k: int, rng_seed: int = 0) -> Estimate:
    """Return pass@k averaged over the problems of `stratum` and over seeds; one record per seed.

    **Interval**: percentiles 2.5 and 97.5 of `RESAMPLES` bootstrap means over the table seeds x problems.
    Each resample draws P - 1 of the P problems and, where S >= 2, S - 1 of the S seeds, both with replacement
    and independently; a problem is drawn for all seeds at once, because seeds are evaluated on the same
    problems. The samples of a cell travel with it: they are nested, and drawing them again would count their
    noise twice. One fewer than there are makes the variance of a bootstrap mean the unbiased one instead of
    too small by (S - 1)/S, which is much at 3 seeds (Rao and Wu 1988, JASA 83:231, with m = n - 1).

    What the interval does not do: 2 seeds do not know their tails. Where seeds differ by a standard deviation
    of .09 it covers .89, .94, .95 with 2, 3, 6 seeds (simulated: 40 problems, 300 repetitions). Where all
    cells agree (all 0, all 1) its width is 0, which means no variation seen, not certainty: for c = 0 of n
    samples the bound is p < 3/n.

    **sampling_se**: at k = 1 that of a mean of Q binomial shares p_q of n samples, sqrt(mean_q[n/(n-1) p_q
    (1 - p_q)] / (Q n)); at larger k its generalisation, the jackknife of each problem's U-statistic (in
    expectation not too small: Efron and Stein 1981, Annals of Statistics 9:586). NaN at k = n: one Bernoulli
    draw per problem has no variance that could be estimated. **question_se**: the bootstrap over problems in
    closed form, their standard deviation over the square root of their number.

    At k = n (pass@64 of 64 samples) the value is the share of problems solved at least once: allowed,
    unbiased, and noisy; prefer n >= 2k for claims. Degenerate cases: one problem has no interval (NaN).

    Raises `ValueError` for no records, for records that are not of one method, split and mode, for a seed
    that occurs twice, for a stratum that does not occur and for seeds with different problems.
    """
    cells = _cells(records, stratum)
    table = _pass_table(cells, k)
    entered = ~np.isnan(table).any(axis=0)
    table = table[:, entered]
    seeds, problems = table.shape
    low, high = _interval(table, rng_seed)
    kept = [row[i] for row in cells for i in np.flatnonzero(entered)]
    variances = [_sampling_variance(cell.graded, cell.correct, k) for cell in kept]
    return Estimate(
        value=float(table.mean()) if problems else nan,
        low=low,
        high=high,
        sampling_se=sum(variances) ** 0.5 / len(variances) if variances else nan,
        question_se=float(table.mean(axis=0).std(ddof=1) / problems**0.5) if problems > 1 else nan,
        problems=problems,
        left_out=int((~entered).sum()),
        samples=min((cell.graded for cell in kept), default=0),
        seeds=seeds,
    )


def paired_difference(
    records_a: Sequence[EvaluationRecord],
    records_b: Sequence[EvaluationRecord],
    stratum: str,
    k: int,
    rng_seed: int = 0,
) -> Difference:
    """Return how much higher pass@k of `a` is than that of `b`, paired by problem and by order of seed.

    **Interval**: the bootstrap of `estimate` on the table of differences. **p-value**: sign-flip permutation
    over problems. Under the null hypothesis a problem's difference (mean over seeds) could as well have the
    other sign; p is the share of sign patterns whose absolute mean is at least the one seen, over all
    patterns where at most `EXACT_SIGNS` problems differ, else over `RESAMPLES` random ones with the one seen
    counted in, so that p > 0.

    The p-value takes the trained policies as given: it says whether *these* seeds differ beyond the choice of
    problems and samples, not whether another seed would. The interval is the one that includes seeds. For
    several comparisons correct with Holm. Degenerate cases: no difference anywhere is p = 1.

    Raises `ValueError` as `estimate` does, and for sides that differ in number of seeds, problems, split or
    mode.
    """
    side_a, side_b = _cells(records_a, stratum), _cells(records_b, stratum)
    if len(side_a) != len(side_b):
        raise ValueError(
            f"{len(side_a)} seeds against {len(side_b)}: a paired comparison needs as many on both sides"
        )
    _same_conditions(records_a[0], records_b[0])
    if [cell.problem for cell in side_a[0]] != [cell.problem for cell in side_b[0]]:
        raise ValueError(
            f"{records_a[0].method} and {records_b[0].method} were evaluated on different problems"
        )
    table = _pass_table(side_a, k) - _pass_table(side_b, k)
    entered = ~np.isnan(table).any(axis=0)
    table = table[:, entered]
    low, high = _interval(table, rng_seed)
    seeds, problems = table.shape
    return Difference(
        value=float(table.mean()) if problems else nan,
        low=low,
        high=high,
        p_value=_sign_flip_p(table.mean(axis=0), rng_seed) if problems else nan,
        problems=problems,
        left_out=int((~entered).sum()),
        seeds=seeds,
    )


def mean_reward(records: Sequence[EvaluationRecord], stratum: str) -> tuple[float, float, float] | None:
    """Return the mean of rewards of one's own over problems and seeds, and the interval of `estimate`.

    A problem without a reward in some seed is left out; None where all are. Raises `ValueError` as `estimate`
    does.
    """
    rewards = [[cell.reward for cell in row] for row in _cells(records, stratum)]
    table = np.array(rewards, dtype=np.float64)  # None is NaN
    table = table[:, ~np.isnan(table).any(axis=0)]
    return (float(table.mean()), *_interval(table, 0)) if table.size else None


def stratified_interval(groups: Sequence[Floats]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean over groups of their means; each group is drawn on its
    own.

    NaN where a group has fewer than two values, or where nothing varies.
    """
    if any(len(group) < 2 for group in groups):
        return nan, nan
    means = np.mean([_draws(len(group), 100 + i) @ group for i, group in enumerate(groups)], axis=0)
    low, high = np.quantile(means, [0.025, 0.975])
    return (nan, nan) if low == high else (float(low), float(high))


def paired_with(
    own: Sequence[EvaluationRecord], base: Sequence[EvaluationRecord], stratum: str, mode: str, k: int
) -> Difference | None:
    """Return the paired difference of two methods in one mode over the seeds that both have; None: no seed.

    Raises `ValueError` as `paired_difference` does.
    """
    sides = [[r for r in side if r.mode == mode and stratum in r.strata] for side in (own, base)]
    shared = {r.seed for r in sides[0]} & {r.seed for r in sides[1]}
    if not shared:
        return None
    one, other = ([r for r in side if r.seed in shared] for side in sides)
    return paired_difference(one, other, stratum, k)


def _cells(records: Sequence[EvaluationRecord], stratum: str) -> list[list[ProblemResult]]:
    """Return seeds x problems, both sorted, after checking that the records belong together."""
    if not records:
        raise ValueError("no records")
    ordered = sorted(records, key=lambda record: record.seed)
    for one, other in pairwise(ordered):
        _same_conditions(one, other)
        if one.method != other.method:
            raise ValueError(f"records of two methods: {one.method} and {other.method}")
        if one.seed == other.seed:
            raise ValueError(
                f"{one.method}, {one.mode}: seed {one.seed} twice (steps {one.step} and {other.step}); "
                "choose with `records.at_last_step`"
            )
    rows = [
        sorted((result for result in record.results if result.stratum == stratum), key=lambda r: r.problem)
        for record in ordered
    ]
    if not rows[0]:
        raise ValueError(f"{ordered[0].method}: no stratum {stratum!r}; there are {list(ordered[0].strata)}")
    if any([cell.problem for cell in row] != [cell.problem for cell in rows[0]] for row in rows):
        raise ValueError(
            f"{ordered[0].method}: seeds were evaluated on different problems of stratum {stratum!r}"
        )
    return rows


def _same_conditions(one: EvaluationRecord, other: EvaluationRecord) -> None:
    if (one.split, one.mode) != (other.split, other.mode):
        raise ValueError(f"{one.split}, {one.mode} cannot be compared with {other.split}, {other.mode}")


def _pass_table(cells: list[list[ProblemResult]], k: int) -> Floats:
    """Return pass@k, seeds x problems; NaN where fewer than k samples were graded."""
    return np.array([[pass_at_k(cell.graded, cell.correct, k) for cell in row] for row in cells])


def _sampling_variance(n: int, c: int, k: int) -> float:
    """Return the jackknife variance of one problem's pass@k; at k = 1 it is p(1 - p)/(n - 1).

    Only two leave-one-out values exist: a correct sample is left out, or a wrong one. They are f n and
    (1 - f) n in number, so the usual (n-1)/n * sum of squares is (n - 1) f (1 - f) (difference)^2.
    """
    if k >= n:
        return nan
    if c in (0, n):
        return 0.0
    share = c / n
    return (n - 1) * share * (1 - share) * (pass_at_k(n - 1, c, k) - pass_at_k(n - 1, c - 1, k)) ** 2


def _interval(table: Floats, rng_seed: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean of a table seeds x problems (see `estimate`)."""
    seeds, problems = table.shape
    if problems < 2:
        return nan, nan
    draws = _draws(seeds, rng_seed) @ table
    low, high = np.quantile((draws * _draws(problems, rng_seed + 1)).sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _draws(units: int, rng_seed: int) -> Floats:
    """Return `RESAMPLES` x units: the weight of each unit in a mean over units - 1 draws; a single unit
    always counts.

    Cached, so that all k and all methods see the same resamples: bands vary smoothly, differences are paired.
    """
    if units == 1:
        return np.ones((RESAMPLES, 1))
    rng = np.random.default_rng([rng_seed, units])
    return rng.multinomial(units - 1, np.full(units, 1 / units), size=RESAMPLES) / (units - 1)


def _sign_flip_p(differences: Floats, rng_seed: int) -> float:
    """Return the two-sided p-value of a mean of problem differences under flips of their signs."""
    moved = differences[differences != 0]  # A zero keeps its value under either sign.
    # Patterns equal to the one seen count despite rounding.
    seen = abs(moved.sum()) - 1e-12 * np.abs(moved).sum()
    if moved.size <= EXACT_SIGNS:
        patterns = np.array(list(product((-1.0, 1.0), repeat=moved.size)))
        return float((np.abs(patterns @ moved) >= seen).mean())
    signs = np.random.default_rng([rng_seed, 2]).choice((-1.0, 1.0), size=(RESAMPLES, moved.size))
    return float(((np.abs(signs @ moved) >= seen).sum() + 1) / (RESAMPLES + 1))
