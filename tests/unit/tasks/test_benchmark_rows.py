"""Benchmarks from files: every schema becomes the one row; what cannot be used is named with its fix."""

import base64
import json
import os
import pickle
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from aipo.assembly.parts import build_task
from aipo.config.settings import TaskSettings
from aipo.tasks.base import Split, TaskError
from aipo.tasks.benchmarks.benchmark import Kind, Row, Use
from aipo.tasks.benchmarks.catalogue import BENCHMARKS, PAPER_EIGHT
from aipo.tasks.benchmarks.gpqa import LETTERS, check_letters, gpqa_row, permutation
from aipo.tasks.benchmarks.load import load, load_whole
from aipo.tasks.benchmarks.page import describe
from aipo.tasks.benchmarks.programs import PackedTests, StringUnpickler, unpack
from aipo.tasks.cpu.specs import CPU_TASKS
from aipo.tasks.gym import GYM_SPEC
from aipo.tasks.registry import TASKS
from aipo.tasks.verifiers import VERIFIERS_SPEC
from aipo.tasks.words.elements import WORD_TASKS
from aipo.tasks.words.rules import RULES_SPEC

DOCS = Path(__file__).parents[3] / "docs"
SHARED = Path(__file__).parents[3].parent / "shared" / "data"


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def aime(start: int = 0, rows: int = 30, **changes: Any) -> list[dict[str, Any]]:
    return [
        {"id": n, "problem": f"Find {n}.", "answer": str(n)} | changes for n in range(start, start + rows)
    ]


def packed(tests: list[dict[str, str]]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def choices(record: str) -> dict[str, str]:
    answers = {"Correct Answer": "right", **{f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)}}
    return {"Question": f"Which of {record}?", "Record ID": record, **answers}


# --- what is described -------------------------


def test_the_papers_eight_and_four_training_sets_are_described() -> None:
    assert len(PAPER_EIGHT) == 8
    assert [b.name for _, b in BENCHMARKS.items() if b.use is Use.TRAINING] == [
        "reasoning_gym",
        "gsm8k",
        "dapo_math_17k",
        "deepmath_103k",
        "openr1_math_46k",
    ]
    for _, benchmark in BENCHMARKS.items():
        assert benchmark.licence and benchmark.prompt and benchmark.samples >= 1, benchmark.name
        assert benchmark.evaluation_only == (set(benchmark.parts) == {Split.TEST}), benchmark.name


def test_a_recipe_can_name_every_benchmark_and_nothing_else() -> None:
    assert list(TASKS) == [
        "jsonl",
        *BENCHMARKS,
        *(spec.name for spec in (GYM_SPEC, VERIFIERS_SPEC, *CPU_TASKS, *WORD_TASKS, RULES_SPEC)),
    ]
    with pytest.raises(ValueError, match=r"task\.name = 'mth500' is not known; did you mean 'math500'\?"):
        build_task(TaskSettings(name="mth500"))


def test_a_recipe_without_a_task_is_told_to_name_one() -> None:
    with pytest.raises(ValueError, match=r"task\.name is not set; .*task\.name = 'jsonl'"):
        build_task(TaskSettings())


def test_the_page_of_benchmarks_is_up_to_date() -> None:
    text = (DOCS / "benchmarks.in.md").read_text(encoding="utf-8")
    page = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    assert page == text + describe(), "run python scripts/benchmarks_page.py"


# --- schemas -------------------------

CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "How many?"}]
SCHEMAS = [
    # benchmark, raw row, id, problem, gold
    ("aime24", {"ID": "2024-I-1", "Problem": "Find n.", "Answer": 42}, "2024-I-1", "Find n.", "42"),
    ("aime25", {"id": "7", "problem": "Find n.", "answer": "007"}, "7", "Find n.", "7"),
    ("aime25", {"question": "Find n.", "answer": r"336^\circ"}, "d", "Find n.", "336"),
    ("math500", {"problem": "P", "answer": r"\frac{1}{2}", "unique_id": "t/0"}, "t/0", "P", r"\frac{1}{2}"),
    ("livemathbench", {"question": "Q", "answer": "$12$"}, "d", "Q", "12"),
    ("gsm8k", {"question": "Q", "answer": "2+2\n#### 1,234"}, "d", "Q", "1234"),
    ("deepmath_103k", {"question": "Q", "final_answer": "e"}, "d", "Q", "e"),
    (
        "dapo_math_17k",
        {"prompt": "How many?", "reward_model": {"ground_truth": "34"}, "extra_info": {"index": "a-b"}},
        "a-b",
        "How many?",
        "34",
    ),
    (
        "openr1_math_46k",
        {"prompt": CHAT, "reward_model": {"ground_truth": "x"}, "extra_info": {"index": 5}},
        "5",
        "How many?",
        "x",
    ),
]


@pytest.mark.parametrize(("name", "raw", "identity", "problem", "gold"), SCHEMAS)
def test_every_schema_becomes_the_one_row(
    name: str, raw: dict[str, Any], identity: str, problem: str, gold: str
) -> None:
    row = BENCHMARKS[name].convert("d", raw)
    assert (row.id, row.problem, row.gold, row.kind) == (identity, problem, gold, BENCHMARKS[name].kind)


def test_the_same_rows_read_from_every_form_of_file(tmp_path: Path) -> None:
    raw = aime()
    lines = write(tmp_path / "a.jsonl", raw)
    (tmp_path / "a.json").write_text(json.dumps(raw, indent=1))
    parquet.write_table(pyarrow.Table.from_pylist(raw), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text(
        "id,problem,answer\n" + "".join(f"{n},Find {n}.,{n}\n" for n in range(30))
    )
    expected = load(BENCHMARKS["aime24"], Split.TEST, lines)
    assert len(expected) == 30
    for suffix in ("json", "parquet", "csv"):
        assert load(BENCHMARKS["aime24"], Split.TEST, tmp_path / f"a.{suffix}") == expected


# --- what is refused -------------------------

BAD = [
    # benchmark, rows, what the message must hold
    ("aime24", aime(rows=29), ["29 rows", "AIME 2024 has 30", "jsonl"]),
    ("aime24", aime(rows=31), ["31 rows"]),
    ("aime24", [*aime(rows=29), aime()[3]], [":30", "id '3'", ":4", "must differ"]),
    ("aime24", [*aime(rows=29), {**aime()[3], "id": 99}], [":30", "problem also stands at", ":4"]),
    ("aime24", [*aime(rows=29), {"id": 99, "problem": "p", "answer": ""}], [":30", "'answer'", "is empty"]),
    ("aime24", [*aime(rows=29), {"id": 99, "problem": "p", "answer": "1000"}], [":30", "0 to 999"]),
    ("aime24", [*aime(rows=29), {"id": 99, "problem": "p", "answer": "1/2"}], [":30", "0 to 999"]),
    ("aime24", [*aime(rows=29), {"id": 99, "problem": "p"}], [":30", "'answer'", "'id', 'problem'"]),
    ("aime24", [7], [":1", "7", "not an object"]),
    ("math500", [{"question": "q", "answer": "1"}], [":1", "'problem'", "'question', 'answer'", "jsonl"]),
    ("math500", [{"problem": " ", "answer": "1"}], [":1", "'problem'", "text in it"]),
    ("gsm8k", [{"question": "q", "answer": "7"}], [":1", "'answer'", "no mark '####'"]),
    ("mbpp", [{"task_id": 11, "prompt": "p", "code": "c", "test_list": []}], [":1", "'test_list'"]),
    (
        "mbpp",
        [{"task_id": 11, "prompt": "p", "code": "c", "test_list": ["assert f(1) != 2"]}],
        [":1", "!= 2"],
    ),
    ("gpqa_diamond", [{"Question": "q", "Correct Answer": "a"}], [":1", "'Incorrect Answer 1'"]),
    ("openr1_math_46k", [{"prompt": CHAT, "reward_model": {}}], [":1", "'ground_truth'"]),
    ("openr1_math_46k", [{"prompt": CHAT, "reward_model": 3}], [":1", "'reward_model'", "3"]),
]


@pytest.mark.parametrize(("name", "raw", "words"), BAD)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, raw: list[Any], words: list[str]) -> None:
    path = write(tmp_path / "bad.jsonl", raw)
    split = Split.TEST if Split.TEST in BENCHMARKS[name].parts else Split.TRAIN
    with pytest.raises(TaskError) as raised:
        load(BENCHMARKS[name], split, path)
    assert [word for word in [str(path), *words] if word not in str(raised.value)] == []


