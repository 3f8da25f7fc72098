"""What is concluded from an evaluation's samples, against sums done by hand, by fractions or by enumeration.

Proves: Holm; exact binomial intervals; both intervals of a share cover; the sign-flip test is the full
enumeration; pass@k is NaN where n < k; UNGRADED leaves the denominator; the sets of questions that only one
policy solved, and their chance under equal policies, by enumeration of all ways in which samples may fall.
"""

from fractions import Fraction
from itertools import combinations, product
from math import comb, isnan, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aipo.core.types import StopReason, Verdict
from aipo.evaluation.intervals import (
    all_questions,
    chance_of_all,
    clopper_pearson,
    fixed_questions,
    holm,
    poisson_binomial_tail,
    samples_needed,
    solved_sets,
    zero_bound,
)
from aipo.evaluation.manifest import Manifest, Questions
from aipo.evaluation.records import ProblemResult
from aipo.evaluation.samples import Sample
from aipo.evaluation.scores import Evaluation, overall, paired, scores

C, I, U = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNGRADED  # noqa: E741 - as they are drawn below
LETTERS = {"C": C, "I": I, "U": U}


def sample(problem: str, index: int, verdict: Verdict, **changes: object) -> Sample:
    fields: dict[str, object] = {
        "condition": "solo",
        "benchmark": "b",
        "problem": problem,
        "stratum": "all",
        "index": index,
        "seed_path": (0,),
        "questions": "q",
        "policy": "p",
        "prompt_tokens": 5,
        "unknown_tokens": 0,
        "response": "r",
        "response_tokens": 7,
        "agent_tokens": 0,
        "consultations": 0,
        "stop": StopReason.END,
        "verdict": verdict,
        "reason": "why",
    }
    return Sample(**(fields | changes))  # type: ignore[arg-type]


def drawn(*questions: str, **changes: object) -> list[Sample]:
    """One text for each question, one letter for each sample."""
    return [
        sample(f"q{number}", index, LETTERS[letter], **changes)
        for number, letters in enumerate(questions)
        for index, letter in enumerate(letters)
    ]


def evaluation(own: list[Sample], *names: str, n: int = 2) -> Evaluation:
    questions = tuple(
        Questions(
            name=name, title=name, kind="math", digest="q", source="", problems=2, whole=True, samples=n,
            max_response_tokens=8,
        )
        for name in names
    )  # fmt: skip
    manifest = Manifest(
        checkpoint="c", policy="p", sampling={}, prompts={}, seed=0, benchmarks=questions, graders={}
    )
    return Evaluation("e", manifest, tuple(own))


def binomial_at_most(k: int, n: int, p: Fraction) -> Fraction:
    return sum((comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)), Fraction(0))


class TestHolm:
    def test_by_hand(self) -> None:
        assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])

    def test_none_passes_1_and_nan_does_not_count(self) -> None:
        found = holm([0.6, nan, 0.02, 0.9])
        assert [found[0], found[2], found[3]] == pytest.approx([1.0, 0.06, 1.0]) and isnan(found[1])

    @given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.999))
    def test_rejections_are_those_of_the_step_down_procedure(self, ps: list[float], level: float) -> None:
        rejected = set()
        for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
            if ps[i] * (len(ps) - rank) > level:
                break
            rejected.add(i)
        assert {i for i, p in enumerate(holm(ps)) if p <= level} == rejected


class TestExactIntervals:
    @given(st.integers(1, 40), st.data())
    def test_the_ends_have_the_tails_that_define_them(self, n: int, data: st.DataObject) -> None:
        k = data.draw(st.integers(0, n))
        low, high = clopper_pearson(k, n)
        assert 0 <= low <= k / n <= high <= 1
        if k < n:
            assert float(binomial_at_most(k, n, Fraction(high))) == pytest.approx(0.025, abs=1e-9)
        if k > 0:
            assert float(1 - binomial_at_most(k - 1, n, Fraction(low))) == pytest.approx(0.025, abs=1e-9)

    def test_closed_forms_at_the_ends(self) -> None:
        assert clopper_pearson(0, 7) == pytest.approx((0, 1 - 0.025 ** (1 / 7)))
        assert clopper_pearson(7, 7) == pytest.approx((0.025 ** (1 / 7), 1))
        assert all(map(isnan, clopper_pearson(0, 0))) and isnan(zero_bound(0))
        with pytest.raises(ValueError, match="3 successes of 2 trials"):
            clopper_pearson(3, 2)

    @given(st.integers(1, 500))
    def test_so_many_misses_as_needed_bound_the_chance(self, n: int) -> None:
        bound = zero_bound(n)
        assert (1 - bound) ** n == pytest.approx(0.05)
        assert samples_needed(bound * 1.001) <= n < samples_needed(bound * 0.999)


