"""Closed forms: intervals of shares, exact bounds, Holm's correction, what only one of two policies solved.

No interval has width 0 only because nothing varied: what was seen in n trials bounds a share by an exact
binomial bound.

A question is *solved* by a policy if at least one of its graded samples is CORRECT. The sets of questions
that only one of two policies solved are biased by how they are made: with few samples a policy misses by bad
luck what it solves now and then. So a set never stands without what chance alone would give:

- **per question**: 0 of n leaves a chance of up to 1 - 0.05^(1/n) per sample open (`zero_bound`, 95 %);
- **another run**: the other policy, sampled n times anew, may be expected to solve up to the sum over the set
  of 1 - (1 - bound)^n of these questions. With the same n that is 95 % of the set whatever n is: a miss in n
  samples excludes next to nothing about n more. It takes many more samples (`samples_needed`);
- **equal policies**: were the two equally good at each question, its c correct ones of all its samples would
  fall to either by chance, and all c to A with probability C(n_A, c) / C(n_A + n_B, c). The sum over
  questions is the size of the set that chance gives, and their Poisson-binomial tail its exact p-value: the
  probability of a set of at least this size, given each question's total.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, comb, exp, isnan, lgamma, log, log1p, nan, sqrt

import numpy as np

from aipo.evaluation.records import ProblemResult

Z = 1.959963984540054
"""The 97.5 % point of the normal distribution."""

ALPHA = 0.05

Interval = tuple[float, float]


def clopper_pearson(successes: int, trials: int, alpha: float = ALPHA) -> Interval:
    """Return the exact two-sided interval of a binomial share, each tail alpha / 2.

    Clopper and Pearson 1934, Biometrika 26:404. NaN without trials. Raises `ValueError` for impossible
    counts.

    >>> [round(end, 4) for end in clopper_pearson(0, 10)]
    [0.0, 0.3085]
    >>> [round(end, 4) for end in clopper_pearson(3, 10)]
    [0.0667, 0.6525]
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    if trials == 0:
        return nan, nan
    # The upper end is the share p at which this number of successes, or fewer, has probability alpha / 2.
    low = 1.0 - _upper(trials - successes, trials, alpha / 2)
    return low, _upper(successes, trials, alpha / 2)


def zero_bound(trials: int, alpha: float = ALPHA) -> float:
    """Return the largest share that 0 successes in `trials` trials leave open: 1 - alpha^(1/n), about 3/n.

    One-sided. NaN without trials.

    >>> round(zero_bound(4), 3), round(zero_bound(100), 4)
    (0.527, 0.0295)
    """
    return nan if trials == 0 else 1.0 - alpha ** (1.0 / trials)