def test_repetitions_of_a_training_set_are_dropped_and_ids_stay_distinct(tmp_path: Path) -> None:
    def raw(question: str, index: int) -> dict[str, Any]:
        return {"prompt": question, "reward_model": {"ground_truth": "1"}, "extra_info": {"index": index}}

    path = write(tmp_path / "d.jsonl", [raw("One?", 1), raw(" one? ", 1), raw("Two?", 1), raw("Three?", 2)])
    rows = load(BENCHMARKS["dapo_math_17k"], Split.TRAIN, path)
    assert [row.problem for row in rows] == ["One?", "Two?", "Three?"]
    assert len({row.id for row in rows}) == 3


def test_without_network_the_error_names_the_hub_and_the_file_to_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    for name, hub in [("math500", "HuggingFaceH4/MATH-500"), ("livecodebench_v6", "code_generation_lite")]:
        with pytest.raises(TaskError, match=f"{hub}.*no network.*task.test_file"):
            load(BENCHMARKS[name], Split.TEST)


def test_hub_rows_are_read_and_checked_as_a_files_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def fetched(*arguments: Any, **named: Any) -> list[dict[str, Any]]:
        asked.append((arguments, named))
        return aime(rows=30 if len(asked) == 1 else 29)

    monkeypatch.setattr(datasets, "load_dataset", fetched)
    assert len(load(BENCHMARKS["aime25"], Split.TEST)) == 30
    assert asked == [(("math-ai/aime25", "default"), {"split": "test", "revision": "main"})]
    with pytest.raises(TaskError, match="math-ai/aime25.*29 rows"):
        load(BENCHMARKS["aime25"], Split.TEST)


# --- GPQA -------------------------


@given(st.text(min_size=1))
def test_a_records_choices_are_shuffled_the_same_way_each_time(record: str) -> None:
    assert sorted(permutation(record)) == [0, 1, 2, 3]
    row = gpqa_row("d", choices("x") | {"Record ID": record})
    assert f"({row.gold}) right" in row.problem
    assert row == gpqa_row("elsewhere", choices("x") | {"Record ID": record})


def test_gold_letters_are_spread_over_the_four_choices() -> None:
    rows = tuple(gpqa_row("d", choices(f"rec{n}")) for n in range(198))
    check_letters(rows)
    assert min(Counter(row.gold for row in rows).values()) > 30


def test_a_file_whose_golds_are_all_one_letter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "g.jsonl", [choices(f"rec{n}") for n in range(198)])
    assert len(load(BENCHMARKS["gpqa_diamond"], Split.TEST, path)) == 198
    monkeypatch.setattr("aipo.tasks.benchmarks.gpqa.permutation", lambda record: [0, 1, 2, 3])
    with pytest.raises(TaskError, match="gold letters are A 198, B 0, C 0, D 0 of 198"):
        load(BENCHMARKS["gpqa_diamond"], Split.TEST, path)


def test_a_letter_alone_says_nothing_of_the_others() -> None:
    assert LETTERS == "ABCD"
    assert BENCHMARKS["gpqa_diamond"].kind is Kind.CHOICE


# --- programs -------------------------

TESTS = [{"input": "3 4\n", "output": "7\n", "testtype": "stdin"}]


def lcb(private: str, **changes: str) -> Row:
    raw = {"question_id": "a", "question_content": "Add.", "private_test_cases": private, "metadata": "{}"}
    return BENCHMARKS["livecodebench_v6"].convert("d", raw | changes)