class TestIntervalsOfAShare:
    def test_the_interval_over_samples_covers_where_questions_differ(self) -> None:
        rng, n = np.random.default_rng(0), 4
        chances = np.array([0.0] * 8 + [0.02] * 8 + [0.3] * 8 + [0.9] * 4 + [1.0] * 12)
        covered, repeats, widths = 0, 400, []
        for _ in range(repeats):
            correct = rng.binomial(n, chances)
            share = correct / n
            error = (share * (1 - share) / (n - 1)).sum() ** 0.5 / len(chances)
            low, high = fixed_questions(share.mean(), error, int(correct.sum()), n * len(chances))
            covered += low <= chances.mean() <= high
            widths.append(high - low)
        pooled = clopper_pearson(round(chances.mean() * n * len(chances)), n * len(chances))
        assert np.mean(widths) < 0.75 * (pooled[1] - pooled[0]), "questions that are sure tell nothing new"
        assert covered / repeats >= 0.93

    def test_where_nothing_varied_the_exact_interval_stands_in(self) -> None:
        assert fixed_questions(0.0, 0.0, 0, 120) == clopper_pearson(0, 120)
        assert fixed_questions(0.3, nan, 3, 10) == clopper_pearson(3, 10)
        assert all_questions(0.0, 0.0, 0.0, 30) == clopper_pearson(0, 30)
        assert all_questions(1.0, 1.0, 1.0, 30) == clopper_pearson(30, 30)
        assert all_questions(0.4, 0.3, 0.5, 30) == (0.3, 0.5)
        assert all(map(isnan, fixed_questions(nan, nan, 0, 0)))


class TestSignFlips:
    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=7))
    def test_the_p_value_is_the_full_enumeration_of_swapped_labels(
        self, counts: list[tuple[int, int]]
    ) -> None:
        letters = ["III", "CII", "CCI", "CCC"]
        a, b = (drawn(*(letters[pair[side]] for pair in counts)) for side in (0, 1))
        moved = [Fraction(x - y, 3) for x, y in counts]
        means = [abs(sum(m * s for m, s in zip(moved, signs, strict=True)))
                 for signs in product((1, -1), repeat=len(moved))]  # fmt: skip
        expected = sum(mean >= abs(sum(moved)) for mean in means) / len(means)
        found = paired(a, b, 1)
        assert found.p_value == pytest.approx(expected)
        assert found.value == pytest.approx(float(sum(moved) / len(moved)))
        assert found.low - 1e-9 <= found.high

    def test_where_no_question_differs_the_exact_bound_stands_in(self) -> None:
        found = paired(drawn(*["CI"] * 30), drawn(*["IC"] * 30), 1)
        bound = 1 - 0.025 ** (1 / 30)
        assert (found.value, found.p_value) == (0, 1)
        assert (found.low, found.high) == pytest.approx((-bound, bound))

    def test_the_interval_of_a_difference_is_that_of_its_questions(self) -> None:
        rng = np.random.default_rng(1)
        a = drawn(*("".join(rng.choice(["C", "I"], 4, p=[0.7, 0.3])) for _ in range(60)))
        b = drawn(*("".join(rng.choice(["C", "I"], 4, p=[0.4, 0.6])) for _ in range(60)))
        found = paired(a, b, 1)
        shares = [np.array([s.verdict == C for s in side]).reshape(60, 4).mean(axis=1) for side in (a, b)]
        error = (shares[0] - shares[1]).std(ddof=1) / 60**0.5
        assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.2 * error)
        assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.2 * error)


