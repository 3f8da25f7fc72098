"""Leg counting: disjoint splits, an oracle and a verdict that are right, traces that keep the boundary."""

import asyncio
from collections import Counter
from itertools import combinations, pairwise
from random import Random

import pytest

from aipo.consult.protocol import NOTICES
from aipo.core.types import PAPER_AGENTS, Condition, ConsultOutcome, Verdict
from aipo.tasks.base import Problem, Split
from aipo.tasks.cpu.curriculum import Trace
from aipo.tasks.cpu.leg_counting.notation import (
    FICTIONAL,
    KNOWN,
    LABELS,
    LEGS,
    LINE_END,
    MAX_INSTANCES,
    Item,
    answer,
    lines,
    parse_problem,
    problem_text,
    solution,
    vocabulary,
)
from aipo.tasks.cpu.leg_counting.oracle import LegCountingOracle
from aipo.tasks.cpu.leg_counting.task import EASY, HARD, LONG, LegCountingTask, held_out_questions, stratum_of
from aipo.tasks.cpu.leg_counting.traces import MAX_LEGS, LegCountingCurriculum, TraceSettings, trace
from support.wording import WORDING

TASK, ORACLE = LegCountingTask(), LegCountingOracle(WORDING)
V, K, R = PAPER_AGENTS
LINE_WORDS = 8
"""Of a worked line, label and end included."""
SOME = TASK.problems(Split.TEST)[:60]
PROBLEM = "a 3 dog b 2 spider c 1 human"
TAGS = {
    f"<{slash}{name}>" for name in ("verify", "knowledge", "reasoning", "feedback") for slash in ("", "/")
}
ALWAYS = TraceSettings(fictional_share=0.7, consult_known=0.5, verify=0.4, mistake=0.6, refused=0.4)


def question(text: str) -> frozenset[Item]:
    return frozenset(parse_problem(text))


def grade(problem: Problem, response: str) -> Verdict:
    return asyncio.run(TASK.grade(problem, response)).verdict


def total(text: str) -> int:
    return sum(item.count * LEGS[item.animal] for item in parse_problem(text))


def traces(condition: Condition, settings: TraceSettings = ALWAYS, number: int = 400) -> list[Trace]:
    drawn = (trace(Random(seed), settings, WORDING) for seed in range(3 * number))
    return [t for t in drawn if t.condition is condition][:number]


# the problems


def test_no_question_stands_in_two_splits_or_twice_in_one_whatever_the_order_of_its_items() -> None:
    questions = {split: [question(p.text) for p in TASK.problems(split)] for split in Split}
    assert all(len(drawn) > 300 for drawn in questions.values())
    together = Counter(q for drawn in questions.values() for q in drawn)
    assert set(together.values()) == {1}
    assert held_out_questions() == {*questions[Split.TEST], *questions[Split.VALIDATION]}


def test_strata_are_told_by_the_number_of_unknown_animals() -> None:
    for split in Split:
        problems = TASK.problems(split)
        for problem in problems:
            unknown = sum(item.animal not in KNOWN for item in parse_problem(problem.text))
            assert problem.stratum == (EASY if unknown == 0 else HARD) and unknown != 1
        assert {problem.stratum for problem in problems} == {EASY, HARD}
        assert len({problem.id for problem in problems}) == len(problems)
    assert stratum_of([Item(1, "dog"), Item(1, "spider")]) is None
    assert {LEGS[animal] for animal in KNOWN} == {0, 2, 4} and len(KNOWN) == 19


def test_problems_come_in_a_fixed_order_and_read_back() -> None:
    assert list(TASK.problems(Split.TEST)) == list(LegCountingTask().problems(Split.TEST))
    for problem in SOME:
        items = parse_problem(problem.text)
        assert problem_text(items) == problem.text and 2 <= len(items) <= 4
        assert all(1 <= item.count <= MAX_INSTANCES for item in items)
        assert int(problem.gold) == total(problem.text)


@pytest.mark.parametrize("text", ["", "dog", "a 3", "b 3 dog", "a 3 dog c 2 cow", "a three dog", "A 3 dog"])
def test_text_in_another_notation_is_no_problem(text: str) -> None:
    with pytest.raises(ValueError):
        parse_problem(text)