def fixed_questions(share: float, standard_error: float, successes: int, trials: int) -> Interval:
    """Return the interval of a share over new samples of the same questions.

    Wilson's interval (1927, JASA 22:209) with the effective number of trials share (1 - share) / se^2, which
    is above `trials` where questions differ in difficulty: samples of a question that is always solved tell
    nothing new. Where no question had mixed outcomes, or each was sampled once, the standard error is 0 or
    NaN and says nothing; then the pooled `clopper_pearson` stands in, which is conservative: a sum of unlike
    Bernoulli variables varies less than a binomial one (Hoeffding 1956, Ann. Math. Stat. 27:713).
    """
    if isnan(share) or trials == 0:
        return nan, nan
    if isnan(standard_error) or standard_error == 0 or share in (0.0, 1.0):
        return clopper_pearson(successes, trials)
    effective = share * (1 - share) / standard_error**2
    centre = (share + Z**2 / (2 * effective)) / (1 + Z**2 / effective)
    half = Z / (1 + Z**2 / effective) * sqrt(share * (1 - share) / effective + Z**2 / (4 * effective**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def all_questions(share: float, low: float, high: float, questions: int) -> Interval:
    """Return the interval of a share over a new set of questions: the bootstrap's, or the exact one.

    Where every question scored 0, or every one 1, all resamples agree. With Q questions such a sight has
    probability of at most (1 - share)^Q, or share^Q, whatever the distribution of difficulties; so the
    binomial bound for Q trials holds.
    """
    if share == 0.0:
        return clopper_pearson(0, questions)
    if share == 1.0:
        return clopper_pearson(questions, questions)
    return low, high


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the order given (Holm 1979, Scand. J. Stat. 6:65).

    The smallest is multiplied by m, the next by m - 1, and so on; none may fall below one before it, none
    passes 1. NaN stays NaN and does not count.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if not isnan(p))
    corrected, largest = [nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[i] = largest
    return corrected


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlySet:
    """What one policy solved and the other did not."""

    problems: tuple[str, ...]
    largest_missed: float
    """Upper 95 % bound of the other's chance per sample, the largest of the set's questions; NaN if empty."""
    another_run: float
    """Upper bound of how many of the set the other is expected to solve in as many samples again."""
    by_chance: float
    """Expected size of the set were both policies equally good at every question."""
    p_value: float
    """Chance of a set at least this large, were they so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SolvedSets:
    """Two policies over the same questions."""

    both: int
    neither: int
    only_a: OnlySet
    only_b: OnlySet


def solved_sets(a: Sequence[ProblemResult], b: Sequence[ProblemResult]) -> SolvedSets:
    """Return the sets. Raises `ValueError` where the two have different questions.

    A question without a graded sample on one side is in no set, and counts as solved by neither.
    """
    if [r.problem for r in a] != [r.problem for r in b]:
        raise ValueError("the two sides have different questions")
    pairs = [(one, other) for one, other in zip(a, b, strict=True) if one.graded and other.graded]
    both = sum(one.correct > 0 and other.correct > 0 for one, other in pairs)
    only_a, only_b = _only(pairs), _only([(other, one) for one, other in pairs])
    neither = len(a) - both - len(only_a.problems) - len(only_b.problems)
    return SolvedSets(both=both, neither=neither, only_a=only_a, only_b=only_b)


def samples_needed(share: float) -> int:
    """Return how many samples without a CORRECT one bound a policy's chance per sample below `share`.

    >>> samples_needed(0.05), samples_needed(0.01)
    (59, 299)
    """
    return ceil(log(ALPHA) / log(1 - share))


def chance_of_all(correct: int, own: int, other: int) -> float:
    """Return the chance that all correct ones of own + other exchangeable samples are among `own`.

    >>> chance_of_all(1, 4, 4), chance_of_all(0, 4, 4), chance_of_all(5, 4, 4)
    (0.5, 0.0, 0.0)
    """
    return comb(own, correct) / comb(own + other, correct) if correct else 0.0


def poisson_binomial_tail(chances: Sequence[float], at_least: int) -> float:
    """Return P(X >= at_least) for a sum of independent Bernoulli variables, by exact convolution."""
    distribution = np.zeros(len(chances) + 1)
    distribution[0] = 1.0
    for chance in chances:
        distribution[1:] = distribution[1:] * (1 - chance) + distribution[:-1] * chance
        distribution[0] *= 1 - chance
    return float(min(1.0, distribution[at_least:].sum()))


def _only(pairs: Sequence[tuple[ProblemResult, ProblemResult]]) -> OnlySet:
    """Return what the first of each pair solved and the second did not."""
    members = [(one, other) for one, other in pairs if one.correct and not other.correct]
    bounds = [zero_bound(other.graded) for _, other in members]
    chances = [chance_of_all(one.correct + other.correct, one.graded, other.graded) for one, other in pairs]
    return OnlySet(
        problems=tuple(one.problem for one, _ in members),
        largest_missed=max(bounds, default=nan),
        another_run=sum(
            1 - (1 - bound) ** other.graded for bound, (_, other) in zip(bounds, members, strict=True)
        ),
        by_chance=sum(chances),
        p_value=poisson_binomial_tail(chances, len(members)),
    )


def _upper(successes: int, trials: int, tail: float) -> float:
    """Return the p at which P(X <= successes) = tail, X ~ Binomial(trials, p); by bisection to 1e-12."""
    if successes == trials:
        return 1.0
    low, high = successes / trials, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(successes, trials, middle) > tail else (low, middle)
    return (low + high) / 2


def _at_most(successes: int, trials: int, p: float) -> float:
    """Return P(X <= successes), X ~ Binomial(trials, p), 0 < p < 1; sums at most `trials` + 1 terms."""
    return sum(
        exp(
            lgamma(trials + 1)
            - lgamma(k + 1)
            - lgamma(trials - k + 1)
            + k * log(p)
            + (trials - k) * log1p(-p)
        )
        for k in range(successes + 1)
    )
