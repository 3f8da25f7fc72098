"""pass@k against enumeration of all subsets, and its order relations."""

from itertools import combinations
from math import comb, isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aipo.core.passk import pass_at_k


@st.composite
def counts(draw: st.DrawFn, most: int) -> tuple[int, int, int]:
    n = draw(st.integers(1, most))
    return n, draw(st.integers(0, n)), draw(st.integers(1, n))


@given(counts(8))
def test_is_the_share_of_subsets_with_a_correct_sample(nck: tuple[int, int, int]) -> None:
    n, c, k = nck
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@given(counts(300))
def test_agrees_with_exact_binomials_for_many_samples(nck: tuple[int, int, int]) -> None:
    n, c, k = nck
    assert pass_at_k(n, c, k) == pytest.approx(float(1 - comb(n - c, k) / comb(n, k)), abs=1e-12)


@given(counts(300))
def test_lies_between_zero_and_one_and_is_zero_only_without_a_correct_sample(
    nck: tuple[int, int, int],
) -> None:
    n, c, k = nck
    assert 0.0 <= pass_at_k(n, c, k) <= 1.0
    assert (pass_at_k(n, c, k) == 0.0) == (c == 0)


@given(counts(300))
def test_grows_with_k_and_with_c(nck: tuple[int, int, int]) -> None:
    n, c, k = nck
    value = pass_at_k(n, c, k)
    assert k == n or pass_at_k(n, c, k + 1) >= value - 1e-12
    assert c == n or pass_at_k(n, c + 1, k) > value - 1e-12


@given(counts(300))
def test_at_one_is_the_mean_and_at_n_is_any(nck: tuple[int, int, int]) -> None:
    n, c, _ = nck
    assert pass_at_k(n, c, 1) == pytest.approx(c / n, abs=1e-12)
    assert pass_at_k(n, c, n) == float(c > 0)


@given(st.integers(0, 50), st.integers(1, 50))
def test_too_few_samples_are_nan_not_one(n: int, more: int) -> None:
    assert isnan(pass_at_k(n, n, n + more))


@pytest.mark.parametrize(
    ("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (-1, 0, 1), (-2, -2, 1), (4, 2, 0), (4, 2, -3)]
)
def test_impossible_counts_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError):
        pass_at_k(n, c, k)
