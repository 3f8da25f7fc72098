"""Problems from files: what is read, what is refused and with which words, and how splits stay disjoint."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from aipo.core.types import Verdict
from aipo.tasks.base import Problem, Split, TaskError
from aipo.tasks.jsonl import JsonlSource, JsonlTask, load

SHARED = Path(__file__).parents[3].parent / "shared" / "data"


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8"
    )
    return path


def rows(start: int, stop: int) -> list[dict[str, str]]:
    return [{"problem": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(start, stop)]


def task(match: Literal["exact", "math"] = "exact", **files: Path) -> JsonlTask:
    return JsonlTask({Split(name): JsonlSource(path=path) for name, path in files.items()}, match)


# --- reading -------------------------


def test_rows_become_problems_with_ids_and_golds(tmp_path: Path) -> None:
    path = write(
        tmp_path / "data.jsonl",
        [{"q": "One?", "a": "work\n#### 7 #### 1,234 "}, "", {"q": "Two?", "a": "#### x", "id": 17}],
    )
    assert load(JsonlSource(path=path, problem_field="q", answer_field="a", answer_after="####")) == [
        Problem(id="data/0", text="One?", gold="1234"),
        Problem(id="17", text="Two?", gold="x"),
    ]


def test_a_json_list_reads_as_its_lines_do(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.jsonl", rows(0, 3))
    (tmp_path / "list").mkdir()
    listed = tmp_path / "list" / "a.json"
    listed.write_text(json.dumps(rows(0, 3), indent=1), encoding="utf-8")
    assert load(JsonlSource(path=lines)) == load(JsonlSource(path=listed))


def test_parquet_and_csv_read_as_lines_do(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    lines = write(tmp_path / "a.jsonl", rows(0, 3))
    (tmp_path / "p").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows(0, 3)), tmp_path / "p" / "a.parquet")
    (tmp_path / "p" / "a.csv").write_text(
        "problem,answer\n" + "".join(f"What is {n} + 1?,{n + 1}\n" for n in range(3))
    )
    for name in ("a.parquet", "a.csv"):
        assert load(JsonlSource(path=tmp_path / "p" / name)) == load(JsonlSource(path=lines))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(TaskError, match="bad.parquet: not Parquet .*give a Parquet file"):
        load(JsonlSource(path=tmp_path / "bad.parquet"))


def test_numbers_line_separators_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    row = json.dumps({"problem": "a\u2028b", "answer": 0.5}, ensure_ascii=False)
    path.write_text(f"\ufeff{row}\r\n", encoding="utf-8")
    assert load(JsonlSource(path=path)) == [Problem(id="data/0", text="a\u2028b", gold="0.5")]


# --- bad input: every message names the place, the value and the fix ------------------------

GOOD = {"problem": "p", "answer": "1"}
BAD = [
    # rows, what the message must hold
    ([], ["no rows", "one JSON object a line"]),
    (["", "  "], ["no rows"]),
    ([GOOD, '{"problem": '], [":2", "not JSON", '{"problem":', "one JSON object a line"]),
    (["[1, 2"], ["not JSON"]),
    (["[" * 100_000], ["not JSON"]),
    ([GOOD, "7"], [":2", "7", "not an object"]),
    (["[3]"], [":1", "3", "not an object"]),
    ([{"question": "p", "answer": "1"}], [":1", "'problem'", "'question', 'answer'", "task.problem_field"]),
    ([{"problem": "p", "gold": "1"}], [":1", "'answer'", "'problem', 'gold'", "task.answer_field"]),
    ([{}], [":1", "'problem'"]),
    ([GOOD, {"problem": "  ", "answer": "1"}], [":2", "'problem'", "'  '", "string with text"]),
    ([{"problem": 5, "answer": "1"}], [":1", "'problem'", "5", "string"]),
    ([{"problem": None, "answer": "1"}], [":1", "'problem'", "None"]),
    ([{"problem": "p", "answer": " "}], [":1", "'answer'", "' '", "is empty"]),
    ([{"problem": "p", "answer": None}], [":1", "'answer'", "None", "string or a number"]),
    ([{"problem": "p", "answer": True}], [":1", "'answer'", "True"]),
    ([{"problem": "p", "answer": ["1", "2"]}], [":1", "'answer'", "['1', '2']", "task.golds"]),
    ([{"problem": "p", "answer": {"value": 1}}], [":1", "'answer'", "'answer.value'"]),
    ([{"problem": "p", "answer": []}], [":1", "'answer'", "is empty"]),
    ([{"problem": "half \ud83d of one", "answer": "1"}], [":1", "'problem'", "ud83d", "half of a character"]),
    ([{"problem": "p", "answer": "\udc00"}], [":1", "'answer'", "half of a character"]),
    ([{"problem": "a\0b", "answer": "1"}], [":1", "'problem'", "a NUL"]),
    ([{"problem": [{"role": "assistant", "content": "4"}], "answer": "1"}], [":1", "the user's"]),
    ([{"problem": [{"role": "user", "content": ""}], "answer": "1"}], [":1", "'problem'", "no text"]),
    (['{"problem": "p", "answer": NaN}'], [":1", "'answer'", "finite"]),
]


@pytest.mark.parametrize(("content", "words"), BAD)
def test_bad_rows_are_named(tmp_path: Path, content: list[Any], words: list[str]) -> None:
    path = write(tmp_path / "bad.jsonl", content)
    with pytest.raises(TaskError) as raised:
        load(JsonlSource(path=path))
    message = str(raised.value)
    assert message.startswith(str(path))
    assert [word for word in words if word not in message] == []
    assert len(message) < len(str(path)) + 300


@pytest.mark.parametrize(
    ("answer", "words"),
    [("7", ["'7'", "no mark '####'", "task.answer_after"]), ("7 ####", ["nothing after '####'"])],
)
def test_an_answer_without_its_mark_is_named(tmp_path: Path, answer: str, words: list[str]) -> None:
    path = write(tmp_path / "bad.jsonl", [{"problem": "p", "answer": answer}])
    with pytest.raises(TaskError) as raised:
        load(JsonlSource(path=path, answer_after="####"))
    assert [word for word in [f"{path}:1", "'answer'", *words] if word not in str(raised.value)] == []


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"problem": "caf\xe9", "answer": "1"}')
    for path in (tmp_path / "absent.jsonl", tmp_path, tmp_path / "latin.jsonl"):
        with pytest.raises(TaskError, match="cannot read") as raised:
            load(JsonlSource(path=path))
        assert str(path) in str(raised.value)


# --- splits -------------------------


def texts(problems: Any) -> set[str]:
    return {problem.text for problem in problems}


def test_validation_is_held_out_of_train_the_same_way_each_time(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", rows(0, 2000))
    one = task(train=path)
    train, held = one.problems(Split.TRAIN), one.problems(Split.VALIDATION)
    assert 60 < len(held) < 140
    assert len(train) + len(held) == 2000
    assert texts(train).isdisjoint(texts(held))
    shuffled = task(train=write(tmp_path / "again.jsonl", rows(0, 2000)[::-1]))
    assert texts(shuffled.problems(Split.VALIDATION)) == texts(held)  # by text, not by place


def test_rows_of_a_held_out_file_leave_train_and_are_counted(tmp_path: Path) -> None:
    train = write(
        tmp_path / "train.jsonl", [*rows(0, 50), {"problem": "  what is 70\n+ 1? ", "answer": "71"}]
    )
    validation = write(tmp_path / "validation.jsonl", rows(40, 62))
    test = write(tmp_path / "test.jsonl", rows(60, 80))
    one = task(train=train, validation=validation, test=test)
    assert texts(one.problems(Split.TRAIN)) == texts(load(JsonlSource(path=train))[:40])
    assert len(one.problems(Split.VALIDATION)) == 20
    assert len(one.problems(Split.TEST)) == 20
    assert one.dropped_overlaps == 11 + 2


def test_a_split_without_problems_names_its_setting(tmp_path: Path) -> None:
    path = write(tmp_path / "few.jsonl", rows(0, 3))
    for one, split, words in [
        (task(train=path), Split.TEST, "task.test_file"),
        (task(test=path), Split.TRAIN, "task.train_file"),
        (task(test=path), Split.VALIDATION, "task.validation_file"),
        (task(train=path), Split.VALIDATION, "too few .* task.validation_file"),
        (task(train=path, test=path), Split.TRAIN, "task.train_file.* held-out file"),
    ]:
        with pytest.raises(TaskError, match=words):
            one.problems(split)


# --- grading -------------------------


@pytest.mark.parametrize(
    ("response", "verdict", "reason"),
    [
        (r"so \boxed{7}", Verdict.CORRECT, "exact"),
        ("steps\n 7. \n\n", Verdict.CORRECT, "exact"),
        ("7\n8", Verdict.INCORRECT, "different"),
        (r"7 </think> \boxed{8}", Verdict.INCORRECT, "different"),
        (" \n", Verdict.INCORRECT, "no_answer"),
        ("7" * 1_000_000, Verdict.INCORRECT, "different"),
    ],
)
def test_exact_grading(tmp_path: Path, response: str, verdict: Verdict, reason: str) -> None:
    one = task(train=write(tmp_path / "t.jsonl", rows(0, 1)))
    grade = asyncio.run(one.grade(Problem(id="t/0", text="What is 6 + 1?", gold="7"), response))
    assert (grade.verdict, grade.reason) == (verdict, reason)
    one.close()


def test_math_grading_reads_the_box_alone(tmp_path: Path) -> None:
    one = task("math", train=write(tmp_path / "t.jsonl", rows(0, 1)))
    problem = Problem(id="t/0", text="Half?", gold=r"\frac{1}{2}")
    assert asyncio.run(one.grade(problem, r"\boxed{0.5}")).verdict is Verdict.CORRECT
    assert asyncio.run(one.grade(problem, "0.5")).reason == "no_answer"
    one.close()
    one.close()


# --- real data -------------------------


@pytest.fixture(scope="module")
def gsm8k() -> Iterator[JsonlTask]:
    path = SHARED / "gsm8k_train.jsonl"
    if not path.exists():
        print(reason := f"skipped: no real data at {path}")
        pytest.skip(reason)
    one = JsonlTask(
        {
            Split.TRAIN: JsonlSource(
                path=path, problem_field="question", answer_field="answer", answer_after="####"
            )
        }
    )
    yield one
    one.close()


def test_gsm8k_loads_whole_and_its_golds_are_correct(gsm8k: JsonlTask) -> None:
    problems = [*gsm8k.problems(Split.TRAIN), *gsm8k.problems(Split.VALIDATION)]
    assert len(problems) == 7473
    assert gsm8k.dropped_overlaps == 0

    async def wrong() -> list[str]:
        grades = [(p, await gsm8k.grade(p, rf"\boxed{{{p.gold}}}")) for p in problems]
        return [problem.gold for problem, grade in grades if grade.verdict is not Verdict.CORRECT]

    assert asyncio.run(wrong()) == []
    assert [p.gold for p in problems if "," in p.gold or not p.gold] == []
