"""From groups to rows: who is credited with what, who gets a consult-stripped copy, what an expert is worth.

Also: UNGRADED rollouts leave no row, and each optimiser step is one global batch of whole groups.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from aipo.config.settings import AlgorithmSettings
from aipo.core.advantages import (
    ESTIMATORS,
    FEEDBACK_ADVANTAGES,
    Advantage,
    Member,
    group_advantages,
    group_relative,
)
from aipo.core.batch import Row
from aipo.core.feedback import CoefficientSettings
from aipo.core.objective import ObjectiveSettings
from aipo.core.surrogates import Clip, SurrogateSettings
from aipo.core.tokens import Segment, TokenStream, expert_stream
from aipo.core.types import VERIFY, Condition, ConsultOutcome, Source, StopReason, Verdict
from aipo.grading import Grade
from aipo.rollout.episode import Consultation, Rollout
from aipo.rollout.group import Group, MemberRollout
from aipo.tasks.base import Problem
from aipo.training.algorithm import objective_settings
from aipo.training.batch import microbatches, minibatches
from aipo.training.credit import Credit, credits_of

SOLO_PROMPT = (90, 91)
WON, LOST, UNGRADED = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNGRADED
CONSULTING, SOLO = Condition.CONSULTING, Condition.SOLO
ANSWERED = ConsultOutcome.ANSWERED
LONGEST = 64


def algorithm(**changes: Any) -> AlgorithmSettings:
    return AlgorithmSettings(**{"estimator": "group_centred", **changes})


def member(
    verdict: Verdict, condition: Condition, outcomes: Sequence[ConsultOutcome] = (), prompt: int = 1
) -> MemberRollout:
    """A rollout of 1 + 2 (text, request) + 3 (feedback: tag, word, tag) + 1 tokens; unanswered: 1 + 2."""
    segments = [Segment(Source.PROMPT, (prompt,)), Segment(Source.POLICY, (2, 3), (-1.0, -1.0))]
    if ANSWERED in outcomes:
        segments += [Segment(Source.FEEDBACK, (4, 5, 6)), Segment(Source.POLICY, (7,), (-1.0,))]
    elif outcomes:
        segments.append(Segment(Source.SCAFFOLD, (8,)))
    asked = tuple(
        Consultation(
            agent=VERIFY,
            request="?",
            outcome=each,
            reply="",
            reply_tokens=1,
            detail="",
            context="",
            latency_s=0.1,
        )
        for each in outcomes
    )
    consult_spans = ((2, 3), (3, 4), (5, 6)) if outcomes else ()
    produced = Rollout(
        stream=TokenStream(tuple(segments)),
        response="text",
        policy_text="text",
        stop=StopReason.END,
        consultations=asked,
        consult_spans=consult_spans,
    )
    return MemberRollout(id="p#0", condition=condition, rollout=produced, grade=Grade(verdict, "because"))


def failed(condition: Condition) -> MemberRollout:
    return MemberRollout(id="p#1", condition=condition, rollout=None, grade=Grade(UNGRADED, "engine: gone"))


def batched(
    groups: Sequence[Group], settings: AlgorithmSettings, number: int, longest: int
) -> list[list[Row]]:
    """Return the rows of each optimiser step."""
    return minibatches([credits_of(g, settings, longest) for g in groups], settings, number, longest)


def group(*members: MemberRollout, experts: int = 0) -> Group:
    solutions = tuple(expert_stream(SOLO_PROMPT, (70, 71, 72 + i)) for i in range(experts))
    return Group(
        problem=Problem(id="p", text="2 dogs?", gold="8"),
        members=members,
        experts=solutions,
        solo_prompt_ids=SOLO_PROMPT,
    )


def copies(credits: Sequence[Credit], members: Sequence[MemberRollout]) -> list[Credit]:
    own = [m.rollout.stream for m in members if m.rollout]
    return [credit for credit in credits if not any(credit.stream is stream for stream in own)]


def test_a_copy_of_what_helped_stands_right_behind_its_rollout() -> None:
    members = [member(WON, CONSULTING, [ANSWERED]), member(LOST, CONSULTING, [ANSWERED]), member(LOST, SOLO)]
    credits = credits_of(group(*members), algorithm(), LONGEST)
    assert len(credits) == 4
    assert [credit.advantage for credit in credits] == [
        Advantage(0.5, 1.0),
        Advantage(0.0, 1.0),
        Advantage(-0.5, 0.0),
        Advantage(0.0, 0.0),
    ]
    own = [m.rollout.stream for m in members if m.rollout]
    assert [credits[0].stream, *[c.stream for c in credits[2:]]] == own
    assert credits[1].stream.ids == (*SOLO_PROMPT, 2, 5, 7)
    assert credits[1].stream.count(Source.FEEDBACK) == 3


@pytest.mark.parametrize("rule", ["signed", "positive", "over_solo"])
@pytest.mark.parametrize("verdict", [WON, LOST, UNGRADED])
def test_only_correct_rollouts_are_copied(verdict: Verdict, rule: str) -> None:
    members = [
        member(verdict, CONSULTING, [ANSWERED]),
        member(LOST, CONSULTING),
        member(LOST, CONSULTING),
        member(LOST, SOLO),
    ]
    credits = credits_of(group(*members), algorithm(feedback_advantage=rule), LONGEST)
    assert len(copies(credits, members)) == (verdict is WON)


@pytest.mark.parametrize("baseline", ["signed", "positive"])
def test_a_rollout_that_is_better_than_its_siblings_and_yet_wrong_is_not_copied(
    baseline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No verdict rewards it today; the condition must hold by itself if one ever does."""
    members = [member(LOST, CONSULTING, [ANSWERED])]

    def generous(group: Sequence[Member], **_: Any) -> list[Advantage]:
        return [Advantage(1.0, 1.0)] * len(group)

    monkeypatch.setattr("aipo.training.credit.group_advantages", generous)
    assert not copies(credits_of(group(*members), algorithm(feedback_advantage=baseline), LONGEST), members)


