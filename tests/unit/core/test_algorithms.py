"""Every algorithm with every coefficient, from groups to gradients; and what each name stands for.

Finite everywhere; without FEEDBACK tokens bit for bit the same as with the coefficient `masked`; a group
without variance contributes exactly 0 where the baseline is the group's; UNGRADED is the same as absent.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aipo.config.settings import AlgorithmSettings
from aipo.core.advantages import (
    ESTIMATORS,
    FEEDBACK_ADVANTAGES,
    Advantage,
    Member,
    group_advantages,
    whitened,
)
from aipo.core.algorithms import ALGORITHMS
from aipo.core.batch import Row, collate
from aipo.core.coefficients import COEFFICIENTS
from aipo.core.objective import objective_loss
from aipo.core.rewards import overlong_penalty
from aipo.core.surrogates import Clip
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import VERIFY, Condition, ConsultOutcome, Source, StopReason, Verdict
from aipo.grading import Grade
from aipo.rollout.episode import Consultation, Rollout
from aipo.rollout.group import Group, MemberRollout
from aipo.tasks.base import Problem
from aipo.training.algorithm import base_algorithm, objective_settings
from aipo.training.batch import minibatches
from aipo.training.credit import credits_of

LONGEST = 20
PAIRS = list(product(ALGORITHMS, COEFFICIENTS))
ANSWER = Consultation(
    agent=VERIFY,
    request="?",
    outcome=ConsultOutcome.ANSWERED,
    reply="",
    reply_tokens=1,
    detail="",
    context="",
    latency_s=0.1,
)
quiet = settings(deadline=None)


def member(letter: str, feedback: bool, length: int) -> MemberRollout:
    """C, I, U: consulting and correct, incorrect, ungraded; lower case: solo. Unlike lengths."""
    own = tuple(-0.1 - 0.37 * i for i in range(length))
    segments = [Segment(Source.PROMPT, (1, 2)), Segment(Source.POLICY, tuple(range(3, 3 + length)), own)]
    told = feedback and letter.isupper()
    if told:
        segments += [Segment(Source.FEEDBACK, (20, 21, 22)), Segment(Source.POLICY, (30,), (-0.8,))]
    verdict = {"c": Verdict.CORRECT, "i": Verdict.INCORRECT, "u": Verdict.UNGRADED}[letter.lower()]
    condition = Condition.CONSULTING if letter.isupper() else Condition.SOLO
    consult_spans = ((length + 2, length + 3), (length + 4, length + 5)) if told else ()
    consultations = (ANSWER,) if told else ()
    rollout = Rollout(
        stream=TokenStream(tuple(segments)),
        response="",
        policy_text="",
        stop=StopReason.END,
        consultations=consultations,
        consult_spans=consult_spans,
    )
    return MemberRollout(id="p#0", condition=condition, rollout=rollout, grade=Grade(verdict, ""))


def batched(
    groups: Sequence[Group], settings: AlgorithmSettings, number: int, longest: int
) -> list[list[Row]]:
    """Return the rows of each optimiser step."""
    return minibatches([credits_of(g, settings, longest) for g in groups], settings, number, longest)


def group(letters: str, feedback: bool = True) -> Group:
    members = tuple(member(letter, feedback, 2 + i % 4) for i, letter in enumerate(letters))
    return Group(
        problem=Problem(id="p", text="?", gold="8"), members=members, experts=(), solo_prompt_ids=(90,)
    )


def algorithm(name: str, coefficient: str, **changes: Any) -> AlgorithmSettings:
    return AlgorithmSettings(**{"name": name, "coefficient": coefficient, **changes})


def loss_and_gradient(
    rows: Sequence[Row], of: AlgorithmSettings, at: float = 0.3
) -> tuple[torch.Tensor, torch.Tensor]:
    """-J and its gradient; log p is the sampler's moved up and down by `at`, and -6 at FEEDBACK tokens."""
    batch = collate(rows, 0)
    position = torch.arange(batch.ids.shape[1])
    moved = batch.log_p_old + at * torch.where(position % 2 == 0, 1.0, -1.0)
    values = torch.where(batch.feedback_mask, torch.full_like(moved, -6.0), moved.clamp(max=0.0))
    log_p = values.requires_grad_()
    loss = objective_loss(log_p, batch, objective_settings(of))
    if loss.requires_grad:
        loss.backward()
    gradient = torch.zeros_like(log_p) if log_p.grad is None else log_p.grad
    return loss.detach(), gradient


