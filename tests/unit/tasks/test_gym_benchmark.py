"""Reasoning-gym: frozen items, disjoint splits, scorers that execute nothing, no partial credit."""

import ast
import asyncio
import gzip
import inspect
import json
import resource
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.gym import GymScorer
from aipo.grading.outside_worker import GYM_MEMORY_BYTES
from aipo.tasks.base import Split, TaskError
from aipo.tasks.benchmarks.catalogue import BENCHMARKS
from aipo.tasks.benchmarks.gym_freeze import MANIFEST, SEEDS, TRIES_PER_ITEM, draw, freeze, rows_of
from aipo.tasks.benchmarks.gym_tasks import (
    ACCEPTS_ANYTHING,
    EXECUTES_THE_ANSWER,
    MAX_ANSWER_CHARS,
    PAPER_TASKS,
    TASKS,
    WITHOUT_ORACLE,
    GymTask,
    answer_of,
    grade_gym,
    known,
)
from aipo.tasks.benchmarks.load import load, packaged
from aipo.tasks.benchmarks.task import BenchmarkTask, Graders, GradingLimits
from aipo.tasks.benchmarks.validate import Check, validate
from aipo.tasks.files import question_key

GYM = BENCHMARKS["reasoning_gym"]
QUICK = ["ab_10", "aiw", "quantum_lock_10"]


EVALUATE = {"eval", "exec", "parse_expr", "sympify"}


