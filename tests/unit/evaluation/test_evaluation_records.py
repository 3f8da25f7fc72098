"""Evaluation records survive the disk, a crash and a change of schema."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from aipo.evaluation.records import (
    EvaluationRecord,
    ProblemResult,
    RecordError,
    append_record,
    at_last_step,
    methods_of,
    read_records,
)

RESULTS = (
    ProblemResult(problem="p1", stratum="hard", samples=8, correct=3, ungraded=1, truncated=0),
    ProblemResult(problem="p2", stratum="easy", samples=8, correct=7, ungraded=0, truncated=2),
)
RECORD = EvaluationRecord(
    schema=1,
    run="runs/α",
    method="floored",
    seed=0,
    step=200,
    split="test",
    mode="banned",
    results=RESULTS,
    meta={"expert_tokens": 5, "wall_s": 0.1, "task": "legs\n"},
)


def test_what_is_read_equals_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "evaluation.jsonl"
    append_record(path, RECORD)
    append_record(path, replace(RECORD, seed=1))
    assert read_records(path) == [RECORD, replace(RECORD, seed=1)]
    assert read_records([path, path]) == 2 * read_records(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lost_bytes", [1, 2, 10, 300])
def test_a_torn_last_line_is_reported_and_the_next_append_heals_the_file(
    tmp_path: Path, lost_bytes: int
) -> None:
    path = tmp_path / "evaluation.jsonl"
    append_record(path, RECORD)
    append_record(path, replace(RECORD, seed=1))
    path.write_bytes(path.read_bytes()[:-lost_bytes])
    whole = [RECORD, replace(RECORD, seed=1)] if lost_bytes == 1 else [RECORD]  # Only the newline is missing.
    if lost_bytes > 1:
        with pytest.warns(RuntimeWarning, match=r"evaluation.jsonl:2: torn last line"):
            assert read_records(path) == whole
    append_record(path, replace(RECORD, seed=2))
    assert read_records(path) == [*whole, replace(RECORD, seed=2)]


def test_a_bad_line_in_the_middle_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.jsonl"
    append_record(path, RECORD)
    path.write_bytes(b'{"schema": 1, "ru\n' + path.read_bytes())
    with pytest.raises(RecordError, match=r"evaluation.jsonl:1"):
        read_records(path)


@pytest.mark.parametrize("change", [{"schema": 2, "new_field": 0}, {"schema": None}, {"schema": "1"}])
def test_an_unknown_schema_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "evaluation.jsonl"
    path.write_text(json.dumps(asdict(RECORD) | change) + "\n")
    with pytest.raises(RecordError, match=r":1: .*schema .* reads schema 1"):
        read_records(path)


@pytest.mark.parametrize(
    "row", ["[]", '{"schema": 1}', '{"schema": 1, "results": []}', '{"schema": 1, "results": [3]}']
)
def test_json_that_is_no_record_is_an_error(tmp_path: Path, row: str) -> None:
    path = tmp_path / "evaluation.jsonl"
    path.write_text(row + "\n")
    with pytest.raises(RecordError):
        read_records(path)


@pytest.mark.parametrize(
    "counts", [(8, 9, 0, 0), (8, 8, 1, 0), (8, 0, 9, 0), (8, 0, 0, 9), (8, -1, 0, 0), (8, True, 0, 0)]
)
def test_impossible_counts_are_refused(counts: tuple[int, int, int, int]) -> None:
    samples, correct, ungraded, truncated = counts
    with pytest.raises(RecordError):
        ProblemResult(
            problem="p",
            stratum="hard",
            samples=samples,
            correct=correct,
            ungraded=ungraded,
            truncated=truncated,
        )


def test_a_problem_occurs_once() -> None:
    with pytest.raises(RecordError, match="twice"):
        replace(RECORD, results=(*RESULTS, RESULTS[0]))


def test_a_nan_never_reaches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.jsonl"
    with pytest.raises(ValueError):
        append_record(path, replace(RECORD, meta={"loss": float("nan")}))
    assert not path.exists()


def test_the_last_step_of_each_run_is_kept_in_order() -> None:
    other, again = replace(RECORD, method="GRPO"), replace(RECORD, meta={"repeated": 1})
    records = [RECORD, other, replace(RECORD, step=100), again, replace(RECORD, mode="unanswered")]
    assert at_last_step(records) == [again, other, records[4]]
    assert at_last_step([*records, replace(RECORD, step=400)])[0].step == 400
    assert methods_of(records) == ("floored", "GRPO")