@pytest.mark.parametrize(("name", "coefficient"), PAIRS)
def test_every_pair_is_finite_and_teaches_policy_and_feedback_tokens(name: str, coefficient: str) -> None:
    of = algorithm(name, coefficient)
    (rows,) = batched([group("CIci"), group("CCii")], of, 1, LONGEST)
    for at in (0.0, 0.3, 15.0):
        loss, gradient = loss_and_gradient(rows, of, at)
        assert loss.isfinite() and gradient.isfinite().all()
    _, gradient = loss_and_gradient(rows, of, 0.0)
    batch = collate(rows, 0)
    credited = batch.feedback_mask & (batch.feedback_advantage > 0)
    assert credited.any() and bool((gradient[credited] != 0).all()) is (coefficient != "masked")
    policy = batch.policy_mask & (batch.policy_advantage != 0)
    assert policy.any() and (gradient[policy] != 0).all()


@pytest.mark.parametrize(("name", "coefficient"), PAIRS)
def test_without_feedback_tokens_every_pair_is_its_algorithm_bit_for_bit(name: str, coefficient: str) -> None:
    results = []
    for each in (coefficient, "masked"):
        of = algorithm(name, each)
        (rows,) = batched([group("CIci", feedback=False), group("CIii", feedback=False)], of, 1, LONGEST)
        results.append(loss_and_gradient(rows, of))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert results[0][1].any()


@pytest.mark.parametrize("letters", ["CCcc", "IIii", "Cc", "I", "ccc"])
@pytest.mark.parametrize(("name", "coefficient"), PAIRS)
def test_a_group_without_variance_contributes_exactly_zero(name: str, coefficient: str, letters: str) -> None:
    """But for REINFORCE++, whose baseline is the batch's: there it is zero alone, not among others."""
    of = algorithm(name, coefficient)
    (alone,) = batched([group(letters)], of, 1, LONGEST)
    if name != "reinforce_plus_plus":
        loss, gradient = loss_and_gradient(alone, of)
        assert loss == 0.0 and not gradient.any()
    (among,) = batched([group(letters), group("CIci")], of, 1, LONGEST)
    own = {id(m.rollout.stream) for m in group(letters).members if m.rollout}
    assert own  # streams are built anew; the first rows are the group's
    gradient = loss_and_gradient(among, of)[1][: len(letters)]
    if not ESTIMATORS[base_algorithm(of).estimator].over_batch:
        assert not gradient.any()


@pytest.mark.parametrize("letters", ["UCIcui", "CIUciu", "CUIUci"])
@pytest.mark.parametrize(("name", "coefficient"), PAIRS)
def test_an_ungraded_rollout_is_the_same_as_an_absent_one(name: str, coefficient: str, letters: str) -> None:
    of = algorithm(name, coefficient)
    whole = group(letters)
    graded = tuple(m for m in whole.members if m.grade.verdict is not Verdict.UNGRADED)
    absent = Group(problem=whole.problem, members=graded, experts=(), solo_prompt_ids=whole.solo_prompt_ids)
    other = group("Ci")
    with_it, without = (batched([each, other], of, 1, LONGEST)[0] for each in (whole, absent))
    assert [(r.stream, r.advantage, r.weight) for r in with_it] == [
        (r.stream, r.advantage, r.weight) for r in without
    ]
    results = [loss_and_gradient(rows, of) for rows in (with_it, without)]
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_the_names_say_what_the_papers_say() -> None:
    table = {name: (a.surrogate, a.estimator, a.aggregation) for name, a in ALGORITHMS.items()}
    normalised, batch = "group_normalised", "batch_normalised"
    assert table == {
        "grpo": ("clipped", normalised, "sequence_mean"),
        "dapo": ("clipped", normalised, "token_mean"),
        "dr_grpo": ("clipped", "group_centred", "horizon"),
        "rloo": ("clipped", "leave_one_out", "sequence_sum"),
        "reinforce_plus_plus": ("clipped", batch, "token_mean"),
        "reinforce_plus_plus_baseline": ("clipped", "group_centred_batch_normalised", "token_mean"),
        "gspo": ("sequence", normalised, "sequence_mean"),
        "cispo": ("cispo", normalised, "token_mean"),
        "gppo": ("preserving", normalised, "token_mean"),
    }
    assert ALGORITHMS["dapo"].clip == ALGORITHMS["gppo"].clip == Clip(0.2, 0.28)
    assert ALGORITHMS["grpo"].clip == Clip(0.2, 0.2)
    assert ALGORITHMS["gspo"].clip == Clip(3e-4, 4e-4)
    assert ALGORITHMS["cispo"].clip.low == 1.0  # no bound from below