def called_in(function: Any) -> set[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {ast.unparse(function).split(".")[-1] for function in calls}


@cache
def entry(task: str) -> dict[str, Any]:
    material = next(row.material for row in load(GYM, Split.TEST) if row.stratum == task)
    assert isinstance(material, dict)
    return material


def respond(answer: str) -> str:
    return f"<answer>{answer}</answer>"


# --- what is used -------------------------


def test_the_papers_27_configurations_are_used_or_left_out_with_a_reason() -> None:
    assert len(PAPER_TASKS) == 27 and len({task.name for task in PAPER_TASKS}) == 27
    assert {task.name for task in PAPER_TASKS} - set(TASKS) == {"game_of_life_halting", "rush_hour"}
    with pytest.raises(TaskError, match="rush_hour.*no answer of its own"):
        known("rush_hour")


def test_no_scorer_that_is_used_evaluates_text() -> None:
    refused = EXECUTES_THE_ANSWER | ACCEPTS_ANYTHING | WITHOUT_ORACLE
    for task in TASKS.values():
        assert task.generator not in refused
        dataset = reasoning_gym.create_dataset(task.generator, seed=0, size=1, **task.parameters)
        assert not called_in(type(dataset).score_answer) & EVALUATE


def test_every_generator_that_evaluates_text_is_on_the_list() -> None:
    """The list is of one library version; a new scorer that evaluates must come onto it.

    number_sorting evaluates its own answer, not the policy's.
    """
    found = set()
    for name, (dataset, _) in reasoning_gym.factory.DATASETS.items():
        if called_in(dataset.score_answer) & EVALUATE:
            found.add(name)
    assert found - {"number_sorting"} <= EXECUTES_THE_ANSWER, found - EXECUTES_THE_ANSWER


# --- frozen items -------------------------


def test_the_packaged_items_are_ten_of_each_task_and_grade_themselves_right() -> None:
    rows = load(GYM, Split.TEST)
    assert Counter(row.stratum for row in rows) == dict.fromkeys(TASKS, 10)
    result = asyncio.run(validate(rows, Graders(GYM.kind, GradingLimits())))
    assert result.violations == []
    assert result.as_expected[Check.GOLD] == result.as_expected[Check.OTHER] == 250


def test_no_board_of_the_packaged_items_is_empty() -> None:
    boards = [row for row in load(GYM, Split.TEST) if row.stratum.startswith("game_of_life")]
    assert len(boards) == 30
    assert all("1" in row.gold for row in boards)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    original = packaged(GYM, Split.TEST)
    assert original is not None
    for name in (original.name, MANIFEST):
        shutil.copy(original.parent / name, tmp_path)
    path = tmp_path / original.name
    assert len(load(GYM, Split.TEST, path)) == 250
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"alice", b"Alice", 1)))
    with pytest.raises(TaskError, match="sha256 is .* the file was changed"):
        load(GYM, Split.TEST, path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(TaskError, match=f"no {MANIFEST} beside it names it.*aipo tasks generate"):
        load(GYM, Split.TEST, path)


def test_test_items_are_no_training_items(tmp_path: Path) -> None:
    original = packaged(GYM, Split.TEST)
    assert original is not None
    with pytest.raises(TaskError, match="its items are test items; give it as task.test_file"):
        BenchmarkTask(GYM, {Split.TRAIN: original})


def test_splits_share_no_question_and_are_drawn_far_apart(tmp_path: Path) -> None:
    test = [row.problem for row in load(GYM, Split.TEST)]
    validation = rows_of(Split.VALIDATION, 5, test, QUICK)
    train = rows_of(Split.TRAIN, 20, [*test, *(row["question"] for row in validation)], QUICK)
    keys = [{question_key(text) for text in texts} for texts in (test, [r["question"] for r in validation])]
    keys.append({question_key(row["question"]) for row in train})
    assert [len(each) for each in keys[1:]] == [15, 60]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    assert sorted(SEEDS.values()) == [0, 10**8, 2 * 10**8]
    files = {
        split: freeze(tmp_path, split, rows)
        for split, rows in [(Split.TRAIN, train), (Split.VALIDATION, validation)]
    }
    task = BenchmarkTask(GYM, files)
    assert (len(task.problems(Split.TRAIN)), len(task.problems(Split.VALIDATION))) == (60, 15)
    assert task.dropped_overlaps == 0
    assert len(task.problems(Split.TEST)) == 250  # packaged


def test_a_question_that_is_taken_is_passed_over() -> None:
    first = list(draw(TASKS["aiw"], Split.TEST, 3, set()))
    taken = {question_key(first[0]["question"])}
    second = list(draw(TASKS["aiw"], Split.TEST, 3, taken))
    assert first[0]["question"] not in [row["question"] for row in second]
    assert second[0]["question"] == first[1]["question"]


def test_a_generator_with_too_few_questions_says_how_many_there_are() -> None:
    small = GymTask(name="aiw", generator="aiw")
    every = reasoning_gym.create_dataset("aiw", seed=SEEDS[Split.TEST], size=2 * TRIES_PER_ITEM)
    taken = {question_key(every[index]["question"]) for index in range(1, 2 * TRIES_PER_ITEM)}
    with pytest.raises(TaskError, match=r"aiw: 1 different questions in 40 draws; ask for at most 1"):
        list(draw(small, Split.TEST, 2, taken))


def test_an_item_with_an_empty_answer_is_not_drawn() -> None:
    rows = list(draw(TASKS["ab_10"], Split.TRAIN, 60, set()))
    assert all(row["answer"].strip() for row in rows)
    assert [row["id"] for row in rows[:20]] != [
        f"ab_10/train/{index}" for index in range(20)
    ]  # item 18 is empty


def test_what_is_frozen_is_not_drawn_again(tmp_path: Path) -> None:
    rows = rows_of(Split.TRAIN, 1, [], ["aiw"])
    freeze(tmp_path, Split.TRAIN, rows)
    manifest = json.loads((tmp_path / MANIFEST).read_text())["reasoning_gym_train.jsonl"]
    assert manifest["rows"] == 1 and manifest["seed"] == 0 and manifest["reasoning_gym"]
    with pytest.raises(TaskError, match="is frozen already"):
        freeze(tmp_path, Split.TRAIN, rows)


# --- scores -------------------------


@pytest.fixture(scope="module")
def scorer() -> Iterator[GymScorer]:
    with closing(GymScorer()) as scorer:
        yield scorer


def graded(response: str, of: dict[str, Any], scorer: GymScorer) -> Grade:
    return asyncio.run(grade_gym(response, of, scorer))


def test_partial_credit_is_no_credit(scorer: GymScorer) -> None:
    board = entry("game_of_life_3")
    cells = json.loads(board["answer"])
    assert graded(respond(json.dumps(cells)), board, scorer).verdict is Verdict.CORRECT
    cells[0][0] = 1 - cells[0][0]
    grade = graded(respond(json.dumps(cells)), board, scorer)
    assert (grade.verdict, grade.reason) == (Verdict.INCORRECT, "score: 1.00")  # 899 of 900
    riddle = entry("aiw")
    assert graded(respond(riddle["answer"] + " or so"), riddle, scorer).verdict is Verdict.INCORRECT
    assert graded(respond(f"  {riddle['answer']}\n"), riddle, scorer).verdict is Verdict.CORRECT


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('touch /tmp/aipo_gym_attack')",
        "[" * 5000,
        "9" * 10_000,
        "1e999999999",
        "None",
        "{}",
        "0" * (MAX_ANSWER_CHARS - 1),
        "\x00\ud800",
        "A " * 9_000,
        "=,=,=",
    ],
)
def test_hostile_answers_are_incorrect_at_once_and_run_nothing(
    task: str, answer: str, scorer: GymScorer
) -> None:
    Path("/tmp/aipo_gym_attack").unlink(missing_ok=True)
    assert graded(respond(answer), entry(task), scorer).verdict is Verdict.INCORRECT
    assert not Path("/tmp/aipo_gym_attack").exists()


