"""`task.name = "gym"`: any data set of reasoning-gym, drawn apart and alike, graded by its own scorer."""

import asyncio
from collections.abc import Iterator
from contextlib import closing

import pytest

from aipo.assembly.parts import build_task
from aipo.config.settings import TaskSettings
from aipo.core.types import Verdict
from aipo.tasks.base import Problem, Split, TaskError
from aipo.tasks.files import question_key
from aipo.tasks.gym import GymDataset

FEW = {"train_problems": 12, "validation_problems": 4, "test_problems": 4}


def gym(dataset: str = "chain_sum", **options: str | int | float) -> GymDataset:
    settings = TaskSettings(name="gym", options={"dataset": dataset, **FEW, **options})
    task = build_task(settings)
    assert isinstance(task, GymDataset)
    return task


@pytest.fixture(scope="module")
def sums() -> Iterator[GymDataset]:
    with closing(gym(max_terms=3)) as task:
        yield task


def grade(task: GymDataset, problem: Problem, response: str) -> tuple[Verdict, float | None]:
    found = asyncio.run(task.grade(problem, response))
    return found.verdict, found.reward


def test_its_problems_are_its_own_words_and_grade_as_its_scorer_does(sums: GymDataset) -> None:
    problems = sums.problems(Split.TRAIN)
    assert [len(sums.problems(split)) for split in Split] == [12, 4, 4]
    first = problems[0]
    assert first.text.startswith(first.row["question"]) and "<answer>" in first.text
    assert first.row["metadata"]["num_terms"] <= 3  # the data set's own parameter
    assert grade(sums, first, sums.gold_response(first)) == (Verdict.CORRECT, 1.0)
    assert grade(sums, first, rf"so \boxed{{{first.gold}}}") == (Verdict.CORRECT, 1.0)
    assert grade(sums, first, "<answer>no idea</answer>") == (Verdict.INCORRECT, 0.0)
    assert grade(sums, first, "no answer") == (Verdict.INCORRECT, 0.0)
    assert sums.without_answer(first, f"It is {first.gold}.") == "It is …."


def test_partial_credit_is_a_reward_and_right_from_a_named_score() -> None:
    with closing(gym("word_sorting")) as strict, closing(gym("word_sorting", right_from=0.2)) as mild:
        problem = strict.problems(Split.TRAIN)[0]
        assert mild.problems(Split.TRAIN)[0] == problem
        unsorted = "<answer>" + ", ".join(reversed(problem.gold.split(", "))) + "</answer>"
        verdict, reward = grade(strict, problem, unsorted)
        assert verdict is Verdict.INCORRECT and reward == pytest.approx(0.2)
        assert grade(mild, problem, unsorted)[0] is Verdict.CORRECT


def test_the_same_options_draw_the_same_items_in_every_process() -> None:
    """Questions of ransom_note hang on the hash seed of the process that draws them."""
    with closing(gym("ransom_note")) as one, closing(gym("ransom_note")) as other:
        for split in Split:
            assert one.problems(split) == other.problems(split)


def test_no_question_stands_in_two_splits_or_twice() -> None:
    """Coins have few different questions: the same one comes from many seeds."""
    with closing(gym("coin_flip", train_problems=30)) as task:
        keys = [question_key(problem.text) for split in Split for problem in task.problems(split)]
    assert len(keys) == len(set(keys)) == 38


def test_too_few_different_questions_is_one_error_with_the_number() -> None:
    with pytest.raises(
        TaskError, match=r"task.options.train_problems = 120: 'products' has \d+ other questions"
    ):
        gym("products", min_terms=2, max_terms=2, min_digits=1, max_digits=1, train_problems=120).problems(
            Split.TEST
        )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dataset": ""}, "needs the name of a reasoning-gym data set"),
        ({"dataset": "chain_sums"}, "did you mean 'chain_sum'"),
        ({"dataset": "countdown"}, "its scorer executes the answer"),
        ({"dataset": "game_of_life_halting"}, "accepts any answer"),
        ({"dataset": "arc_agi"}, "own answer to item 0 does not score"),
        ({"max_trms": 3}, "unexpected keyword argument 'max_trms'"),
        ({"max_terms": 0}, "max_terms"),
        ({"max_terms": "[1, 2"}, "is no JSON list or object"),
        ({"train_problems": 0}, "task.options.train_problems = 0: must be a whole number"),
        ({"right_from": 2}, "task.options.right_from = 2: scores go from 0 to 1"),
        ({"interpreter": "/no/such/python"}, "cannot be started"),
        ({"interpreter": "/bin/false"}, "task.options.interpreter"),
    ],
)
def test_options_that_cannot_be_are_one_error(options: dict[str, str | int | float], reason: str) -> None:
    with pytest.raises(TaskError, match=reason.replace("[", r"\[")):
        gym(**{"dataset": "chain_sum", **options}).problems(Split.TRAIN)


def test_a_list_is_a_parameter_too() -> None:
    with closing(gym("basic_arithmetic", operators='["+"]')) as task:
        assert not any(sign in p.row["question"] for p in task.problems(Split.TEST) for sign in "*/")