# the verdict


def test_the_oracles_solution_is_correct_and_that_of_another_problem_is_not() -> None:
    for problem, other in pairwise(SOME):
        worked = solution(parse_problem(problem.text))
        assert answer(worked) == total(problem.text)
        assert grade(problem, worked) is Verdict.CORRECT
        if problem.gold != other.gold:
            assert grade(other, worked) is Verdict.INCORRECT


NO_TOTAL = ["", "total", "total 2 1", "8 2 0", "total 8 2 0 ;", "a 4 2 1 2 1 0 ;", "total 8 2 x"]
NO_TOTAL += ["total \u00b2 2 0", "total \u0668 2 0", "total 8 2 0 total", "total 8 2 0 <feedback>"]


@pytest.mark.parametrize("response", NO_TOTAL)
def test_without_a_total_at_the_end_there_is_no_answer(response: str) -> None:
    verdict = asyncio.run(TASK.grade(Problem(id="x", text=PROBLEM, gold="28"), response))
    assert (verdict.verdict, verdict.reason) == (Verdict.INCORRECT, "no_answer")


# the oracle


def asked(agent: str, rollout: str, request: str = "", problem: str = PROBLEM) -> str:
    return ORACLE.feedback(agent, problem, rollout, request)


@pytest.mark.parametrize("problem", [p.text for p in SOME[:12]])
def test_following_reasoning_from_nothing_gives_the_oracles_solution_up_to_the_total(problem: str) -> None:
    rollout, words = "", []
    while reply := asked(R, rollout, problem=problem):
        rollout += f" <reasoning> </reasoning> <feedback> {reply} </feedback>"
        words += reply.split()
    worked = solution(parse_problem(problem)).split()
    assert words == worked[: len(words)] and worked[len(words)] == "total"
    assert len(words) == LINE_WORDS * len(parse_problem(problem))


def test_reasoning_completes_a_line_that_is_begun_and_leaves_the_total_to_the_policy() -> None:
    assert asked(R, "a 4 2") == "1 2 1 0 ;"
    assert asked(R, "a <knowledge> a </knowledge> <feedback> 4 </feedback>") == "2 1 2 1 0 ;"
    assert asked(R, "a <reasoning> </reasoning> <feedback> agent unavailable </feedback>") == "4 2 1 2 1 0 ;"
    assert asked(R, solution(parse_problem(PROBLEM))) == ""


def test_verify_names_the_first_wrong_line_wherever_a_word_of_it_is_wrong() -> None:
    right = lines(parse_problem(PROBLEM))
    for row, words in enumerate(right):
        for place in range(LINE_WORDS - 1):
            wrong = [*words[:place], "9" if words[place] != "9" else "8", *words[place + 1 :]]
            written = " ".join(w for line in [*right[:row], wrong] for w in line)
            assert asked(V, written) == " ".join(["wrong", *words])
            corrected = f"{written} <verify> </verify> <feedback> wrong {' '.join(words)} </feedback>"
            assert asked(V, corrected) == "ok"


def test_verify_says_ok_to_right_lines_and_nothing_to_none() -> None:
    assert asked(V, "") == "" == asked(V, "a 4 2 1")
    assert asked(V, "a 4 2 1 2 1 0 ;") == "ok" == asked(V, solution(parse_problem(PROBLEM)))
    assert asked(V, "a 4 2 1 2 1 0 ; <verify> </verify> <feedback> ok </feedback> b 8 6 1 8 2 0 ;") == "ok"


def test_knowledge_tells_the_legs_of_a_label_and_nothing_else() -> None:
    assert [asked(K, "", label) for label in ("a", " b ", "c")] == ["4", "8", "2"]
    assert [asked(K, "", request) for request in ("d", "dog", "", "a b", "total")] == [""] * 5


@pytest.mark.parametrize("outcome", [o for o in ConsultOutcome if o is not ConsultOutcome.ANSWERED])
@pytest.mark.parametrize("agent", PAPER_AGENTS)
def test_notices_and_requests_do_not_count_as_work(agent: str, outcome: ConsultOutcome) -> None:
    notice = f"<verify> 9 ; </verify> <feedback> {NOTICES[outcome]} </feedback>"
    assert asked(agent, f"a 4 2 1 2 1 0 ; {notice}", "b") == asked(agent, "a 4 2 1 2 1 0 ;", "b")


