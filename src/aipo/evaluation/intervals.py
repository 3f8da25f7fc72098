"""Intervals of shares, exact bounds, and the correction for many comparisons.

Owns the closed forms. Must not know records or how a share came about. Invariant: no interval has width 0
only because nothing varied: what was seen in n trials bounds a share by an exact binomial bound.
"""

from collections.abc import Sequence
from math import exp, isnan, lgamma, log, log1p, nan, sqrt

Z = 1.959963984540054
"""The 97.5 % point of the normal distribution."""

ALPHA = 0.05


def clopper_pearson(successes: int, trials: int, alpha: float = ALPHA) -> tuple[float, float]:
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
    # The upper end is the share p at which so few successes, or fewer, have probability alpha / 2.
    low = 1.0 - _upper(trials - successes, trials, alpha / 2)
    return low, _upper(successes, trials, alpha / 2)


def zero_bound(trials: int, alpha: float = ALPHA) -> float:
    """Return the largest share that 0 successes of so many trials leave open: 1 - alpha^(1/n), about 3/n.

    One-sided. NaN without trials.

    >>> round(zero_bound(4), 3), round(zero_bound(100), 4)
    (0.527, 0.0295)
    """
    return nan if trials == 0 else 1.0 - alpha ** (1.0 / trials)


def fixed_questions(share: float, standard_error: float, successes: int, trials: int) -> tuple[float, float]:
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


def all_questions(share: float, low: float, high: float, questions: int) -> tuple[float, float]:
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