class TestScores:
    def test_pass_at_k_is_nan_where_no_question_has_k_graded_samples(self) -> None:
        (score,) = scores(evaluation(drawn("CU", "UI"), "b"))
        one, two = score.pass_at
        assert (one.k, one.value, two.k, two.left_out) == (1, 0.5, 2, 2) and isnan(two.value)

    def test_ungraded_samples_are_counted_and_leave_the_denominator(self) -> None:
        (score,) = scores(evaluation(drawn("CCUU", "IIII", "UUUU"), "b", n=4))
        assert (score.average, score.graded, score.ungraded, score.correct) == (0.5, 6, 6, 2)
        assert score.pass_at[0].left_out == 1 and score.questions == 3

    def test_truncated_unasked_unreadable_and_tokens_are_counted(self) -> None:
        own = [
            sample("q0", 0, I, stop=StopReason.LENGTH, unknown_tokens=3),
            sample("q0", 1, C, unknown_tokens=3),
            sample("q1", 0, I, stop="", reason="prompt_too_long", response_tokens=0),
            sample("q1", 1, I, stop="", reason="prompt_too_long", response_tokens=0),
        ]
        (score,) = scores(evaluation(own, "b"))
        assert (score.truncated, score.too_long, score.unreadable) == (0.25, 1, 1)
        assert (score.response_tokens, score.prompt_tokens, score.average) == (14, 20, 0.25)

    def test_strata_are_scored_apart_and_whole(self) -> None:
        own = [*drawn("CC", stratum="easy"), *(s for s in drawn("II", "CI", stratum="hard"))]
        own = [sample(f"{s.stratum}{s.problem}", s.index, Verdict(s.verdict), stratum=s.stratum) for s in own]
        found = {score.stratum: score.average for score in scores(evaluation(own, "b"))}
        assert found == {"all": 0.5, "easy": 1.0, "hard": 0.25}

    def test_the_order_of_samples_changes_nothing(self) -> None:
        own = drawn("CI", "II", "CC", "IC", "UI")
        assert repr(scores(evaluation(own, "b"))) == repr(scores(evaluation(own[::-1], "b")))

    def test_the_mean_over_benchmarks_weighs_each_the_same(self) -> None:
        own = [
            *drawn(*["CI"] * 2, benchmark="a"),
            *drawn(*["CC", "II", "II", "CC", "CC", "CC"], benchmark="b"),
        ]
        found = overall(evaluation(own, "a", "b"))
        assert found.average == pytest.approx((0.5 + 4 / 6) / 2)
        # Of a alone varies under new samples, of b alone under new questions.
        a_error = (2 * 0.5 * 0.5 / 1) ** 0.5 / 2
        assert found.fixed == pytest.approx(
            (found.average - 1.96 * a_error / 2, found.average + 1.96 * a_error / 2), abs=1e-4
        )
        assert found.population[0] < found.average < found.population[1]

    def test_benchmarks_of_equal_size_are_resampled_apart(self) -> None:
        rng = np.random.default_rng(0)
        texts = ["".join(rng.choice(["C", "I"], 2)) for _ in range(30)]
        one = overall(evaluation(drawn(*texts, benchmark="a"), "a"))
        both = [*drawn(*texts, benchmark="a"), *drawn(*texts, benchmark="b")]
        two = overall(evaluation(both, "a", "b"))
        width = [each.population[1] - each.population[0] for each in (one, two)]
        assert width[1] == pytest.approx(width[0] / 2**0.5, rel=0.1), "independent noise averages out"

    def test_a_benchmark_without_a_graded_sample_leaves_no_mean(self) -> None:
        own = [*drawn("CI", benchmark="a"), *drawn("UU", benchmark="b")]
        assert isnan(overall(evaluation(own, "a", "b")).average)


def result(problem: str, samples: int, correct: int, ungraded: int = 0) -> ProblemResult:
    return ProblemResult(
        problem=problem, stratum="all", samples=samples, correct=correct, ungraded=ungraded, truncated=0
    )


class TestSolvedSets:
    def test_who_solved_what_alone(self) -> None:
        a = [result("p", 4, 2), result("q", 4, 0), result("r", 4, 1), result("s", 4, 0), result("t", 4, 4, 0)]
        b = [result("p", 4, 1), result("q", 4, 3), result("r", 4, 0), result("s", 4, 0), result("t", 4, 0, 4)]
        found = solved_sets(a, b)
        assert (found.only_a.problems, found.only_b.problems) == (("r",), ("q",))
        assert (found.both, found.neither) == (1, 2), "a question that one side was not graded on is no win"
        assert found.only_a.largest_missed == pytest.approx(1 - 0.05**0.25)
        assert found.only_a.another_run == pytest.approx(0.95), "the same n again excludes nothing"

    def test_different_questions_are_refused(self) -> None:
        with pytest.raises(ValueError, match="different questions"):
            solved_sets([result("p", 1, 0)], [result("q", 1, 0)])

    @given(st.integers(1, 5), st.integers(1, 5), st.data())
    def test_the_chance_of_a_one_sided_question_by_enumeration(
        self, own: int, other: int, data: st.DataObject
    ) -> None:
        correct = data.draw(st.integers(1, own + other))
        ways = list(combinations(range(own + other), correct))
        expected = sum(all(place < own for place in way) for way in ways) / len(ways)
        assert chance_of_all(correct, own, other) == pytest.approx(expected)

    @given(st.lists(st.floats(0, 1), max_size=6), st.integers(0, 6))
    def test_the_tail_by_enumeration(self, chances: list[float], at_least: int) -> None:
        expected = sum(
            np.prod([c if hit else 1 - c for c, hit in zip(chances, hits, strict=True)])
            for hits in product((0, 1), repeat=len(chances))
            if sum(hits) >= at_least
        )
        assert poisson_binomial_tail(chances, at_least) == pytest.approx(float(expected), abs=1e-12)

    def test_equal_policies_make_sets_of_the_size_that_chance_says(self) -> None:
        rng = np.random.default_rng(0)
        chances = rng.uniform(0, 0.5, size=60)
        sizes, expected, small = [], [], 0
        for _ in range(200):
            a, b = ([result(str(i), 4, int(rng.binomial(4, p))) for i, p in enumerate(chances)] for _ in "ab")
            only = solved_sets(a, b).only_a
            sizes.append(len(only.problems))
            expected.append(only.by_chance)
            small += only.p_value <= 0.05
        assert np.mean(sizes) == pytest.approx(np.mean(expected), rel=0.05)
        assert small / 200 <= 0.08
