"""The warm start of two-digit products: everything but the plan of a hard product, and what is a target."""

from collections import Counter
from random import Random

import pytest

from aipo.core.types import Condition
from aipo.tasks.base import Split
from aipo.tasks.cpu.curriculum import Trace
from aipo.tasks.cpu.products.notation import (
    DIGITS,
    FICTIONAL,
    MARKS,
    MORE,
    PLUS,
    TIMES,
    Operation,
    final_line,
    is_one_line,
    line,
    lines,
    operation_words,
    parse_operation,
    plan,
    vocabulary,
)
from aipo.tasks.cpu.products.task import (
    EASY_STRATA,
    ProductsTask,
    held_out_questions,
    question_of,
    stratum_of,
)
from aipo.tasks.cpu.products.traces import HARD_PLANS, Kind, TraceSettings, steps_of, trace
from aipo.tasks.cpu.worked import Reader
from support.wording import WORDING

HARD_ONE = "7 4 * 6 3"
TAGS = {
    f"<{slash}{name}>" for name in ("verify", "knowledge", "reasoning", "feedback") for slash in ("", "/")
}
ALWAYS = TraceSettings(
    fictional_share=0.7, consult_known=0.5, knowledge=0.5, verify=0.4, mistake=0.6, refused=0.4
)


def traces(condition: Condition, settings: TraceSettings = ALWAYS, number: int = 600) -> list[Trace]:
    drawn = (trace(Random(seed), settings, WORDING) for seed in range(3 * number))
    return [t for t in drawn if t.condition is condition][:number]


def fictional(drawn: Trace) -> bool:
    return parse_operation(drawn.problem).operator in FICTIONAL


def is_mistake(drawn: Trace, place: int) -> bool:
    """Return whether a piece is the policy's own, a whole line, and no target."""
    said, is_target = drawn.pieces[place]
    return not is_target and "=" in said


def content(drawn: Trace) -> list[str]:
    """Return the words without requests and tags, mistakes and refusals left out."""
    kept = [
        said for i, (said, _) in enumerate(drawn.pieces) if not is_mistake(drawn, i) and "left" not in said
    ]
    return [word for word in Reader(WORDING).words(" ".join(kept)) if word not in ("ok", "wrong")]


def lines_of(drawn: Trace) -> list[list[str]]:
    rows: list[list[str]] = [[]]
    for word in content(drawn):
        rows[-1].append(word)
        if word in MARKS:
            rows.append([])
    return rows[:-1]


@pytest.mark.parametrize("condition", Condition)
def test_no_trace_holds_a_hard_product_or_a_held_out_question(condition: Condition) -> None:
    for drawn in traces(condition, number=2000):
        problem = parse_operation(drawn.problem)
        assert problem.operator in FICTIONAL or is_one_line(problem)
        assert question_of(problem) not in held_out_questions()
        words = " ".join(said for said, _ in drawn.pieces).split()
        for at, word in enumerate(words):
            if word == TIMES and at >= 2 and {*words[at - 2 : at], *words[at + 1 : at + 3]} <= set(DIGITS):
                assert "0" in words[at + 1 : at + 3]


def test_traces_meet_held_out_sums_and_leave_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def sums() -> set[tuple[str, int, int]]:
        drawn = (trace(Random(s), TraceSettings(fictional_share=0), WORDING).problem for s in range(40_000))
        return {question_of(parse_operation(text)) for text in drawn}

    assert not sums() & held_out_questions()
    held_out = held_out_questions()
    monkeypatch.setattr("aipo.tasks.cpu.products.traces.held_out_questions", frozenset)
    assert sums() & held_out


def test_no_fictional_operator_has_the_plan_of_a_hard_product() -> None:
    seen = Counter()
    for drawn in traces(Condition.CONSULTING, number=8000):
        problem = parse_operation(drawn.problem)
        if fictional(drawn):
            steps = [parse_operation(" ".join(row[: row.index("=")])) for row in lines_of(drawn)]
            seen[len(steps)] += 1
            seen["equal digits"] += len({*f"{problem.left:02}{problem.right:02}"}) < 4
            for left, right in ((problem.left, problem.right), (problem.right, problem.left)):
                product = plan(Operation(left, TIMES, right))
                assert len(product) == 1 or steps != product
            assert all(steps != steps_of(kinds, problem) for kinds in HARD_PLANS)
    assert all(seen[key] > 100 for key in (1, 2, 3, "equal digits"))


def test_the_plan_of_a_hard_product_is_the_one_that_is_left_out() -> None:
    hard = parse_operation(HARD_ONE)
    assert steps_of(HARD_PLANS[0], hard) == plan(hard)
    swapped = Operation(hard.right, TIMES, hard.left)
    assert steps_of(HARD_PLANS[1], hard) == plan(swapped)


def test_every_kind_of_line_occurs_at_every_place_with_either_mark() -> None:
    seen = set()
    for drawn in traces(Condition.CONSULTING, number=3000):
        if not fictional(drawn):
            continue
        problem, values = parse_operation(drawn.problem), []
        for place, row in enumerate(lines_of(drawn)):
            for kind in Kind:
                (step,) = steps_of([kind], problem)
                if kind is Kind.SUM_OF_LAST_TWO and values:
                    pair = [problem.right, *values][-2:]
                    step = Operation(pair[0], PLUS, pair[1])
                if operation_words(step) == row[: row.index("=")]:
                    seen.add((place, kind, row[-1]))
            values.append(int("".join(reversed(row[-5:-1]))))
    everything = {(place, kind, mark) for place in range(3) for kind in Kind for mark in MARKS}
    assert seen == {(p, k, m) for p, k, m in everything if (p, m) != (2, MORE)}