@pytest.mark.parametrize("outcome", ConsultOutcome)
def test_only_an_answered_consultation_earns_a_copy(outcome: ConsultOutcome) -> None:
    members = [member(WON, CONSULTING, [outcome]), member(LOST, SOLO)]
    assert len(copies(credits_of(group(*members), algorithm(), LONGEST), members)) == (outcome is ANSWERED)


def test_copies_may_be_credited_over_banned_siblings_and_learnt_without_requests() -> None:
    """The solo sibling that answers its own request succeeds; the banned one does not: copies still teach."""
    helped, alone = member(WON, CONSULTING, [ANSWERED]), member(WON, SOLO)
    members = [helped, alone, replace(member(LOST, SOLO), banned=True)]
    plain = credits_of(group(*members), algorithm(), LONGEST)
    assert [credit.advantage.feedback for credit in copies(plain, members)] == [0.5]
    settings = algorithm(copies_advantage="over_banned", copies_without_requests=True)
    credits = credits_of(group(*members), settings, LONGEST)
    [copy] = copies(credits, members)
    assert copy.advantage == Advantage(0.0, 1.0)
    assert credits[0].advantage.feedback == 0.5  # the agent's words in place are credited as before
    assert [credit.without_requests for credit in credits] == [False, True, False, True]
    assert [row.without_requests for row in batched([group(*members)], settings, 1, LONGEST)[0]] == [
        False,
        True,
        False,
        True,
    ]
    assert not copies(credits_of(group(helped, alone), algorithm(), LONGEST), [helped, alone])


def test_banned_rollouts_are_compared_with_one_another() -> None:
    banned = [replace(member(verdict, SOLO), banned=True) for verdict in (WON, LOST)]
    credits = credits_of(group(member(WON, SOLO), member(WON, SOLO), *banned), algorithm(), LONGEST)
    assert [credit.advantage.policy for credit in credits] == [0.0, 0.0, 0.5, -0.5]


def test_one_answer_among_refusals_is_enough_and_none_is_too_few() -> None:
    mixed = [ConsultOutcome.TIMEOUT, ANSWERED, ConsultOutcome.REFUSED_LIMIT]
    for outcomes, number in [(mixed, 1), ([], 0)]:
        members = [member(WON, CONSULTING, outcomes), member(LOST, SOLO)]
        assert len(copies(credits_of(group(*members), algorithm(), LONGEST), members)) == number


