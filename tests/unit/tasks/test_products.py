"""Two-digit products: a notation that reads back, an oracle that is right, traces without the hard plan."""

import asyncio
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aipo.assembly.parts import build_task
from aipo.config.settings import TaskSettings
from aipo.consult.protocol import NOTICES
from aipo.core.types import PAPER_AGENTS, ConsultOutcome, Verdict
from aipo.tasks.base import Problem, Split, TaskSpec
from aipo.tasks.cpu.leg_counting.task import LONG, SHORT
from aipo.tasks.cpu.leg_counting.traces import LegCountingCurriculum
from aipo.tasks.cpu.products.notation import (
    DONE,
    FICTIONAL,
    LARGEST,
    MORE,
    PLUS,
    TIMES,
    Operation,
    answer,
    final_line,
    is_one_line,
    lines,
    parse_operation,
    plan,
    problem_text,
    solution,
    vocabulary,
)
from aipo.tasks.cpu.products.oracle import ProductsOracle
from aipo.tasks.cpu.products.task import (
    EASY_STRATA,
    HARD,
    SUM,
    ProductsTask,
    held_out_questions,
    stratum_of,
)
from aipo.tasks.cpu.products.traces import ProductsCurriculum
from aipo.tasks.cpu.specs import CPU_TASKS
from aipo.tasks.cpu.worked import Reader
from support.wording import WORDING

TASK, ORACLE = ProductsTask(), ProductsOracle(WORDING)
V, K, R = PAPER_AGENTS
quiet = settings(deadline=None)
HARD_ONE = "7 4 * 6 3"
SOLUTION = "7 4 * 6 0 = 2 8 2 0 more 7 4 * 0 3 = 0 1 4 1 more 2 8 2 0 + 0 1 4 1 = 2 9 6 1 done answer 2 9 6 1"
SOME = [
    problem
    for stratum in (*EASY_STRATA, HARD)
    for problem in [p for p in TASK.problems(Split.TEST) if p.stratum == stratum][:15]
]
FACTORS, TERMS = st.integers(0, 99), st.integers(0, LARGEST)
OPERATIONS = st.builds(Operation, FACTORS, st.sampled_from([TIMES, *FICTIONAL]), FACTORS) | st.builds(
    Operation, TERMS, st.just(PLUS), TERMS
)
SOLVABLE = st.builds(Operation, FACTORS, st.just(TIMES), FACTORS) | st.builds(
    Operation, TERMS, st.just(PLUS), TERMS
).filter(lambda o: o.value <= LARGEST)


def question(text: str) -> tuple[str, frozenset[int]]:
    operation = parse_operation(text)
    return operation.operator, frozenset((operation.left, operation.right))


def grade(problem: Problem, response: str) -> Verdict:
    return asyncio.run(TASK.grade(problem, response)).verdict


# the notation


@quiet
@given(OPERATIONS)
def test_every_operation_reads_back(operation: Operation) -> None:
    assert parse_operation(problem_text(operation)) == operation


@quiet
@given(SOLVABLE)
def test_a_plan_ends_with_the_value_and_each_of_its_lines_can_be_asked_of_knowledge(
    operation: Operation,
) -> None:
    steps = plan(operation)
    assert steps[-1].value == operation.value and all(map(is_one_line, steps))
    assert answer(solution(operation)) == operation.value
    assert [row[-1] for row in lines(steps)] == [MORE] * (len(steps) - 1) + [DONE]
    for step in steps:
        (row,) = lines([step])
        assert asked(K, "", problem_text(step)) == " ".join(row[-5:-1])


def test_a_hard_product_takes_three_lines() -> None:
    assert solution(parse_operation(HARD_ONE)) == SOLUTION


NO_OPERATION = ["", "7", "7 4", "7 4 *", "* 6 3", "7 4 * 6", "7 4 6 3", "7 4 x 6 3", "7 4 * 6 3 0"]
NO_OPERATION += ["7 4 + 6 3", "7 4 * 6 3 =", "47 * 36", "7 4 * 6 \u0663", "7 4 * * 6 3", "7 4 answer 6 3"]


@pytest.mark.parametrize("text", NO_OPERATION)
def test_text_in_another_notation_is_no_problem(text: str) -> None:
    with pytest.raises(ValueError):
        parse_operation(text)


def test_a_fictional_operator_has_neither_value_nor_plan() -> None:
    for of in (lambda operation: operation.value, plan):
        with pytest.raises(ValueError):
            of(Operation(47, FICTIONAL[0], 36))


# the problems


def test_hard_products_and_sums_stand_in_one_split_whatever_the_order_of_their_numbers() -> None:
    by_split = {
        split: [question(p.text) for p in TASK.problems(split) if p.stratum in (HARD, SUM)] for split in Split
    }
    assert set(Counter(q for questions in by_split.values() for q in questions).values()) == {1}
    held_out = {(operator, frozenset(numbers)) for operator, *numbers in held_out_questions()}
    assert held_out == {*by_split[Split.TEST], *by_split[Split.VALIDATION]}