def test_alone_every_easy_stratum_occurs_and_now_and_then_a_product_by_zero() -> None:
    problems = [parse_operation(drawn.problem) for drawn in traces(Condition.SOLO)]
    strata = Counter(stratum_of(problem) for problem in problems if problem.right)
    assert min(strata[name] for name in EASY_STRATA) > 20
    assert {problem.operator for problem in problems if not problem.right} >= {TIMES}


def test_a_trace_is_repeated_by_its_seed() -> None:
    assert [trace(Random(s), ALWAYS, WORDING) for s in range(50)] == [
        trace(Random(s), ALWAYS, WORDING) for s in range(50)
    ]


@pytest.mark.parametrize("condition", Condition)
def test_every_word_of_problems_solutions_and_traces_is_in_the_vocabulary(condition: Condition) -> None:
    words = {*vocabulary(), *TAGS, *WORDING.refusal.split()}
    assert len(vocabulary()) == len(set(vocabulary()))
    for drawn in traces(condition):
        text = " ".join([drawn.problem, *(said for said, _ in drawn.pieces)])
        assert set(text.split()) <= words
    for problem in ProductsTask().problems(Split.TEST)[::40]:
        assert set(f"{problem.text} {problem.solution}".split()) <= words


def replies(drawn: Trace) -> list[tuple[str, str, list[tuple[str, bool]]]]:
    """Return (agent, request, pieces of the reply) of each answered consultation."""
    result, pieces = [], drawn.pieces
    for i, (said, _) in enumerate(pieces):
        if said == "<feedback>":
            end = next(k for k in range(i, len(pieces)) if pieces[k][0] == "</feedback>")
            tag, *request, close = pieces[i - 1][0].split()
            assert close == tag.replace("<", "</")
            result.append((tag.strip("<>"), " ".join(request), list(pieces[i + 1 : end])))
    return result


def test_every_line_of_a_fictional_operator_is_asked_for_and_what_decides_the_plan_is_no_target() -> None:
    seen = Counter()
    for drawn in traces(Condition.CONSULTING):
        own = [reply for agent, _, reply in replies(drawn) if agent == "reasoning"]
        if fictional(drawn):
            for row, reply in zip(lines_of(drawn), own, strict=True):
                operator = next(i for i, word in enumerate(row) if word in (TIMES, PLUS))
                told = [(word, is_target) for said, is_target in reply for word in said.split()]
                deciding = {0, operator + 1, len(row) - 1}
                assert told == [(word, i not in deciding) for i, word in enumerate(row)]
        seen[fictional(drawn)] += 1
        assert fictional(drawn) or all(is_target for reply in own for _, is_target in reply)
    assert min(seen.values()) > 100


def test_alone_there_are_easy_problems_of_one_line_and_every_word_but_mistakes_is_a_target() -> None:
    agents = set()
    for drawn in traces(Condition.SOLO):
        assert not fictional(drawn)
        assert all(is_target for *_, reply in replies(drawn) for _, is_target in reply)
        words = " ".join(said for said, _ in drawn.pieces).split()
        assert MORE not in words
        agents |= {agent for agent, *_ in replies(drawn)}
    assert agents == {"verify", "knowledge", "reasoning"}


def test_a_traces_arithmetic_is_right_but_for_mistakes_that_verify_corrects_and_no_one_is_to_learn() -> None:
    mistakes = 0
    for condition in Condition:
        for drawn in traces(condition):
            for row in lines_of(drawn):
                assert row == line(parse_operation(" ".join(row[: row.index("=")])), row[-1])
            value = int("".join(reversed(lines_of(drawn)[-1][-5:-1])))
            assert drawn.pieces[-1] == (" ".join(final_line(value)), True)
            for i, (said, is_target) in enumerate(drawn.pieces):
                assert is_target or fictional(drawn) or is_mistake(drawn, i) or "left" in said
                if is_mistake(drawn, i):
                    mistakes += 1
                    right = " ".join(lines([parse_operation(drawn.problem)])[0])
                    assert said != right and drawn.pieces[i + 3] == (f"wrong {right}", True)
    assert mistakes > 50


def test_refusals_are_never_targets_and_the_policy_goes_on_by_itself() -> None:
    refusals = 0
    for drawn in traces(Condition.CONSULTING, TraceSettings(consult_known=0.6, verify=0.0, refused=0.6)):
        for i, (said, is_target) in enumerate(drawn.pieces):
            if "no consultations left" in said:
                refusals += 1
                assert not is_target and drawn.pieces[i + 1][1] and not fictional(drawn)
    assert refusals > 50
    assert not any("left" in said for drawn in traces(Condition.SOLO) for said, _ in drawn.pieces)


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_no_trace_consults_more_often_than_it_may(most: int) -> None:
    settings = TraceSettings(fictional_share=0.7, consult_known=0.5, verify=0.4, max_consultations=most)
    counts = [len(replies(drawn)) for condition in Condition for drawn in traces(condition, settings)]
    assert max(counts) == most