def test_a_solo_success_is_not_copied() -> None:
    members = [member(WON, SOLO), member(LOST, SOLO)]
    assert len(credits_of(group(*members), algorithm(), LONGEST)) == 2


def test_feedback_that_added_nothing_is_not_copied() -> None:
    members = [member(WON, CONSULTING, [ANSWERED]), member(WON, SOLO)]
    assert not copies(credits_of(group(*members), algorithm(), LONGEST), members)
    alone = [member(WON, CONSULTING, [ANSWERED])]
    assert not copies(credits_of(group(*alone), algorithm(feedback_advantage="signed"), LONGEST), alone)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("rule", FEEDBACK_ADVANTAGES)
def test_the_algorithms_settings_reach_the_advantages(rule: str, split: bool, estimator: str) -> None:
    members = [
        member(WON, CONSULTING),
        member(LOST, CONSULTING),
        *[member(LOST, SOLO)] * 2,
        member(WON, SOLO),
    ]
    settings = algorithm(split_baselines=split, estimator=estimator, feedback_advantage=rule)
    expected = group_advantages(
        [Member(verdict=m.grade.verdict, condition=m.condition) for m in members],
        split_baselines=split,
        estimator=estimator,
        feedback=rule,
    )
    assert [credit.advantage for credit in credits_of(group(*members), settings, LONGEST)] == expected


def test_copies_can_be_switched_off() -> None:
    members = [member(WON, CONSULTING, [ANSWERED]), member(LOST, SOLO)]
    assert len(credits_of(group(*members), algorithm(stripped_copies=False), LONGEST)) == 2


@pytest.mark.parametrize("condition", Condition)
@pytest.mark.parametrize("engine_failed", [True, False])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_an_ungraded_rollout_leaves_no_row_and_changes_no_other(
    condition: Condition, engine_failed: bool, at: int
) -> None:
    lost = failed(condition) if engine_failed else member(UNGRADED, condition, [ANSWERED])
    members = [member(WON, CONSULTING, [ANSWERED]), member(LOST, CONSULTING), member(LOST, SOLO)]
    with_it = [*members[:at], lost, *members[at:]]
    for changes in ({}, {"split_baselines": False}, {"feedback_advantage": "signed"}):
        expected = credits_of(group(*members, experts=1), algorithm(**changes), LONGEST)
        assert credits_of(group(*with_it, experts=1), algorithm(**changes), LONGEST) == expected


def test_a_group_of_ungraded_rollouts_leaves_no_rows() -> None:
    assert credits_of(group(failed(SOLO), member(UNGRADED, CONSULTING)), algorithm(), LONGEST) == []


@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_group_of_experts_only_is_supervised_fine_tuning(experts: int, estimator: str) -> None:
    plain = group(experts=experts)
    credits = credits_of(plain, algorithm(coefficient="likelihood", estimator=estimator), LONGEST)
    assert [credit.stream for credit in credits] == list(plain.experts)
    assert [credit.advantage for credit in credits] == [Advantage(0.0, 1.0)] * experts


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("split", [True, False])
def test_in_a_group_an_expert_is_one_more_correct_solo_member(split: bool, estimator: str) -> None:
    members = [member(WON, SOLO), *[member(LOST, SOLO) for _ in range(6)]]
    changes = {"coefficient": "shaped", "split_baselines": split, "estimator": estimator}
    credits = credits_of(group(*members, experts=1), algorithm(**changes), LONGEST)
    relative = group_relative([1.0, *[0.0] * 6, 1.0], estimator)
    assert [credit.advantage.policy for credit in credits[:7]] == relative[:7]
    assert credits[7] == Credit(
        stream=expert_stream(SOLO_PROMPT, (70, 71, 72)), advantage=Advantage(0.0, relative[7])
    )


