"""The files of an evaluation: samples that survive a crash, and a manifest that cannot change under them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from aipo.core.types import Verdict
from aipo.evaluation.manifest import (
    EvaluationError,
    Manifest,
    Questions,
    claim,
    differences,
    fingerprint,
    is_evaluation,
    read_manifest,
)
from aipo.evaluation.records import RecordError
from aipo.evaluation.samples import Sample, SampleFile, refuse_foreign

ONE = Sample(
    condition="solo", benchmark="b", problem="p", stratum="all", index=0, seed_path=(0, "b"), questions="q",
    policy="w", prompt_tokens=3, unknown_tokens=0, response="a\u2028\n\ud800", response_tokens=4,
    agent_tokens=0, consultations=0, stop="end", verdict="correct", reason="",
)  # fmt: skip
QUESTIONS = Questions(
    name="b", title="B", kind="math", digest="q", source="file", problems=2, whole=True, samples=2,
    max_response_tokens=8, notes=("mind",),
)  # fmt: skip
MANIFEST = Manifest(
    checkpoint="runs/x", policy="w", sampling={"temperature": 1.0}, prompts={"solo": "h"}, seed=0,
    benchmarks=(QUESTIONS,), graders={"aipo": "1"},
)  # fmt: skip


def test_samples_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    file = SampleFile(tmp_path)
    assert file.read() == {}
    file.append([ONE, replace(ONE, index=1)])
    file.append([replace(ONE, problem="r")])
    assert list(file.read().values()) == [ONE, replace(ONE, index=1), replace(ONE, problem="r")]


@pytest.mark.parametrize("cut", range(2, 30, 7))
def test_a_torn_last_line_is_passed_over_and_cut_off_before_the_next(tmp_path: Path, cut: int) -> None:
    file = SampleFile(tmp_path)
    file.append([ONE, replace(ONE, index=1)])
    with file.path.open("r+b") as opened:
        opened.truncate(len(opened.read()) - cut)
    with pytest.warns(RuntimeWarning, match="torn last line"):
        assert list(file.read().values()) == [ONE]
    file.append([replace(ONE, index=1)])
    assert list(file.read().values()) == [ONE, replace(ONE, index=1)]


def test_a_spoilt_line_in_the_middle_is_an_error_with_its_place(tmp_path: Path) -> None:
    file = SampleFile(tmp_path)
    file.append([ONE])
    with file.path.open("ab") as opened:
        opened.write(b'{"schema": 1}\n')
    file.append([replace(ONE, index=1)])
    with pytest.raises(RecordError, match=r"samples.jsonl:2: not a sample"):
        file.read()


def test_a_graded_sample_is_there_once_and_an_ungraded_one_is_replaced(tmp_path: Path) -> None:
    file = SampleFile(tmp_path)
    file.append([replace(ONE, verdict="ungraded"), ONE])
    assert list(file.read().values()) == [ONE]
    file.append([ONE])
    with pytest.raises(RecordError, match="is there twice"):
        file.read()


def test_samples_of_another_policy_or_other_questions_are_refused(tmp_path: Path) -> None:
    refuse_foreign(tmp_path, [ONE], "w", {"b": "q"})
    for policy, questions in (("v", {"b": "q"}), ("w", {"b": "r"}), ("w", {})):
        with pytest.raises(RecordError, match="two evaluations were mixed"):
            refuse_foreign(tmp_path, [ONE], policy, questions)


def test_a_folder_is_filled_under_one_manifest_by_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    with claim(folder, MANIFEST):
        assert is_evaluation(folder) and differences(read_manifest(folder), MANIFEST) == []
        with pytest.raises(EvaluationError, match="another process"), claim(folder, MANIFEST):
            pass
    with claim(folder, replace(MANIFEST, checkpoint="elsewhere", made_with={"torch": "9"})):
        pass
    other = replace(MANIFEST, sampling={"temperature": 0.6}, seed=1)
    match = r"sampling.temperature: 1.0 \| 0.6\n  seed: 0 \| 1"
    with pytest.raises(EvaluationError, match=match), claim(folder, other):
        pass


def test_a_manifest_of_another_schema_or_none_is_told(tmp_path: Path) -> None:
    assert not is_evaluation(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"policy": "", "benchmarks": [], "sampling": {}}))
    with pytest.raises(EvaluationError, match="schema None; this version of aipo reads schema 1"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("[1")
    assert not is_evaluation(tmp_path)


def test_a_fingerprint_is_of_content_not_of_dates_or_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "notes.md").write_text(name)
    one = fingerprint(tmp_path / "a")
    assert one == fingerprint(tmp_path / "b")
    (tmp_path / "b" / "tokenizer.json").write_text("{}")
    assert fingerprint(tmp_path / "b") != one


def test_verdicts_are_those_of_the_core() -> None:
    assert [replace(ONE, verdict=verdict.value).graded for verdict in Verdict] == [True, True, False]