def test_no_agent_breaks_on_whatever_a_rollout_holds() -> None:
    words = [*LABELS, LINE_END, "wrong", "ok", "total", "4", "0", "<feedback>", "</feedback>", "<verify>"]
    for seed in range(300):
        rng = Random(seed)
        rollout = " ".join(rng.choices(words, k=rng.randrange(20)))
        assert all(isinstance(asked(agent, rollout, rng.choice(words)), str) for agent in PAPER_AGENTS)


# the traces of the warm start


@pytest.mark.parametrize("condition", Condition)
def test_no_trace_holds_an_unknown_animal_or_a_held_out_question(condition: Condition) -> None:
    for drawn in traces(condition):
        items = parse_problem(drawn.problem)
        assert {item.animal for item in items} <= {*KNOWN, *FICTIONAL}
        assert frozenset(items) not in held_out_questions()
        said = {word for text, _ in drawn.pieces for word in text.split()}
        assert not said & (set(LEGS) - KNOWN)


def test_traces_meet_held_out_questions_and_leave_them_out() -> None:
    """Few items of few animals: without the check some question would be held out."""
    easy = [q for q in held_out_questions() if all(item.animal in KNOWN for item in q)]
    drawn = {
        question(trace(Random(s), TraceSettings(fictional_share=0.0), WORDING).problem) for s in range(20_000)
    }
    assert easy and not drawn & held_out_questions()


def test_a_trace_is_repeated_by_its_seed() -> None:
    assert [trace(Random(s), ALWAYS, WORDING) for s in range(50)] == [
        trace(Random(s), ALWAYS, WORDING) for s in range(50)
    ]


@pytest.mark.parametrize("condition", Condition)
def test_every_word_of_problems_solutions_and_traces_is_in_the_vocabulary(condition: Condition) -> None:
    words = {*vocabulary(4), *TAGS, *WORDING.refusal.split()}
    assert len(vocabulary(4)) == len(set(vocabulary(4)))
    for drawn in traces(condition):
        text = " ".join([drawn.problem, *(said for said, _ in drawn.pieces)])
        assert set(text.split()) <= words
    for problem in SOME:
        assert set(f"{problem.text} {solution(parse_problem(problem.text))}".split()) <= words


def fictional_lines(drawn: Trace) -> list[str]:
    items = parse_problem(drawn.problem)
    return [label for label, item in zip(LABELS, items, strict=False) if item.animal in FICTIONAL]


def replies(drawn: Trace) -> list[tuple[str, str, str, bool]]:
    """Return (agent, request, reply, is a target) of each answered consultation."""
    result, pieces = [], drawn.pieces
    for i, (said, _) in enumerate(pieces):
        if said == "<feedback>":
            assert pieces[i - 1][0].split()[-1].startswith("</") and pieces[i + 2][0] == "</feedback>"
            tag, *request, _end = pieces[i - 1][0].split()
            result.append((tag.strip("<>"), " ".join(request), *pieces[i + 1]))
    return result


def test_with_agents_a_fictional_animal_is_always_asked_for_and_its_reply_never_a_target() -> None:
    seen = Counter()
    for drawn in traces(Condition.CONSULTING):
        asked_for = {}
        for agent, request, reply, is_target in replies(drawn):
            if agent != "verify":
                asked_for[request or reply.split()[0]] = is_target
        for label, _item in zip(LABELS, parse_problem(drawn.problem), strict=False):
            if label in fictional_lines(drawn):
                assert asked_for[label] is False
                seen["fictional"] += 1
            elif label in asked_for:
                assert asked_for[label] is True
                seen["known"] += 1
    assert min(seen["fictional"], seen["known"]) > 50


