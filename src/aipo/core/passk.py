"""pass@k: the chance that at least one of k samples of a problem is correct.

Too few samples give NaN, never a number that looks like a result.
"""

from math import nan, prod


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the unbiased estimate of pass@k from `c` CORRECT among `n` graded samples of one problem.

    It is 1 - C(n-c, k) / C(n, k), the share of the k-subsets of the samples that hold a correct one, as the
    product 1 - prod_{i=n-c+1..n} (1 - k/i), which neither overflows nor cancels. Source: Chen et al. 2021,
    arXiv 2107.03374, section 2.1. The plug-in 1 - (1 - c/n)^k would be biased low.

    Degenerate cases: NaN when n < k. At k = n the estimate is 1 if c > 0 and else 0, one Bernoulli draw per
    problem: unbiased but as noisy as can be, so sample n >= 2k where the budget allows.

    Raises `ValueError` for c > n, a negative count or k < 1.

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 3, 2)
    (0.25, 0.5, 1.0)
    >>> pass_at_k(4, 4, 8)
    nan
    >>> pass_at_k(4, 5, 1)
    Traceback (most recent call last):
    ...
    ValueError: 5 correct of 4 samples
    """
    if n < 0 or not 0 <= c <= n:
        raise ValueError(f"{c} correct of {n} samples")
    if k < 1:
        raise ValueError(f"pass@{k}: k is at least 1")
    if n < k:
        return nan
    # With fewer than k wrong samples every k-subset holds a correct one; the product would pass through 0 and
    # could leave a rounding error behind.
    return 1.0 if n - c < k else 1.0 - prod(1.0 - k / i for i in range(n - c + 1, n + 1))
