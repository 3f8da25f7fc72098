"""What a training file holds of an evaluation file: planted overlaps are found, and nothing else is.

Proves: a planted question is found whole, whatever its case, space and punctuation; a planted run of 13 words
is found wherever it stands; questions of disjoint words are never found; counts do not depend on order.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aipo.tasks.base import TaskError
from aipo.tasks.contamination import Match, contamination, questions, words

LEFT, RIGHT = [f"left{n}" for n in range(40)], [f"right{n}" for n in range(40)]
third = st.lists(st.sampled_from(["c", "d", "e"]), min_size=1, max_size=20).map(" ".join)
left = st.lists(st.sampled_from(LEFT), min_size=1, max_size=40).map(" ".join)
right = st.lists(st.sampled_from(RIGHT), min_size=1, max_size=40).map(" ".join)
run = st.lists(st.sampled_from(LEFT), min_size=13, max_size=13, unique=True)


@given(st.lists(left, max_size=8), st.lists(right, max_size=8))
def test_questions_of_different_words_never_overlap(training: list[str], evaluation: list[str]) -> None:
    found = contamination(training, evaluation)
    assert found.overlaps == ()
    assert (found.training_rows, found.evaluation_rows) == (len(training), len(evaluation))


@given(st.lists(left, max_size=6), st.lists(right, min_size=1, max_size=6, unique=True), st.data())
def test_a_planted_question_is_found_in_any_spelling(
    training: list[str], evaluation: list[str], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(evaluation) - 1))
    place = data.draw(st.integers(0, len(training)))
    spelling = data.draw(
        st.sampled_from([str.upper, str.title, lambda t: t.replace(" ", "\n  ") + "?!", str])
    )
    found = contamination([*training[:place], spelling(evaluation[at]), *training[place:]], evaluation)
    exact = [overlap for overlap in found.overlaps if overlap.evaluation_row == at + 1]
    assert [(o.match, o.training_row) for o in exact] == [(Match.EXACT, place + 1)]


@given(run, right, right, st.lists(third, max_size=4))
def test_a_planted_run_is_found_wherever_it_stands(
    shared: list[str], before: str, after: str, training: list[str]
) -> None:
    question, taught = " ".join([before, *shared]), " ".join([*shared, "x", after])
    found = contamination([*training, taught], [question])
    assert [(o.match, o.training_row) for o in found.overlaps] == [(Match.RUN, len(training) + 1)]
    shorter = " ".join([*shared[1:], "y", after])  # 12 words are not enough
    assert contamination([*training, shorter], [" ".join(["z", *shared[1:]])]).count(Match.RUN) == 0


@given(st.lists(left, min_size=1, max_size=6), st.lists(left, min_size=1, max_size=6), st.randoms())
def test_counts_do_not_depend_on_the_order_of_training(
    training: list[str], evaluation: list[str], random: object
) -> None:
    one = contamination(training, evaluation)
    other = contamination(training[::-1], evaluation)
    assert [(o.evaluation_row, o.match) for o in one.overlaps] == [
        (o.evaluation_row, o.match) for o in other.overlaps
    ]


@given(left)
def test_a_file_holds_all_of_itself(question: str) -> None:
    assert contamination([question], [question]).count(Match.EXACT) == 1


def test_signs_of_mathematics_tell_questions_apart() -> None:
    assert words("Find $x+1$.") != words("Find $x-1$.")
    assert contamination(["Find x + 1"], ["find  $x+1$?"]).count(Match.EXACT) == 1
    assert contamination(["Find x + 1"], ["Find x - 1"]).overlaps == ()


def test_a_question_without_words_matches_nothing() -> None:
    assert contamination(["???"], ["!!"]).overlaps == ()


def test_questions_are_found_in_columns_and_messages(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "three"}]
    rows = [{"problem": "one"}, {"question": "two"}, {"prompt": chat}, {"text": "four"}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert list(questions(path)) == ["one", "two", "three", "four"]
    with pytest.raises(TaskError, match=r"a\.jsonl:2: no field 'problem'.*'question'.*--train-column"):
        list(questions(path, "problem"))
    path.write_text('{"prompt": []}')
    with pytest.raises(TaskError, match="'prompt'.*text in it"):
        list(questions(path))
