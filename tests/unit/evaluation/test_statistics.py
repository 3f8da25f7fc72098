"""Intervals cover, standard errors match simulation, p-values match brute force."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import isnan

import numpy as np
import pytest
from numpy.typing import ArrayLike

from aipo.core.passk import pass_at_k
from aipo.evaluation.records import EvaluationRecord, ProblemResult
from aipo.evaluation.statistics import estimate, paired_difference


def hard_problem(problem: int, correct: int, n: int, ungraded: int) -> ProblemResult:
    """Return the result of a hard problem."""
    return ProblemResult(
        problem=f"p{problem:03}", stratum="hard", samples=n, correct=correct, ungraded=ungraded, truncated=0
    )


def runs(correct: ArrayLike, n: int, method: str = "floored", ungraded: int = 0) -> list[EvaluationRecord]:
    """Return one record per seed of correct counts, seeds x problems."""
    return [
        EvaluationRecord(
            schema=1, run=f"{method}-{seed}", method=method, seed=seed, step=100, split="test",
            mode="unanswered", results=tuple(hard_problem(i, int(c), n, ungraded) for i, c in enumerate(row)),
        )
        for seed, row in enumerate(np.asarray(correct))
    ]  # fmt: skip


def test_value_is_the_mean_over_problems_and_seeds() -> None:
    result = estimate(runs([[0, 4], [2, 3]], n=4), "hard", k=2)
    assert result.value == pytest.approx(np.mean([pass_at_k(4, c, 2) for c in (0, 4, 2, 3)]))
    assert (result.problems, result.left_out, result.samples, result.seeds) == (2, 0, 4, 2)
    assert result.low <= result.value <= result.high


def test_the_order_of_seeds_and_of_problems_does_not_matter() -> None:
    given = runs([[0, 4, 1], [2, 3, 1]], n=4)
    turned = [replace(given[1], results=given[1].results[::-1]), given[0]]
    assert estimate(given, "hard", 2) == estimate(turned, "hard", 2)


@pytest.mark.parametrize(("problems", "n", "k"), [(40, 8, 1), (64, 16, 4)])
def test_interval_of_one_seed_covers_over_new_problems_and_samples(problems: int, n: int, k: int) -> None:
    rng = np.random.default_rng(0)
    truth = np.mean(1 - (1 - rng.beta(0.5, 1.0, 200_000)) ** k)
    results = [
        estimate(runs([rng.binomial(n, rng.beta(0.5, 1.0, problems))], n), "hard", k) for _ in range(300)
    ]
    covered = np.mean([result.low <= truth <= result.high for result in results])
    assert 0.91 <= covered <= 0.98
    # The closed form and the spread of the results themselves are the same quantity.
    spread = np.std([result.value for result in results])
    assert np.mean([result.question_se for result in results]) == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize(("seeds", "least"), [(2, 0.85), (3, 0.90), (6, 0.92)])
def test_interval_over_seeds_covers_what_few_seeds_allow(seeds: int, least: float) -> None:
    # Seeds differ by .09 (standard deviation). Intervals that ignore it cover .74, .83 and .87.
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(300):
        logits = rng.normal(0, 1.3, 40) + rng.normal(0, 0.45, (seeds, 1))
        result = estimate(runs(rng.binomial(16, 1 / (1 + np.exp(-logits))), 16), "hard", 1)
        covered.append(result.low <= 0.5 <= result.high)
    assert np.mean(covered) >= least


@pytest.mark.parametrize(("n", "k"), [(8, 1), (16, 4), (64, 8)])
def test_sampling_se_is_the_spread_over_new_samples(n: int, k: int) -> None:
    rng = np.random.default_rng(2)
    p = rng.beta(0.5, 1.5, (2, 20))  # Two seeds, two policies.
    results = [estimate(runs(rng.binomial(n, p), n), "hard", k) for _ in range(400)]
    spread = np.std([result.value for result in results])
    assert np.mean([result.sampling_se**2 for result in results]) ** 0.5 == pytest.approx(spread, rel=0.12)


def test_sampling_se_at_one_is_the_published_formula() -> None:
    share, n = np.array([0.0, 0.25, 0.5, 1.0]), 8
    published = np.sqrt(np.mean(n / (n - 1) * share * (1 - share)) / (share.size * n))
    assert estimate(runs([share * n], n), "hard", 1).sampling_se == pytest.approx(published)


def test_k_equal_to_n_has_a_value_and_no_sampling_se() -> None:
    result = estimate(runs([[0, 1, 8, 0]], n=8), "hard", 8)
    assert result.value == 0.5
    assert isnan(result.sampling_se)


def test_a_problem_with_too_few_graded_samples_is_left_out_not_scored() -> None:
    whole = runs([[8, 8, 0], [8, 8, 0]], n=8)
    hole = ProblemResult(problem="p002", stratum="hard", samples=8, correct=0, ungraded=1, truncated=0)
    holed = [whole[0], replace(whole[1], results=(*whole[1].results[:2], hole))]
    result = estimate(holed, "hard", 8)
    assert (result.value, result.problems, result.left_out) == (1.0, 2, 1)
    nothing = estimate(runs([[1, 1]], n=8, ungraded=5), "hard", 8)
    assert isnan(nothing.value) and isnan(nothing.low) and isnan(nothing.sampling_se)
    assert (nothing.problems, nothing.left_out) == (0, 2)


def test_one_problem_has_no_interval() -> None:
    result = estimate(runs([[3], [5]], n=8), "hard", 1)
    assert result.value == pytest.approx(0.5)
    assert all(map(isnan, (result.low, result.high, result.question_se)))


def test_records_that_do_not_belong_together_are_refused() -> None:
    one, two = runs([[1, 2], [3, 4]], n=8)
    refused: list[tuple[Sequence[EvaluationRecord], str]] = [
        ([], "no records"),
        ([one, two, one], "twice"),
        ([one, replace(two, method="GRPO")], "two methods"),
        ([one, replace(two, mode="banned")], "cannot be compared"),
        ([one, replace(two, split="validation")], "cannot be compared"),
        ([one, replace(two, results=two.results[:1])], "different problems"),
    ]
    for records, message in refused:
        with pytest.raises(ValueError, match=message):
            estimate(records, "hard", 1)
    with pytest.raises(ValueError, match="no stratum 'easy'"):
        estimate([one, two], "easy", 1)
    for other in ([two], [replace(one, mode="banned"), two], runs([[1], [1]], 8)):
        with pytest.raises(ValueError):
            paired_difference([one, two], other, "hard", 1)


def brute_force_p(a: ArrayLike, b: ArrayLike) -> float:
    """Return the p-value by swapping the labels of each problem, all seeds at once, in all 2^P ways."""
    pair = np.array([a, b], dtype=float)  # 2 x seeds x problems
    seen, hits = abs((pair[0] - pair[1]).mean()), 0
    patterns = list(product((False, True), repeat=pair.shape[2]))
    for swap in patterns:
        swapped = np.where(swap, pair[::-1], pair)
        hits += abs((swapped[0] - swapped[1]).mean()) >= seen - 1e-12
    return hits / len(patterns)


def test_p_value_equals_brute_force_on_small_cases() -> None:
    rng = np.random.default_rng(3)
    for problems, seeds in [(2, 1), (5, 1), (6, 3), (8, 2)]:
        a, b = rng.integers(0, 9, (2, seeds, problems))
        b = np.minimum(b, a + 1)  # Mostly below a, with ties: p-values away from 1.
        result = paired_difference(runs(a, 8), runs(b, 8, "GRPO"), "hard", 1)
        assert result.p_value == pytest.approx(brute_force_p(a, b))
        assert result.value == pytest.approx((a - b).mean() / 8)


def test_p_values_that_are_known_without_a_computer() -> None:
    better, worse = runs([[1, 2, 3, 4, 5]], 8), runs([[0, 0, 0, 0, 0]], 8, "GRPO")
    assert paired_difference(better, worse, "hard", 1).p_value == 2 / 2**5
    assert paired_difference(worse, better, "hard", 1).p_value == 2 / 2**5
    assert paired_difference(better, better, "hard", 1).p_value == 1.0


def test_many_problems_use_random_signs_and_agree_with_brute_force() -> None:
    rng = np.random.default_rng(4)
    a = rng.integers(2, 7, (1, 14))
    b = a - rng.choice([-2, -1, 1, 2, 1], (1, 14))
    result = paired_difference(runs(a, 8), runs(b, 8, "GRPO"), "hard", 1)
    assert result.p_value == pytest.approx(brute_force_p(a, b), abs=0.02)
    assert 0 < paired_difference(runs(a, 8), runs(a - 2, 8, "GRPO"), "hard", 1).p_value < 1e-3


def test_the_difference_has_the_sign_of_a_minus_b_and_pairing_narrows_it() -> None:
    rng = np.random.default_rng(5)
    p = rng.beta(0.5, 0.5, (1, 60)) * 0.8
    a = runs(rng.binomial(64, np.repeat(p + 0.15, 3, axis=0)), 64)
    b = runs(rng.binomial(64, np.repeat(p, 3, axis=0)), 64, "GRPO")
    gain, loss = paired_difference(a, b, "hard", 1), paired_difference(b, a, "hard", 1)
    assert gain.low > 0.1 and gain.p_value < 0.001
    assert (loss.value, loss.low, loss.high) == pytest.approx((-gain.value, -gain.high, -gain.low))
    alone = estimate(a, "hard", 1)
    assert gain.high - gain.low < 0.5 * (alone.high - alone.low)


def test_false_positives_stay_at_their_nominal_rate() -> None:
    rng = np.random.default_rng(6)
    p_values = []
    for _ in range(300):
        p = rng.beta(0.5, 1.0, 30)
        a, b = (runs([rng.binomial(8, p)], 8, method) for method in ("floored", "GRPO"))
        p_values.append(paired_difference(a, b, "hard", 1).p_value)
    assert np.mean(np.array(p_values) < 0.05) <= 0.075