def test_every_split_has_every_stratum_and_enough_of_it() -> None:
    for split in Split:
        problems = TASK.problems(split)
        sizes = Counter(problem.stratum for problem in problems)
        assert set(sizes) == {*EASY_STRATA, HARD} and min(sizes.values()) >= 64
        assert len({problem.id for problem in problems}) == len(problems) == len({p.text for p in problems})
    assert sizes[HARD] < 400 < 1500 < sum(p.stratum == HARD for p in TASK.problems(Split.TRAIN))


def test_strata_are_told_by_the_digits_of_the_numbers() -> None:
    told = {
        (7, TIMES, 4): "one_by_one",
        (47, TIMES, 3): "two_by_one",
        (40, TIMES, 3): "two_by_one",
        (47, TIMES, 30): "two_by_tens",
        (47, TIMES, 36): "hard",
        (11, TIMES, 99): "hard",
        (47, PLUS, 36): "sum",
        (9000, PLUS, 999): "sum",
    }
    none = [(40, TIMES, 36), (7, TIMES, 36), (7, TIMES, 30), (0, TIMES, 3), (47, TIMES, 0)]
    none += [(9000, PLUS, 1000), (9, PLUS, 36), (47, FICTIONAL[0], 36)]
    assert {numbers: stratum_of(Operation(*numbers)) for numbers in told} == told
    assert {stratum_of(Operation(*numbers)) for numbers in none} == {None}
    for split in Split:
        for problem in TASK.problems(split):
            operation = parse_operation(problem.text)
            assert stratum_of(operation) == problem.stratum
            assert len(plan(operation)) == (3 if problem.stratum == HARD else 1)
            assert int(problem.gold) == operation.value


def test_problems_come_in_a_fixed_order() -> None:
    assert list(TASK.problems(Split.TEST)) == list(ProductsTask().problems(Split.TEST))


# the verdict


def test_the_oracles_solution_is_correct_and_that_of_another_problem_is_not() -> None:
    for problem, other in pairwise(SOME):
        worked = problem.solution or ""
        assert grade(problem, worked) is Verdict.CORRECT
        if problem.gold != other.gold:
            assert grade(other, worked) is Verdict.INCORRECT


NO_ANSWER = ["", "answer", "answer 2 9 6", "2 9 6 1", "answer 2 9 6 1 done", "answer 2 9 6 x", "x 2 9 6 1"]
NO_ANSWER += ["answer \u00b2 9 6 1", "answer \u0662 9 6 1", "answer 2 9 6 1 answer", "answer 29 6 1"]
NO_ANSWER += ["answer 2 9 6 1 <feedback>", "answer 2 9 6 1 0"]


@pytest.mark.parametrize("response", NO_ANSWER)
def test_without_an_answer_at_the_end_there_is_none(response: str) -> None:
    verdict = asyncio.run(TASK.grade(Problem(id="x", text=HARD_ONE, gold="1692"), response))
    assert (verdict.verdict, verdict.reason) == (Verdict.INCORRECT, "no_answer")


@quiet
@given(SOLVABLE)
def test_hiding_the_answer_keeps_what_stands_before_it_and_leaves_nothing_that_states_it(
    operation: Operation,
) -> None:
    problem = Problem(id="x", text=problem_text(operation), gold=str(operation.value))
    worked = solution(operation)
    kept = TASK.without_answer(problem, worked)
    assert kept is not None and worked.startswith(kept) and kept.endswith("=")
    assert TASK.without_answer(problem, kept) is None
    assert TASK.without_answer(problem, "ok") is None
    assert TASK.without_answer(problem, " ".join(final_line(operation.value)[1:])) == ""
    assert TASK.without_answer(problem, " ".join(final_line(operation.value))) == "answer"


# the oracle


def asked(agent: str, rollout: str, request: str = "", problem: str = HARD_ONE) -> str:
    return ORACLE.feedback(agent, problem, rollout, request)


@pytest.mark.parametrize("problem", SOME, ids=lambda problem: problem.text)
def test_asked_line_by_line_the_oracles_words_complete_every_problem_to_a_correct_solution(
    problem: Problem,
) -> None:
    rollout, value = "", []
    while reply := asked(R, rollout, problem=problem.text):
        rollout += f" <reasoning> </reasoning> <feedback> {reply} </feedback>"
        value = reply.split()[-5:-1]
    assert f"{' '.join(Reader(WORDING).words(rollout))} answer {' '.join(value)}" == problem.solution
    assert grade(problem, f"answer {' '.join(value)}") is Verdict.CORRECT


@pytest.mark.parametrize("begun", range(1, 11))
def test_reasoning_completes_a_line_that_is_begun(begun: int) -> None:
    first = SOLUTION.split()[:11]
    assert asked(R, " ".join(first[:begun])).split() == first[begun:]


def test_reasoning_leaves_the_answer_to_the_policy_and_says_nothing_to_what_no_rest_makes_right() -> None:
    assert asked(R, SOLUTION) == "" == asked(R, SOLUTION.partition(" answer")[0])
    assert asked(R, "7 4 * 6 3 =") == "" == asked(R, "8 4 *")