def test_a_setting_replaces_one_part_of_an_algorithm_and_none_keeps_it() -> None:
    plain = base_algorithm(AlgorithmSettings(name="gspo"))
    assert plain == ALGORITHMS["gspo"]
    changed = base_algorithm(
        AlgorithmSettings(name="gspo", clip_low=0.0, aggregation="horizon", estimator="leave_one_out")
    )
    assert changed.clip == Clip(0.0, 4e-4)
    assert (changed.aggregation, changed.estimator) == ("horizon", "leave_one_out")
    assert changed.surrogate == "sequence"


@pytest.mark.parametrize(
    ("coefficient", "policy", "feedback", "heard", "taught"),
    [
        ("floored", 0.0, 0.0, True, False),
        ("floored", -1.0, 0.0, True, True),
        ("floored", 0.0, -1.0, True, True),
        ("floored", 0.0, 1.0, False, False),  # no FEEDBACK token that could learn from it
        ("masked", 0.0, 1.0, True, False),
    ],
)
def test_a_row_is_taught_where_a_term_has_a_gradient_on_one_of_its_tokens(
    coefficient: str, policy: float, feedback: float, heard: bool, taught: bool
) -> None:
    segments = [Segment(Source.PROMPT, (1,)), Segment(Source.POLICY, (2,), (-1.0,))]
    segments += [Segment(Source.FEEDBACK, (3,))] if heard else []
    row = Row(stream=TokenStream(tuple(segments)), advantage=Advantage(policy, feedback), weight=1.0)
    assert objective_settings(algorithm("grpo", coefficient)).teaches(row) is taught


def test_the_options_of_a_coefficient_reach_its_term() -> None:
    of = algorithm("grpo", "support.power:POWER", coefficient_options={"h": 0.25})
    assert objective_settings(of).coefficient.options == {"h": 0.25}
    assert objective_settings(algorithm("grpo", "support.power:POWER")).coefficient.options == {"h": 0.5}


@pytest.mark.parametrize("rule", FEEDBACK_ADVANTAGES)
def test_signed_unit_alone_weighs_what_did_not_help_as_unit_does(rule: str) -> None:
    coefficient = objective_settings(algorithm("grpo", "floored", feedback_advantage=rule)).coefficient
    assert coefficient.unit_below_zero is (rule == "signed_unit")


def test_an_algorithm_from_outside_the_package_is_one_entry() -> None:
    of = algorithm("support.outside_algorithm:ALGORITHM", "floored", split_baselines=False)
    (rows,) = batched([group("CIci"), group("CCcc")], of, 1, LONGEST)
    sampled = [row for row in rows if row.stream.count(Source.POLICY)]
    assert [row.advantage.policy for row in sampled] == [1.0, 0.0, 1.0, 0.0] + [0.0] * 4
    loss, gradient = loss_and_gradient(rows, of)
    assert loss.isfinite() and gradient.isfinite().all() and gradient.any()
    assert base_algorithm(of).clip == Clip(1.0, 3.0)