def test_an_expert_is_credited_with_its_advantage_whatever_feedback_is_credited_with() -> None:
    members = [member(WON, SOLO), member(WON, SOLO)]
    for rule in ("signed", "positive", "over_solo"):
        credits = credits_of(group(*members, experts=1), algorithm(feedback_advantage=rule), LONGEST)
        assert [credit.advantage.feedback for credit in credits] == [0.0, 0.0, 0.0]  # nothing left to learn
    lost = credits_of(group(member(LOST, SOLO), experts=1), algorithm(), LONGEST)
    assert lost[1].advantage == Advantage(0.0, 0.5)


def test_the_algorithms_settings_reach_the_objective() -> None:
    settings = algorithm(
        clip_low=0.1, clip_high=0.3, coefficient="shaped", floor=0.2, shape=0.4, feedback_weight=0.7
    )
    expected = ObjectiveSettings(
        surrogate=SurrogateSettings("clipped", Clip(0.1, 0.3)),
        coefficient=CoefficientSettings(
            kind="shaped", floor=0.2, shape=0.4, clip=Clip()
        ),  # `ratio` has a clip of its own
        feedback_weight=0.7,
    )
    assert objective_settings(settings) == expected


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("coefficient", ["floored", "masked"])
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_mini_batches_share_out_whole_groups_in_order_each_with_its_own_denominator(
    number: int, coefficient: str, aggregation: str
) -> None:
    settings = algorithm(coefficient=coefficient, aggregation=aggregation, stripped_copies=False)
    groups = [
        group(member(WON, CONSULTING, [ANSWERED], prompt=10 + i), member(LOST, SOLO, prompt=10 + i))
        for i in range(5)
    ]
    steps = batched(groups, settings, number, LONGEST)
    assert len(steps) == number
    prompts = [[row.stream.ids[0] for row in rows] for rows in steps]
    assert [prompt for step in prompts for prompt in step] == [10 + i // 2 for i in range(10)]
    sizes = [len(set(step)) for step in prompts]
    assert max(sizes) - min(sizes) <= 1
    assert all(step.count(prompt) == 2 for step in prompts for prompt in step)
    trained = {Source.POLICY, Source.FEEDBACK} if coefficient == "floored" else {Source.POLICY}
    for rows in steps:
        weights = [row.weight * sum(s in trained for s in row.stream.sources) for row in rows]
        assert sum(weights) == pytest.approx(1.0)


def test_the_rows_of_a_mini_batch_are_the_credits_of_its_groups() -> None:
    groups = [group(member(WON, CONSULTING, [ANSWERED]), member(LOST, SOLO), experts=1) for _ in range(2)]
    (rows,) = batched(groups, algorithm(), 1, LONGEST)
    credits = [credit for each in groups for credit in credits_of(each, algorithm(), LONGEST)]
    assert [(row.stream, row.advantage) for row in rows] == [(c.stream, c.advantage) for c in credits]
    assert len({row.weight for row in rows}) == 1  # one N, experts and copies included
    assert rows[0].weight == pytest.approx(1 / sum(6 + 3 + 2 + 3 for _ in groups))


def test_micro_batches_fill_up_to_the_limit_and_not_beyond() -> None:
    groups = [group(member(LOST, SOLO), member(WON, SOLO)) for _ in range(3)]  # streams of 3 tokens
    (rows,) = batched(groups, algorithm(), 1, LONGEST)
    assert [len(part) for part in microbatches(rows, 12)] == [4, 2]
    assert [len(part) for part in microbatches(rows, 11)] == [3, 3]
    assert [len(part) for part in microbatches(rows, 1)] == [1] * 6
    assert microbatches([], 12) == []


def test_the_overlong_penalty_counts_the_response_alone() -> None:
    members = [member(WON, SOLO), member(WON, CONSULTING, [ANSWERED])]  # responses of 2 and 6 tokens
    settings = algorithm(overlong_buffer_tokens=4, split_baselines=False, stripped_copies=False)
    credits = credits_of(group(*members), settings, 8)
    assert [credit.advantage.policy for credit in credits] == [0.25, -0.25]  # rewards 1 and 1 - 2/4


def test_dr_grpo_divides_by_the_longest_response_allowed() -> None:
    (rows,) = batched([group(member(WON, SOLO), member(LOST, SOLO))], algorithm(name="dr_grpo"), 1, 50)
    assert [row.weight for row in rows] == [1 / (2 * 50)] * 2