def test_alone_every_reply_is_the_policys_own_and_fictional_animals_have_familiar_legs() -> None:
    seen = set()
    for drawn in traces(Condition.SOLO):
        assert all(is_target for *_, is_target in replies(drawn))
        legs = worked_legs(drawn)
        seen |= {legs[label] for label in fictional_lines(drawn)}
    assert seen == {0, 2, 4}
    among_agents = {
        worked_legs(t)[label] for t in traces(Condition.CONSULTING) for label in fictional_lines(t)
    }
    assert among_agents == set(range(MAX_LEGS + 1))


def worked_legs(drawn: Trace) -> dict[str, int]:
    """Read from a trace's words, corrections last, the legs that each line goes by."""
    words = " ".join(said for said, _ in drawn.pieces if "consultations left" not in said).split()
    content, inside = [], False
    for word in words:
        inside = (inside or word in {"<verify>", "<knowledge>", "<reasoning>"}) and not word.startswith("</")
        if not inside and word not in TAGS:
            content.append(word)
    return {w: int(n) for w, n in pairwise(content) if w in LABELS and n.isdigit()}


def test_a_traces_arithmetic_is_right_but_for_mistakes_that_verify_corrects_and_no_one_is_to_learn() -> None:
    mistakes = 0
    for condition in Condition:
        for drawn in traces(condition):
            legs = worked_legs(drawn)
            items = parse_problem(drawn.problem)
            by_animal = {item.animal: legs[label] for label, item in zip(LABELS, items, strict=False)}
            right = lines(items, by_animal)
            expected = sum(item.count * by_animal[item.animal] for item in items)
            assert answer(drawn.pieces[-1][0]) == expected and drawn.pieces[-1][1]
            whole = {" ".join(words) for words in right}
            for i, (said, is_target) in enumerate(drawn.pieces):
                if len(said.split()) == LINE_WORDS and said.split()[0] in LABELS and said not in whole:
                    mistakes += 1
                    correction = " ".join(["wrong", *right[LABELS.index(said[0])]])
                    assert not is_target and drawn.pieces[i + 3] == (correction, True)
    assert mistakes > 50


def test_refusals_are_never_targets_and_the_policy_goes_on_by_itself() -> None:
    refusals = 0
    for drawn in traces(Condition.CONSULTING, TraceSettings(consult_known=0.5, verify=0.0, refused=0.4)):
        for i, (said, is_target) in enumerate(drawn.pieces):
            if "no consultations left" in said:
                refusals += 1
                assert not is_target and drawn.pieces[i + 1][1]
    assert refusals > 50
    assert not any("left" in said for drawn in traces(Condition.SOLO) for said, _ in drawn.pieces)


def test_no_trace_consults_more_often_than_it_may() -> None:
    for condition in Condition:
        assert max(len(replies(drawn)) for drawn in traces(condition)) == ALWAYS.max_consultations


# the long variant


def test_long_problems_have_five_or_six_items_and_hard_ones_two_or_three_unknown_animals() -> None:
    task = LegCountingTask(LONG)
    for split in Split:
        strata: dict[str, set[int]] = {}
        for problem in task.problems(split):
            items = parse_problem(problem.text)
            assert len(items) in (5, 6)
            strata.setdefault(problem.stratum, set()).add(sum(item.animal not in KNOWN for item in items))
        assert strata == {EASY: {0}, HARD: {2, 3}}
    drawn = [{frozenset(parse_problem(p.text)) for p in task.problems(split)} for split in Split]
    assert all(not a & b for a, b in combinations(drawn, 2))
    assert {p.id for p in task.problems(Split.TEST)}.isdisjoint(p.id for p in TASK.problems(Split.TEST))


def test_long_traces_speak_of_long_problems_in_the_long_vocabulary_and_leave_held_out_ones_out() -> None:
    curriculum = LegCountingCurriculum(3, WORDING, LONG)
    words = {*curriculum.vocabulary(), *TAGS, *WORDING.refusal.split()}
    assert {"e", "f"} <= words and not {"e", "f"} & set(vocabulary(4))
    rng = Random(3)
    for _ in range(100):
        drawn = curriculum.trace(rng)
        items = parse_problem(drawn.problem)
        assert len(items) in (5, 6) and frozenset(items) not in held_out_questions(LONG)
        assert {word for text, _ in drawn.pieces for word in text.split()} <= words