def test_tests_are_read_packed_and_plain() -> None:
    for private in (packed(TESTS), json.dumps(TESTS)):
        row = lcb(private, public_test_cases=json.dumps(TESTS))
        assert row.gold.startswith("2 tests ")
        assert "standard input" in row.problem
        assert unpack(row.material)[0] == {"input": "3 4\n", "output": "7\n"}
    call = lcb(packed(TESTS), starter_code="class Solution:", metadata='{"func_name": "add"}')
    assert call.material.function == "add"
    assert "class Solution:" in call.problem


class Hostile:
    """A pickle of this runs a command when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Hostile(mark)))
    assert mark.exists()  # the attack is real
    mark.unlink()
    bad = base64.b64encode(zlib.compress(pickle.dumps(Hostile(mark)))).decode()
    with pytest.raises(ValueError, match=r"posix\.system.*only a string is allowed"):
        lcb(bad)
    assert not mark.exists()


# Protocol-level attacks: a global by stack, by memo, by extension code, by persistent id; objects.
PICKLES = [
    b"cos\nsystem\n(S'true'\ntR.",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    b"\x80\x02\x82\x01.",
    b"Pid\n.",
    b"(ibuiltins\neval\n.",
    b"(lp0\n.",
    pickle.dumps({"a": 1}),
    pickle.dumps(b"[]"),
    pickle.dumps(7),
    b"",
    b"\x80\x04",
    b"garbage",
]


@pytest.mark.parametrize("content", PICKLES)
def test_only_a_string_comes_out_of_a_pickle(content: bytes) -> None:
    packed_content = base64.b64encode(zlib.compress(content)).decode()
    with pytest.raises(ValueError, match="private_test_cases"):
        unpack(PackedTests("[]", packed_content, ""))


@given(st.binary(max_size=60))
def test_whatever_the_bytes_are_the_answer_is_a_string_or_an_error(content: bytes) -> None:
    packed_content = base64.b64encode(zlib.compress(content)).decode()
    with pytest.raises(ValueError):  # no test is ever made of 60 random bytes
        unpack(PackedTests("[]", packed_content, ""))


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aipo.tasks.benchmarks.programs.MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(ValueError, match="larger than"):
        lcb(packed([{"input": "0" * 5000, "output": "1"}]))


def test_the_unpickler_has_no_way_to_a_global() -> None:
    import io

    with pytest.raises(pickle.UnpicklingError):
        StringUnpickler(io.BytesIO()).find_class("builtins", "str")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"private_test_cases": "!!"}, "not base64"),
        ({"private_test_cases": "[]"}, "holds no test"),
        ({"private_test_cases": '[{"input": 3}]'}, "text input and output"),
        ({"private_test_cases": "{}"}, "base64"),
        ({"metadata": "{"}, "'metadata': not JSON"),
        ({"metadata": '{"func_name": "f"}'}, "both or neither"),
    ],
)
def test_a_livecodebench_row_that_cannot_be_used_is_named(changes: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lcb(packed(TESTS), **changes)


# --- real rows -------------------------


@pytest.mark.skipif(not SHARED.exists(), reason=f"no real data at {SHARED}")
@pytest.mark.parametrize(
    ("name", "split", "stem", "count"),
    [
        ("aime24", Split.TEST, "aime24.jsonl", 30),
        ("aime25", Split.TEST, "aime25.jsonl", 30),
        ("math500", Split.TEST, "math500.jsonl", 500),
        ("mbpp", Split.TEST, "mbpp_sanitized.json", 257),
        ("gsm8k", Split.TRAIN, "gsm8k_train.jsonl", 7473),
        ("gsm8k", Split.TEST, "gsm8k_test.jsonl", 1319),
    ],
)
def test_real_files_load_whole(name: str, split: Split, stem: str, count: int) -> None:
    assert len(load(BENCHMARKS[name], split, SHARED / stem)) == count


@pytest.mark.skipif(not SHARED.exists(), reason=f"no real data at {SHARED}")
def test_the_whole_of_mbpp_is_427_rows() -> None:
    assert len(load_whole(BENCHMARKS["mbpp"], SHARED / "mbpp_sanitized.json")) == 427
