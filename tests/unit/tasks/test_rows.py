"""Rows of every shape that real data sets have: what is read of them, what is refused, what is left out."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from aipo.config.settings import SandboxSettings, TaskSettings
from aipo.core.types import Verdict
from aipo.tasks.base import Split, TaskError
from aipo.tasks.jsonl import JsonlSource, JsonlTask, load
from aipo.tasks.registry import task_spec

ROW = {"problem": "1+1?", "answer": "2"}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def gold(path: Path, value: Any, **source: Any) -> str:
    (problem,) = load(JsonlSource(path=lines(path / "g.jsonl", {"problem": "p", "answer": value}), **source))
    return problem.gold


# --- files ---------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (tmp_path / "a.jsonl").write_bytes((mark + json.dumps(ROW, ensure_ascii=False) + "\n").encode(encoding))
    assert [p.gold for p in load(JsonlSource(path=tmp_path / "a.jsonl"))] == ["2"]


@pytest.mark.parametrize("orient", ["records", "columns", "index", "split", "table"])
def test_every_form_of_json_that_pandas_writes_is_read(tmp_path: Path, orient: Any) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"problem": [f"{n}+1?" for n in range(3)], "answer": [1, 2, 3]})
    frame.to_json(tmp_path / "a.json", orient=orient)
    problems = load(JsonlSource(path=tmp_path / "a.json"))
    assert [(p.text, p.gold) for p in problems] == [("0+1?", "1"), ("1+1?", "2"), ("2+1?", "3")]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROW, indent=2),
        json.dumps({"version": 1, "data": [ROW]}, indent=2),
        json.dumps({"rows": [{"row_idx": 0, "row": ROW}]}),
        json.dumps({"problem": ["1+1?"], "answer": ["2"]}),
        json.dumps([ROW]),
    ],
)
def test_a_file_that_is_one_json_value_is_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert [(p.text, p.gold) for p in load(JsonlSource(path=tmp_path / "a.json"))] == [("1+1?", "2")]


def test_one_row_with_messages_is_not_taken_for_a_list_of_rows(tmp_path: Path) -> None:
    row = {"problem": [{"role": "user", "content": "1+1?"}], "answer": ["2"]}
    assert [(p.text, p.gold) for p in load(JsonlSource(path=lines(tmp_path / "a.jsonl", row)))] == [
        ("1+1?", "2")
    ]


@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", "problem;answer\n1+1?;2\n"), ("a.tsv", "problem\tanswer\n1+1?\t2\n")]
)
def test_semicolons_and_tabs_separate_columns_too(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [(p.text, p.gold) for p in load(JsonlSource(path=tmp_path / name))] == [("1+1?", "2")]


def test_a_row_with_more_values_than_columns_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("problem,answer\n1+1?,2\nOne, two, three?,3\n", encoding="utf-8")
    with pytest.raises(TaskError, match=r"a\.csv:2: 2 values more .*in quotes"):
        load(JsonlSource(path=tmp_path / "a.csv"))


# --- golds ---------------------------------


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (1e-7, "0.0000001"),
        (1e16, "10000000000000000"),
        (2.5e300, r"2.5 \times 10^{300}"),
        ("1e-07", "0.0000001"),
        ("6.02E+23", "602000000000000000000000"),
        (0.5, "0.5"),
        (-0.0, "-0.0"),
        (0, "0"),
        ("e-7", "e-7"),
        ("2e", "2e"),
        ([7], "7"),
        ([["7"]], "7"),
        ('["34"]', "34"),
        ("We get $x=2$ and so the answer is \\boxed{4}.", "4"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("so \\boxed{4}, indeed \\boxed{4}", "4"),
    ],
)
def test_a_gold_is_read_as_the_number_that_it_means(tmp_path: Path, value: Any, read: str) -> None:
    assert gold(tmp_path, value) == read


def test_decimals_bytes_and_integers_of_any_length_are_golds(tmp_path: Path) -> None:
    import decimal

    import pyarrow
    from pyarrow import parquet

    rows = [{"problem": "p", "answer": decimal.Decimal("12.50"), "id": b"x"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert load(JsonlSource(path=tmp_path / "a.parquet"))[0].gold == "12.50"
    (tmp_path / "a.jsonl").write_text('{"problem": "p", "answer": 1' + "0" * 5000 + "}\n", encoding="utf-8")
    assert load(JsonlSource(path=tmp_path / "a.jsonl"))[0].gold == "1" + "0" * 5000


def test_a_solution_with_several_boxes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="a solution with 2 boxes; .*task.answer_after"):
        gold(tmp_path, "First \\boxed{3}, then \\boxed{4}.")


def test_of_several_golds_all_or_any_must_be_stated(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"problem": "Roots of x^2 = 4?", "answer": ["2", "-2"]})
    for golds, right, wrong in [("all", "2,-2", "2"), ("any", "-2", "3")]:
        task = JsonlTask({Split.TEST: JsonlSource(path=path, golds=golds)}, "exact")  # type: ignore[arg-type]
        (problem,) = task.problems(Split.TEST)
        assert asyncio.run(task.grade(problem, f"\\boxed{{{right}}}")).verdict is Verdict.CORRECT
        assert asyncio.run(task.grade(problem, f"\\boxed{{{wrong}}}")).verdict is Verdict.INCORRECT
    assert task.without_answer(problem, "it is -2, or 2") == "it is …, or …"


# --- columns ---------------------------------


def test_dotted_names_look_inside_columns(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "1+1?"}],
        "reward_model": {"ground_truth": "2"},
        "x": {"id": 7},
    }
    source = JsonlSource(
        path=lines(tmp_path / "a.jsonl", row),
        problem_field="prompt.0.content",
        answer_field="reward_model.ground_truth",
        id_field="x.id",
        stratum_field="reward_model.style",
    )
    (one,) = load(source)
    assert (one.id, one.text, one.gold, one.stratum) == ("7", "1+1?", "2", "all")
    assert one.place == f"{source.path}:1"
    with pytest.raises(TaskError, match=r"'reward_model\.ground_truth', .*; set task\.answer_field"):
        load(JsonlSource(path=source.path, problem_field="prompt.0.content"))


def test_ids_that_repeat_are_told_from_each_other(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *[ROW | {"id": 1}] * 3)
    assert [p.id for p in load(JsonlSource(path=path))] == ["1", "1 (a/1)", "1 (a/2)"]


@pytest.mark.parametrize("identity", [None, "", float("nan"), True, {"a": 1}])
def test_an_id_that_is_none_is_the_rows_number(tmp_path: Path, identity: Any) -> None:
    path = lines(tmp_path / "a.jsonl", ROW | {"id": identity}, ROW | {"id": "x"}, ROW | {"id": 3.0})
    assert [p.id for p in load(JsonlSource(path=path))] == ["a/0", "x", "3"]


def test_a_row_says_its_stratum_and_its_tools(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    path = lines(
        tmp_path / "a.jsonl", ROW | {"stratum": "hard", "f": [tool]}, ROW | {"stratum": 3, "f": None}
    )
    one, two = load(JsonlSource(path=path, tools_field="f"))
    assert (one.stratum, two.stratum) == ("hard", "3")
    assert (json.loads(one.tools), two.tools) == ([tool], "")


def test_a_conversation_is_read_in_the_forms_that_data_sets_have(tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", "1+1?"), ("assistant", "2"), ("user", "And 2+2?")]
    openai = [{"role": role, "content": words} for role, words in turns]
    parts = [{"role": role, "content": [{"type": "text", "text": words}]} for role, words in turns]
    names = {"user": "human", "assistant": "gpt"}
    share = [{"from": names.get(role, role), "value": words} for role, words in turns]
    path = lines(tmp_path / "a.jsonl", *({"problem": form, "answer": "4"} for form in (openai, parts, share)))
    for problem in load(JsonlSource(path=path)):
        assert problem.turns == tuple(turns)
        assert problem.text == "User: 1+1?\n\nAssistant: 2\n\nUser: And 2+2?"


# --- bad rows ---------------------------------


def mixed(path: Path) -> Path:
    path.write_text(
        "\n".join(
            [
                json.dumps(ROW),
                '{"problem": ',
                json.dumps({"problem": "angle?", "answer": "9 +* ("}),
                json.dumps({"problem": "q", "answer": None}),
                json.dumps({"problem": "r", "answer": "so it is clear that x = 5"}),
                json.dumps({"problem": "s", "answer": "\\frac{1}{0}"}),
                json.dumps({"problem": "t", "answer": "no real solution exists"}),
            ]
        ),
        encoding="utf-8",
    )
    return path


def test_all_bad_rows_are_refused_in_one_message_or_left_out_and_counted(tmp_path: Path) -> None:
    path = mixed(tmp_path / "m.jsonl")

    def made(**settings: Any) -> Any:
        table = TaskSettings(name="jsonl", test_file=path, **settings)
        return task_spec("jsonl").make(table, SandboxSettings())

    with pytest.raises(TaskError) as raised:
        made()
    for line, words in [
        (2, "not JSON"),
        (3, "cannot be graded"),
        (4, "None"),
        (5, "a sentence"),
        (6, "graded"),
    ]:
        assert any(f"m.jsonl:{line}: " in said and words in said for said in str(raised.value).splitlines())
    assert "5 rows cannot be used" in str(raised.value) and "task.on_bad_row = 'drop'" in str(raised.value)
    task = made(on_bad_row="drop")
    assert [p.text for p in task.problems(Split.TEST)] == ["1+1?", "t"]
    assert len(task.bad_rows) == 5
    task.close()
    task = made(on_bad_row="drop", match="exact")  # texts are compared: the grader reads any gold
    assert len(task.problems(Split.TEST)) == 5
