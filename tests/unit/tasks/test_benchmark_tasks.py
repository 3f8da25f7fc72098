"""Benchmarks as tasks: one protocol for each kind, and evaluation files that nothing is trained on."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from aipo.assembly.parts import build_task
from aipo.config.settings import SandboxSettings, TaskSettings
from aipo.core.types import Verdict
from aipo.tasks.base import Split, Task, TaskError
from aipo.tasks.benchmarks.benchmark import Benchmark
from aipo.tasks.benchmarks.catalogue import BENCHMARKS
from aipo.tasks.benchmarks.load import load, load_whole
from aipo.tasks.benchmarks.task import BenchmarkTask, Graders, GradingLimits, gold_response
from aipo.tasks.benchmarks.validate import Check, validate

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
CORRECT, INCORRECT = Verdict.CORRECT, Verdict.INCORRECT


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def questions(start: int, stop: int) -> list[dict[str, str]]:
    return [{"question": f"What is {n} + 1?", "final_answer": str(n + 1)} for n in range(start, stop)]


def gpqa(path: Path) -> Path:
    wrong = {f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)}
    return write(
        path,
        [
            {"Question": f"Which {n}?", "Record ID": f"r{n}", "Correct Answer": f"the sun {n}", **wrong}
            for n in range(198)
        ],
    )


def verdict(task: Task, split: Split, index: int, response: str) -> Verdict:
    return asyncio.run(task.grade(task.problems(split)[index], response)).verdict


# --- protocols -------------------------


def test_aime_compares_integers_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"problem": f"{n}?", "answer": str(n)} for n in range(30)])
    task = BenchmarkTask(BENCHMARKS["aime24"], {Split.TEST: path})
    for response, expected in [
        (r"\boxed{7}", CORRECT),
        (r"\boxed{007}", CORRECT),
        (r"\boxed{7^\circ}", CORRECT),
        (r"\boxed{8} or rather \boxed{7}", CORRECT),
        (r"\boxed{14/2}", INCORRECT),
        (r"\boxed{7.0}", INCORRECT),
        (r"\boxed{6+1}", INCORRECT),
        (r"\boxed{-7}", INCORRECT),
        (r"\boxed{7}</think> \boxed{8}", INCORRECT),
        ("7", INCORRECT),
        ("", INCORRECT),
        (rf"\boxed{{{'9' * 250}}}", INCORRECT),
    ]:
        assert verdict(task, Split.TEST, 7, response) is expected, response
    assert "from 0 to 999" in task.problems(Split.TEST)[7].text


def test_choices_are_graded_by_letter_and_hidden_by_letter_and_text(tmp_path: Path) -> None:
    task = BenchmarkTask(BENCHMARKS["gpqa_diamond"], {Split.TEST: gpqa(tmp_path / "g.jsonl")})
    problem = task.problems(Split.TEST)[0]
    others = [letter for letter in "ABCD" if letter != problem.gold]
    assert verdict(task, Split.TEST, 0, f"\\boxed{{{problem.gold}}}") is CORRECT
    assert [verdict(task, Split.TEST, 0, f"\\boxed{{{letter}}}") for letter in others] == [INCORRECT] * 3
    told = f"It is the sun 0, so the answer is {problem.gold}."
    assert task.without_answer(problem, told) == "It is …, so the answer is …."
    assert task.without_answer(problem, "Look at the sky.") is None


def test_training_rows_are_graded_by_mathematics_and_held_out_by_question(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", questions(0, 300))
    task = BenchmarkTask(BENCHMARKS["deepmath_103k"], {Split.TRAIN: path})
    train, held_out = task.problems(Split.TRAIN), task.problems(Split.VALIDATION)
    assert len(train) + len(held_out) == 300 and held_out
    assert {p.text for p in train}.isdisjoint(p.text for p in held_out)
    assert verdict(task, Split.TRAIN, 0, rf"\boxed{{\frac{{{train[0].gold}}}{{1}}}}") is CORRECT
    assert verdict(task, Split.TRAIN, 0, r"\boxed{-1}") is INCORRECT
    task.close()
    task.close()


def test_a_validation_file_of_a_training_set_may_be_given_and_is_held_out(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", questions(0, 20))
    validation = write(tmp_path / "v.jsonl", questions(15, 25))
    task = BenchmarkTask(BENCHMARKS["deepmath_103k"], {Split.TRAIN: train, Split.VALIDATION: validation})
    assert (len(task.problems(Split.TRAIN)), len(task.problems(Split.VALIDATION))) == (15, 10)
    assert task.dropped_overlaps == 5
    task.close()


# --- evaluation only -------------------------

EVALUATION_ONLY = [benchmark for _, benchmark in BENCHMARKS.items() if benchmark.evaluation_only]


@pytest.mark.parametrize("benchmark", EVALUATION_ONLY, ids=lambda benchmark: benchmark.name)
@pytest.mark.parametrize("setting", ["train_file", "validation_file"])
def test_nothing_is_trained_or_chosen_on_an_evaluation_set(benchmark: Benchmark, setting: str) -> None:
    settings = TaskSettings.model_validate({"name": benchmark.name, setting: "rows.jsonl"})
    with pytest.raises(TaskError, match=f"task.{setting} = 'rows.jsonl'.*for evaluation only"):
        build_task(settings)


def test_an_evaluation_set_has_no_training_problems(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"problem": f"{n}?", "answer": str(n)} for n in range(30)])
    task = BenchmarkTask(BENCHMARKS["aime25"], {Split.TEST: path})
    for split in (Split.TRAIN, Split.VALIDATION):
        with pytest.raises(TaskError, match=f"aime25 is for evaluation only.*no {split.value} split"):
            task.problems(split)


@pytest.mark.parametrize(
    "name", ["math500.jsonl", "aime24.parquet", "gsm8k_test.jsonl", "mbpp_sanitized.json"]
)
def test_a_test_file_is_no_training_file_of_any_task(tmp_path: Path, name: str) -> None:
    with pytest.raises(TaskError, match="task.train_file.*for evaluation only"):
        build_task(TaskSettings(name="jsonl", train_file=tmp_path / name))


def test_a_training_set_without_test_problems_says_where_to_evaluate() -> None:
    with pytest.raises(TaskError, match="task.test_file.*without a test split.*aipo tasks list"):
        build_task(TaskSettings(name="dapo_math_17k", test_file=Path("t.jsonl")))


def test_a_recipe_builds_a_benchmark_from_local_files(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", questions(0, 60))
    task = build_task(TaskSettings(name="deepmath_103k", train_file=path))
    assert task.name == "deepmath_103k"
    assert len(task.problems(Split.TRAIN)) + len(task.problems(Split.VALIDATION)) == 60


def test_the_sandbox_of_a_recipe_is_the_one_that_is_used(tmp_path: Path) -> None:
    rows = [
        {"task_id": n, "prompt": f"Do {n}.", "code": "def f(): return 1", "test_list": ["assert f() == 1"]}
        for n in range(11, 268)
    ]
    settings = TaskSettings(name="mbpp", test_file=write(tmp_path / "m.jsonl", rows))
    with pytest.raises(TaskError, match="programs cannot be graded here: .*sandbox.url"):
        build_task(settings, SandboxSettings(backend="sandboxfusion"))


# --- validation -------------------------


def test_validation_finds_a_grader_that_accepts_anything_and_one_that_accepts_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"problem": f"{n}?", "answer": str(n)} for n in range(30)])
    rows = load(BENCHMARKS["aime24"], Split.TEST, path)

    class Always(Graders):
        def __init__(self, verdict: Verdict) -> None:
            self.verdict = verdict

        async def grade(self, row: Any, response: str) -> Any:
            from aipo.grading import Grade

            return Grade(self.verdict, "always")

    honest = asyncio.run(validate(rows, Graders(BENCHMARKS["aime24"].kind, GradingLimits())))
    assert honest.as_expected == dict.fromkeys(Check, 30) and not honest.violations
    kind = asyncio.run(validate(rows, Always(CORRECT)))
    assert {v.check for v in kind.violations} == {Check.OTHER, Check.EMPTY} and len(kind.violations) == 60
    strict = asyncio.run(validate(rows, Always(INCORRECT)))
    assert [v.check for v in strict.violations] == [Check.GOLD] * 30
    broken = asyncio.run(validate(rows, Always(Verdict.UNGRADED)))
    assert len(broken.violations) == 90


# --- real rows -------------------------


def sample(name: str, file: str, step: int) -> Any:
    path = SHARED / file
    if not path.exists():
        print(reason := f"skipped: no real data at {path}")
        pytest.skip(reason)
    return load_whole(BENCHMARKS[name], path)[::step]


@pytest.mark.parametrize(
    ("name", "file", "step"),
    [("math500", "math500.jsonl", 10), ("aime24", "aime24.jsonl", 5), ("aime25", "aime25.jsonl", 5)],
)
def test_real_golds_are_right_and_other_golds_are_not(name: str, file: str, step: int) -> None:
    rows = sample(name, file, step)
    graders = Graders(BENCHMARKS[name].kind, GradingLimits(timeout_s=20))
    result = asyncio.run(validate(rows, graders))
    graders.close()
    assert result.violations == []
    assert result.as_expected == dict.fromkeys(Check, len(rows))


def test_real_reference_programs_pass_their_tests_and_no_others() -> None:
    rows = sample("mbpp", "mbpp_sanitized.json", 70)
    try:
        graders = Graders(BENCHMARKS["mbpp"].kind, GradingLimits())
    except TaskError as error:
        print(reason := f"skipped: {error}")
        pytest.skip(reason)
    result = asyncio.run(validate(rows, graders))
    graders.close()
    assert result.violations == []
    assert all("```python" in (gold_response(row) or "") for row in rows)
