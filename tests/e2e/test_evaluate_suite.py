"""`aipo evaluate CHECKPOINT` and `aipo compare A B`: benchmarks end to end, through the command line.

Proves: every sample is kept; kill -9 and the same command end with the bytes of an evaluation that was never
killed, and no sample is made twice; a changed setting or policy is refused with the difference; bad input is
one error before a policy is loaded; agents are a second condition and never reachable in the first; ungraded
samples stop it and can be made again. Policies have random weights: what they score is nothing.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import aipo
from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.tasks.benchmarks.task import BenchmarkTask
from support.policies import (
    SHARED_DATA,
    counting_policy,
    counting_recipe,
    random_policy,
    run_cli,
    start_cli,
    succeed,
)

pytestmark = pytest.mark.timeout(600)
SHORT = ["--max-response-tokens", "12", "rollout.slots=4"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_policy(tmp_path_factory, "qwen2.5")


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_policy(tmp_path_factory)


@pytest.fixture
def aime(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "aime24.jsonl"
    path.parent.mkdir()
    rows = [{"id": f"a/{n}", "problem": f"Find {n} + 1.", "answer": str(n + 1)} for n in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def refused(*arguments: str | Path, code: int = 2) -> str:
    result = run_cli("evaluate", *arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def evaluate(policy: Path, aime: Path, output: Path, *more: str | Path) -> None:
    given = ["--benchmarks", "aime24", "--files", f"aime24={aime}", "--output", output, "--samples", "2"]
    succeed("evaluate", policy, *given, *SHORT, *more)


def test_every_sample_is_kept_with_what_made_it(policy: Path, aime: Path, tmp_path: Path) -> None:
    evaluate(policy, aime, tmp_path / "e", "--problems", "5")
    found = lines(tmp_path / "e")
    assert [(s["problem"], s["index"]) for s in found] == [(f"a/{n}", i) for n in range(5) for i in range(2)]
    manifest = json.loads((tmp_path / "e" / "manifest.json").read_text())
    first = found[0]
    assert first["seed_path"] == [0, "benchmarks", "aime24", "solo", "a/0", 0]
    assert first["policy"] == manifest["policy"] and len(first["policy"]) == 16
    assert first["questions"] == manifest["benchmarks"][0]["digest"]
    assert first["stop"] in ("end", "length") and first["verdict"] == "incorrect" and first["reason"]
    assert 0 < first["response_tokens"] <= 12 < first["prompt_tokens"]
    assert len({s["response"] for s in found}) > 5, "samples must differ"
    page = (tmp_path / "e" / "results.md").read_text()
    assert "only 5 questions, not the benchmark" in page and "no agent was reachable" in page
    score = json.loads((tmp_path / "e" / "results.json").read_text())["scores"][0]
    assert (score["questions"], score["samples"], score["average"], score["graded"]) == (5, 2, 0.0, 10)
    assert score["population"][1] == pytest.approx(0.5218, abs=1e-4), "exact bound of 0 of 5 questions"
    assert [each["k"] for each in score["pass_at"]] == [1, 2]
    options = aipo.EvaluationOptions(
        benchmarks="aime24", files=f"aime24={aime}", output=tmp_path / "e", samples="2", problems=5,
        max_response_tokens="12",
    )  # fmt: skip
    (record,) = aipo.evaluate(policy, options=options)
    assert (record.split, record.mode) == ("aime24", "unanswered") and lines(tmp_path / "e") == found
    assert [(r.problem, r.samples, r.correct) for r in record.results] == [(f"a/{n}", 2, 0) for n in range(5)]


def test_kill_9_and_the_same_command_end_as_if_nothing_had_happened(
    policy: Path, aime: Path, tmp_path: Path
) -> None:
    long = ["--max-response-tokens", "24", "--samples", "3"]
    command = ["evaluate", policy, "--benchmarks", "aime24", "--data", aime.parent, "rollout.slots=3", *long]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start_cli(*command, "--output", killed)
    file = killed / "samples.jsonl"
    deadline = time.monotonic() + 240
    while not (file.exists() and file.read_bytes().count(b"\n") >= 12):
        assert process.poll() is None and time.monotonic() < deadline, "it must be killed while it samples"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = file.read_bytes()
    kept = before[: before.rfind(b"\n") + 1]
    assert 12 <= kept.count(b"\n") < 90, "killed too late to show anything"
    file.write_bytes(kept + b'{"schema": 1, "condition": "so')  # what a crash in a write leaves
    succeed(*command, "--output", killed)
    assert file.read_bytes().startswith(kept), "what was there is not made again"
    succeed(*command, "--output", whole)
    for name in ("samples.jsonl", "results.json", "results.md", "manifest.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert len({(s["problem"], s["index"]) for s in lines(killed)}) == len(lines(killed)) == 90


def test_how_many_decode_at_once_changes_no_sample(policy: Path, aime: Path, tmp_path: Path) -> None:
    for name, slots in (("wide", "rollout.slots=32"), ("narrow", "rollout.slots=1")):
        evaluate(policy, aime, tmp_path / name, "--problems", "6", slots)
    assert lines(tmp_path / "wide") == lines(tmp_path / "narrow")


def test_another_setting_or_policy_is_refused_with_the_difference(
    policy: Path, aime: Path, tmp_path: Path
) -> None:
    evaluate(policy, aime, tmp_path / "e", "--problems", "2")
    bytes_before = (tmp_path / "e" / "samples.jsonl").read_bytes()
    given = [
        policy,
        "--benchmarks",
        "aime24",
        "--data",
        aime.parent,
        "--output",
        tmp_path / "e",
        "--samples",
        "2",
    ]
    given += ["--problems", "2", *SHORT]
    message = refused(*given, "--temperature", "0.5")
    assert "sampling.temperature: 1.0 | 0.5" in message and "choose another folder" in message
    assert "benchmarks.aime24.samples: 2 | 3" in refused(*given, "--samples", "3")
    other = Path(shutil.copytree(policy, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert "policy: " in refused(other, *given[1:])
    changed = aime.read_text().replace('"answer": "1"', '"answer": "2"')
    aime.write_text(changed)
    assert "benchmarks.aime24.digest: " in refused(*given)
    assert (tmp_path / "e" / "samples.jsonl").read_bytes() == bytes_before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--benchmarks", "mat500"],
            "--benchmarks: task.name = 'mat500' is not known; did you mean 'math500'",
        ),
        (["--benchmarks", ","], "--benchmarks names none"),
        (["--benchmarks", "dapo_math_17k"], "dapo_math_17k is a training set without a test split"),
        (["--benchmarks", "aime24", "--files", "aime24=/absent.jsonl"], "aime24=/absent.jsonl: no such file"),
        (["--benchmarks", "aime24", "--files", "math500=/x"], "'math500' is no benchmark of this evaluation"),
        (["--benchmarks", "aime24,math500", "--data", "DATA"], "no math500.jsonl (math500) in it"),
        (["--benchmarks", "aime24", "--samples", "0"], "--samples: '0' is not a whole number from 1"),
        (["--benchmarks", "aime24", "--samples", "aime25=3"], "'aime25' is no benchmark of this evaluation"),
        (["--benchmarks", "aime24", "--solo-mode", "alone"], "must be one of unanswered, banned"),
        (["--benchmarks", "aime24", "--top-p", "0"], "--top-p 0.0: must be above 0"),
        (["--benchmarks", "aime24", "train.steps=3"], "train.steps=3: has no meaning for a checkpoint"),
        (["--benchmarks", "aime24", "--with-agents", "/absent.toml"], "no such recipe"),
        (["--benchmarks", "aime24", "--method", "x"], "--checkpoint and --method are for a recipe"),
    ],
)
def test_bad_input_is_one_error_before_a_policy_is_loaded(
    arguments: list[str],
    words: str,
    policy: Path,
    aime: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[object] = []
    monkeypatch.setattr("aipo.assembly.checkpoint.load_policy", lambda *found: loaded.append(found))
    arguments = [str(aime.parent) if word == "DATA" else word for word in arguments]
    assert words in refused(policy, *arguments, "--output", tmp_path / "e")
    assert not loaded and not (tmp_path / "e").exists()


def test_a_benchmark_without_a_file_or_the_network_is_an_error_that_says_what_to_give(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    message = refused(policy, "--benchmarks", "aime25", "--output", tmp_path / "e")
    assert "cannot be fetched from the hub" in message and "--files aime25=FILE, or --data FOLDER" in message


def test_a_folder_that_is_no_policy_is_refused(policy: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(policy, run / "policy")
    assert f"did you mean {run / 'policy'}?" in refused(run, "--benchmarks", "aime24")
    assert "no config.json in it" in refused(tmp_path / "absent" / "x" / "y")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    given = ["--benchmarks", "leg_counting", "--problems", "1", "--samples", "1", "--output", foreign]
    assert "is not empty and holds no evaluation" in refused(policy, *given)
    assert "for a checkpoint, not for a recipe" in refused(counting_recipe(tmp_path), "--benchmarks", "all")


def test_agents_are_a_second_condition_and_never_reachable_in_the_first(
    counting: Path, tmp_path: Path
) -> None:
    recipe, output = counting_recipe(tmp_path), tmp_path / "e"
    given = ["--benchmarks", "leg_counting", "--problems", "8", "--samples", "4", "--output", output]
    succeed("evaluate", counting, *given, "--with-agents", recipe)
    found = lines(output)
    alone = [s for s in found if s["condition"] == "solo"]
    helped = [s for s in found if s["condition"] == "agents"]
    assert len(alone) == len(helped) == 64
    assert {(s["consultations"], s["agent_tokens"]) for s in alone} == {(0, 0)}
    assert sum(s["consultations"] for s in helped) > 10 and sum(s["agent_tokens"] for s in helped) > 10
    results = json.loads((output / "results.json").read_text())
    worth = results["agents_worth"][0]
    shares = {s["condition"]: s["average"] for s in results["scores"] if s["stratum"] == "all"}
    assert worth["value"] == pytest.approx(shares["agents"] - shares["solo"])
    assert worth["low"] <= worth["value"] <= worth["high"] and 0 < worth["p_value"] <= worth["holm_p"]
    page = (output / "results.md").read_text()
    assert "What the agents were worth" in page and "| easy |" in page and "| hard |" in page


def test_ungraded_samples_leave_the_denominator_and_too_many_stop_it(
    policy: Path, aime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grades = {"a/0": Grade(Verdict.UNGRADED, "timeout"), "a/1": Grade(Verdict.CORRECT, "integer")}

    async def grade(self: BenchmarkTask, problem: Any, response: str) -> Grade:
        return grades.get(problem.id, Grade(Verdict.INCORRECT, "no_answer"))

    monkeypatch.setattr(BenchmarkTask, "grade", grade)
    output = tmp_path / "e"
    given = [policy, "--benchmarks", "aime24", "--data", aime.parent, "--output", output, "--samples", "2"]
    given += ["--problems", "4", *SHORT]
    message = refused(*given, code=3)
    assert "2 of 8 samples could not be graded" in message and "timeout" in message
    succeed("evaluate", *given, "--max-ungraded-share", "0.3")
    score = json.loads((output / "results.json").read_text())["scores"][0]
    assert (score["ungraded"], score["graded"], score["correct"]) == (2, 6, 2)
    assert score["average"] == pytest.approx(1 / 3), "of the three questions that were graded"
    assert score["pass_at"][0]["left_out"] == 1
    grades["a/0"] = Grade(Verdict.INCORRECT, "different")
    succeed("evaluate", *given, "--retry-ungraded")
    score = json.loads((output / "results.json").read_text())["scores"][0]
    assert (score["ungraded"], score["graded"], score["average"]) == (0, 8, 0.25)
    assert len(lines(output)) == 10, "eight samples, two of them made again"


def test_a_prompt_that_does_not_fit_counts_as_wrong_and_is_told(
    policy: Path, aime: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in aime.read_text().splitlines()]
    rows[1]["problem"] = "seven and " * 3_000
    aime.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate(policy, aime, tmp_path / "e", "--problems", "3")
    long = [s for s in lines(tmp_path / "e") if s["problem"] == "a/1"]
    assert {(s["verdict"], s["reason"], s["stop"]) for s in long} == {("incorrect", "prompt_too_long", "")}
    assert "1 prompts do not fit the policy's context" in (tmp_path / "e" / "results.md").read_text()


def test_two_evaluations_are_compared_question_by_question(
    counting: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    alone = ["consult.solo_prompt=alone", "--benchmarks", "leg_counting", "--samples", "4", "--problems", "6"]
    a, b = tmp_path / "a", tmp_path / "b"
    succeed("evaluate", counting, *alone, "--output", a)
    succeed("evaluate", counting, *alone, "--output", b, "--seed", "1")
    result = succeed("compare", a, b)
    written = tmp_path / "comparison"
    table = json.loads((written / "comparison.json").read_text())["pairs"][0]
    shares = [json.loads((each / "results.json").read_text())["scores"][0]["average"] for each in (a, b)]
    verdict = table["benchmarks"][0]
    assert verdict["difference"]["value"] == pytest.approx(shares[0] - shares[1])
    assert set(verdict["curve"]) == {"1", "2", "4"} and verdict["holm_p"] == verdict["difference"]["p_value"]
    assert "p (Holm)" in result.output and "only A" in result.output
    assert (written / "pass_at_k_leg_counting.svg").exists()
    first = (written / "comparison.md").read_bytes()
    succeed("compare", a, b)
    assert (written / "comparison.md").read_bytes() == first

    hot = tmp_path / "hot"
    succeed("evaluate", counting, *alone, "--output", hot, "--temperature", "0.7", "--samples", "3")
    result = run_cli("compare", a, hot)
    assert result.exit_code == 2 and "sampling.temperature: 1.0 | 0.7" in result.output
    assert "benchmarks.leg_counting.samples: 4 | 3" in result.output
    with (b / "samples.jsonl").open("r+b") as file:
        file.truncate(len(file.read()) - 3)
    result = run_cli("compare", a, b)
    assert result.exit_code == 2 and "47 of 48 samples are there" in result.output
    assert "give two or more" in run_cli("compare", a).output
    assert "compare like with like" in " ".join(
        run_cli("compare", a, tmp_path_factory.mktemp("x")).output.split()
    )


def test_multiple_choice_end_to_end(policy: Path, tmp_path: Path) -> None:
    wrong = {f"Incorrect Answer {n}": f"no {n}" for n in (1, 2, 3)}
    rows = [
        {"Question": f"Which is {n}?", "Correct Answer": f"it is {n}", "Record ID": f"rec{n}", **wrong}
        for n in range(198)
    ]
    path = tmp_path / "gpqa_diamond.json"
    path.write_text(json.dumps(rows))
    given = ["--benchmarks", "gpqa_diamond", "--files", f"gpqa_diamond={path}", "--problems", "3", *SHORT]
    succeed("evaluate", policy, *given, "--samples", "2", "--output", tmp_path / "a")
    succeed("evaluate", policy, *given, "--samples", "2", "--output", tmp_path / "b", "--seed", "5")
    assert [s["verdict"] for s in lines(tmp_path / "a")] == ["incorrect"] * 6
    assert "follow from guessing" in succeed("compare", tmp_path / "a", tmp_path / "b").output


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="../shared/data is not there")
def test_real_benchmark_files_end_to_end_with_every_protocol_but_choice(policy: Path, tmp_path: Path) -> None:
    names = ["aime24", "aime25", "math500", "mbpp", "reasoning_gym", "gsm8k"]
    given = ["--benchmarks", ",".join(names), "--data", SHARED_DATA, "--output", tmp_path / "e", *SHORT]
    succeed("evaluate", policy, *given, "--problems", "1", "--samples", "2")
    results = json.loads((tmp_path / "e" / "results.json").read_text())
    scores = {s["benchmark"]: s for s in results["scores"] if s["stratum"] == "all"}
    assert list(scores) == names
    assert [scores[name]["questions"] for name in names] == [1, 1, 1, 1, 25, 1]
    assert all(s["average"] == 0 and s["ungraded"] == 0 for s in scores.values())
    assert len([s for s in results["scores"] if s["benchmark"] == "reasoning_gym"]) == 26
    assert results["overall"][0]["average"] == 0