@quiet
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=9))
def test_rloo_is_the_reward_over_the_mean_of_the_others_by_brute_force(noise: list[float]) -> None:
    verdicts = [Verdict.CORRECT if each > 0 else Verdict.INCORRECT for each in noise]
    rewards = [1.0 if each > 0 else 0.0 for each in noise]
    group = [Member(verdict=verdict, condition=Condition.SOLO) for verdict in verdicts]
    found = group_advantages(group, estimator="leave_one_out")
    for i, advantage in enumerate(found):
        others = rewards[:i] + rewards[i + 1 :]
        assert advantage is not None
        assert advantage.policy == pytest.approx(rewards[i] - sum(others) / len(others), abs=1e-12)


ROLLOUTS = st.lists(st.tuples(st.integers(-8, 8).map(lambda n: n / 4), st.integers(0, 6)), max_size=8)


@quiet
@given(ROLLOUTS)
def test_whitening_is_numpys_over_all_tokens(rollouts: list[tuple[float, int]]) -> None:
    values, tokens = [a for a, _ in rollouts], [n for _, n in rollouts]
    found = whitened(values, tokens)
    per_token = np.repeat(values, tokens)
    if per_token.size < 2 or len(set(values)) < 2:
        assert found == [0.0] * len(values)
    else:
        scale = np.sqrt(np.var(per_token, ddof=1) + 1e-8)
        wanted = [(a - np.mean(per_token)) / scale for a in values]
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-7)


def test_one_token_has_no_variance_and_gives_exactly_zero() -> None:
    assert whitened([1.0, 0.0], [1, 0]) == [0.0, 0.0]
    assert whitened([1.0, 0.0], [0, 0]) == [0.0, 0.0]
    assert whitened([], []) == []


@pytest.mark.parametrize("name", ["reinforce_plus_plus", "reinforce_plus_plus_baseline"])
@pytest.mark.parametrize("number", [1, 2])
def test_reinforce_plus_plus_is_whitened_over_the_policy_tokens_of_the_whole_step(
    name: str, number: int
) -> None:
    """Before the step is cut into mini-batches; copies, which hold no POLICY token, do not count."""
    of = algorithm(name, "floored")
    groups = [group("CIci"), group("CCiiU")]
    rows = [row for part in batched(groups, of, number, LONGEST) for row in part]
    before = [credit for each in groups for credit in credits_of(each, of, LONGEST)]
    counts = [c.stream.count(Source.POLICY) for c in before]
    assert 0 in counts  # a copy
    per_token = np.repeat([c.advantage.policy for c in before], counts)
    for row, credit, count in zip(rows, before, counts, strict=True):
        wanted = (credit.advantage.policy - np.mean(per_token)) / np.sqrt(np.var(per_token, ddof=1) + 1e-8)
        assert row.advantage.policy == pytest.approx(wanted if count else 0.0, abs=1e-9)
        assert row.advantage.feedback == credit.advantage.feedback


@quiet
@given(st.integers(1, 200), st.integers(0, 200), st.integers(0, 250), st.integers(0, 50))
def test_the_overlong_penalty_falls_from_0_to_minus_1_over_the_buffer(
    longest: int, buffer: int, tokens: int, more: int
) -> None:
    buffer = min(buffer, longest)
    shorter, longer = (overlong_penalty(n, longest, buffer) for n in (tokens, tokens + more))
    assert -1.0 <= longer <= shorter <= 0.0
    if tokens <= longest - buffer or not buffer:
        assert shorter == 0.0
    elif tokens >= longest:
        assert shorter == -1.0
    else:  # DAPO's eq. 13
        assert shorter == pytest.approx((longest - buffer - tokens) / buffer)


def test_the_overlong_penalty_reaches_the_advantages_and_not_what_help_is_credited_with() -> None:
    of = algorithm("dr_grpo", "floored", overlong_buffer_tokens=LONGEST)
    credits = credits_of(group("ccii", feedback=False), of, LONGEST)
    rewards = [verdict - length / LONGEST for verdict, length in zip([1, 1, 0, 0], [2, 3, 4, 5], strict=True)]
    assert [c.advantage.policy for c in credits] == pytest.approx([r - np.mean(rewards) for r in rewards])
    assert [c.advantage.feedback for c in credits] == [0.5, 0.5, 0.0, 0.0]