def test_a_scorer_that_raises_at_the_gold_too_is_ungraded(scorer: GymScorer) -> None:
    broken = {**entry("knight_swap"), "metadata": {}}
    grade = graded(respond("4"), broken, scorer)
    assert (grade.verdict, grade.reason) == (Verdict.UNGRADED, "error: KeyError")


def test_an_answer_at_which_only_the_scorer_raises_is_incorrect(scorer: GymScorer) -> None:
    """A policy cannot choose to be left out of the batch."""
    item = {"question": "Write 12 as primes.", "answer": "2 × 2 × 3", "metadata": {"factors": [2, 2, 3]}}
    grade = asyncio.run(scorer.score("prime_factorization", "no idea", item))
    assert isinstance(grade, Grade)
    assert (grade.verdict, grade.reason) == (Verdict.INCORRECT, "error: ValueError")


def test_an_answer_that_takes_too_long_is_incorrect_and_the_next_one_is_scored() -> None:
    """The limit is CPU time of the process; the loop goes on meanwhile."""
    board = entry("game_of_life_3")
    with closing(GymScorer(cpu_s=0.05)) as hasty:
        late = asyncio.run(hasty.score("game_of_life", json.dumps([[0] * 3_000_000]), board))
        again = asyncio.run(hasty.score("aiw", entry("aiw")["answer"], entry("aiw")))
    assert late == Grade(Verdict.INCORRECT, "timeout")
    assert again == 1.0


def test_scoring_leaves_the_event_loop_free(scorer: GymScorer) -> None:
    async def ticks() -> int:
        board, counted = entry("zebra_puzzles_7"), 0
        scoring = asyncio.ensure_future(scorer.score("zebra_puzzles", "x", board))
        while not scoring.done():
            await asyncio.sleep(0)
            counted += 1
        return counted

    assert asyncio.run(ticks()) > 1


def test_a_killed_process_is_replaced(scorer: GymScorer) -> None:
    assert asyncio.run(scorer.score("aiw", entry("aiw")["answer"], entry("aiw"))) == 1.0
    process = scorer._pool._processes[0].process
    assert process is not None
    process.kill()
    process.wait()
    assert asyncio.run(scorer.score("aiw", entry("aiw")["answer"], entry("aiw"))) == 1.0


def test_a_scorer_cannot_take_the_machines_memory(scorer: GymScorer) -> None:
    assert asyncio.run(scorer.score("aiw", entry("aiw")["answer"], entry("aiw"))) == 1.0
    process = scorer._pool._processes[0].process
    assert process is not None
    assert resource.prlimit(process.pid, resource.RLIMIT_AS)[0] == GYM_MEMORY_BYTES


def test_grading_leaves_the_entry_as_it_was(scorer: GymScorer) -> None:
    board = entry("knight_swap")
    before = json.dumps(board)
    for _ in range(2):
        assert graded(respond(board["answer"]), board, scorer).verdict is Verdict.CORRECT
    assert json.dumps(board) == before


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<answer>3</answer> no: <answer>4</answer>", "4"),
        (r"<answer>4</answer> \boxed{5}", "4"),
        (r"<answer>3</answer></think> \boxed{5}", "5"),
        ("<answer>4", "4"),
        ("<answer> </answer>", None),
        ("", None),
        (f"<answer>{'1' * (MAX_ANSWER_CHARS + 1)}</answer>", None),
    ],
)
def test_one_answer_is_read(response: str, answer: str | None) -> None:
    assert answer_of(response) == answer