@pytest.mark.parametrize("problem", [HARD_ONE, "7 4 * 6 0", "2 8 2 0 + 0 1 4 1"])
def test_verify_names_the_first_wrong_line_wherever_a_word_of_it_is_wrong(problem: str) -> None:
    right = lines(plan(parse_operation(problem)))
    for row, words in enumerate(right):
        for place in range(len(words)):
            for wrong_mark in (MORE, DONE):
                other = {MORE: DONE, DONE: MORE}.get(words[place], "9" if words[place] != "9" else "8")
                wrong = [*words[:place], other, *words[place + 1 :]]
                later = [w for following in right[row + 1 :] for w in following] * (wrong_mark == MORE)
                written = " ".join([w for before in right[:row] for w in before] + wrong + later)
                correction = " ".join(["wrong", *words])
                assert asked(V, written, problem=problem) == correction
                corrected = f"{written} <verify> </verify> <feedback> {correction} </feedback>"
                assert asked(V, corrected, problem=problem) == "ok"


def test_after_a_correction_reasoning_goes_on_from_it() -> None:
    written = "7 4 * 6 3 = 2 9 6 1 done <verify> </verify> <feedback>"
    corrected = f"{written} {asked(V, '7 4 * 6 3 = 2 9 6 1 done')} </feedback>"
    assert asked(R, corrected) == "7 4 * 0 3 = 0 1 4 1 more"


def test_verify_names_no_line_behind_the_last_and_says_nothing_to_none() -> None:
    assert asked(V, "") == "" == asked(V, "7 4 * 6 0 =")
    assert asked(V, "7 4 * 6 0 = 2 8 2 0 more") == "ok" == asked(V, SOLUTION)
    assert asked(V, f"{SOLUTION.partition(' answer')[0]} 1 0 * 1 0 = 1 0 0 0 done") == "ok"


def test_knowledge_tells_the_value_of_an_operation_of_one_line_and_nothing_else() -> None:
    requests = ["7 4 * 6 0", " 7 4 * 0 3 ", "2 8 2 0 + 0 1 4 1"]
    assert [asked(K, "", request) for request in requests] == ["2 8 2 0", "0 1 4 1", "2 9 6 1"]
    nothing = [HARD_ONE, "7 0 * 6 3", "7 4", "7 4 * 6", "", "7 4 blobam 6 0", "9 9 9 9 + 1 0 0 0", "more"]
    assert [asked(K, "", request) for request in nothing] == [""] * len(nothing)


def test_what_knowledge_says_reads_on_as_the_policys_own_format() -> None:
    begun = "7 4 * 6 0 = <knowledge> 7 4 * 6 0 </knowledge> <feedback>"
    consulted = f"{begun} {asked(K, '7 4 * 6 0 =', '7 4 * 6 0')} </feedback> more"
    assert Reader(WORDING).words(consulted) == SOLUTION.split()[:11]


@pytest.mark.parametrize("outcome", [o for o in ConsultOutcome if o is not ConsultOutcome.ANSWERED])
@pytest.mark.parametrize("agent", PAPER_AGENTS)
def test_notices_and_requests_do_not_count_as_work(agent: str, outcome: ConsultOutcome) -> None:
    notice = f"<verify> 9 done </verify> <feedback> {NOTICES[outcome]} </feedback>"
    first = " ".join(SOLUTION.split()[:11])
    assert asked(agent, f"{first} {notice}", "7 4 * 0 3") == asked(agent, first, "7 4 * 0 3") != ""


def test_no_agent_breaks_on_whatever_a_rollout_holds() -> None:
    words = [*vocabulary()[:18], *vocabulary()[:10], "<feedback>", "</feedback>", "<verify>"]
    for seed in range(300):
        rng = Random(seed)
        rollout, request = (" ".join(rng.choices(words, k=rng.randrange(30))) for _ in range(2))
        for problem in (HARD_ONE, "7 4 * 6 0"):
            assert all(isinstance(asked(agent, rollout, request, problem), str) for agent in PAPER_AGENTS)


# the registry


CURRICULA = {
    SHORT.name: LegCountingCurriculum(3, WORDING),
    LONG.name: LegCountingCurriculum(3, WORDING, LONG),
    ProductsTask.name: ProductsCurriculum(3, WORDING),
}


@pytest.mark.parametrize("spec", CPU_TASKS, ids=lambda spec: str(spec.name))
def test_every_cpu_task_has_a_task_of_that_name_solutions_an_oracle_and_a_start(spec: TaskSpec) -> None:
    task, curriculum = build_task(TaskSettings(name=spec.name)), CURRICULA[spec.name]
    problem = task.problems(Split.VALIDATION)[0]
    worked = problem.solution or ""
    assert task.name == spec.name and spec.oracle and spec.start
    assert asyncio.run(task.grade(problem, worked)).verdict is Verdict.CORRECT
    assert {*problem.text.split(), *worked.split()} <= set(curriculum.vocabulary())
    assert curriculum.trace(Random(0)) == curriculum.trace(Random(0))
