"""Questions that only one of two policies solved, and how little that may mean.

Owns the sets and their bounds. Must not know files or how results are shown. Invariant: a set never stands
without what chance alone would give.

A question is *solved* by a policy if at least one of its graded samples is CORRECT. The sets are biased by
how they are made: with few samples a policy misses by bad luck what it solves now and then. Three numbers say
how much of a set that can be:

- **per question**: 0 of n leaves a chance of up to 1 - 0.05^(1/n) per sample open (`zero_bound`, 95 %);
- **another run**: so the other policy, sampled n times anew, may be expected to solve up to the sum over
  the set of 1 - (1 - bound)^n of these questions. With the same n that is 95 % of the set whatever n is: a
  miss in n samples excludes next to nothing about n more. It takes many more samples (`samples_needed`);
- **equal policies**: were the two equally good at each question, its c correct ones of all its samples would
  fall to either by chance, and all c to A with probability C(n_A, c) / C(n_A + n_B, c). The sum over
  questions is the size of the set that chance gives, and their Poisson-binomial tail its exact p-value: the
  probability of a set of at least this size, given each question's total.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, comb, log

import numpy as np

from aipo.evaluation.intervals import ALPHA, zero_bound
from aipo.evaluation.records import ProblemResult


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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
    return SolvedSets(both, len(a) - both - len(only_a.problems) - len(only_b.problems), only_a, only_b)


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
        largest_missed=max(bounds, default=float("nan")),
        another_run=sum(
            1 - (1 - bound) ** other.graded for bound, (_, other) in zip(bounds, members, strict=True)
        ),
        by_chance=sum(chances),
        p_value=poisson_binomial_tail(chances, len(members)),
    )
