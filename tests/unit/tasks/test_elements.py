"""Sums with atomic numbers: disjoint splits, strata by measurement, an oracle that speaks in sentences."""

import asyncio
import json
from pathlib import Path

import pytest

from aipo.agents.base import AgentQuery
from aipo.agents.scripted import ScriptedAgent, Unreliability
from aipo.assembly.parts import build_task
from aipo.config.settings import TaskSettings
from aipo.core.types import KNOWLEDGE, Verdict
from aipo.tasks.base import Ask, Problem, Split, TaskError, Wording
from aipo.tasks.registry import task_spec
from aipo.tasks.words.elements import WORDINGS, Elements, ElementsOracle, elements
from aipo.tasks.words.measured import EASY, HARD, OTHER

SPEC = task_spec("elements")
NO_TAGS = Wording({}, "feedback", {})


def measured(path: Path, right: dict[str, tuple[int, int]]) -> Path:
    """Write the record of an evaluation in which so many of 4 samples were right, by wording."""
    results = [
        {
            "problem": f"{element.name}/{i}",
            "samples": 4,
            "correct": right.get(element.name, (0, 0))[i],
            "ungraded": 0,
        }
        for element in elements()
        for i in range(len(WORDINGS))
    ]
    path.write_text(json.dumps({"results": results}) + "\n")
    return path


def made(**options: str | int) -> Elements:
    task = build_task(TaskSettings(name="elements", options=options))
    assert isinstance(task, Elements)
    return task


def every(task: Elements) -> dict[Split, list[Problem]]:
    return {split: list(task.problems(split)) for split in Split}


def test_the_table_has_each_number_once() -> None:
    assert [element.number for element in elements()] == list(range(1, 119))
    assert len({element.name for element in elements()}) == 118
    known = {e.name: e.number for e in elements()}
    assert (known["tellurium"], known["gold"], known["uranium"], known["oganesson"]) == (52, 79, 92, 118)


def test_no_two_splits_share_a_question_and_each_solution_is_correct() -> None:
    by_split = every(made(measured="smollm2"))
    texts = [problem.text for problems in by_split.values() for problem in problems]
    assert len(texts) == len(set(texts)) > 1000
    task = made()
    for problem in by_split[Split.TEST]:
        assert problem.solution
        assert asyncio.run(task.grade(problem, problem.solution)).verdict is Verdict.CORRECT
        assert asyncio.run(task.grade(problem, "I do not know.")).verdict is Verdict.INCORRECT


def test_a_turn_that_asks_reads_as_the_solution_once_the_tags_are_gone() -> None:
    oracle = ElementsOracle(NO_TAGS)
    assert SPEC.consulted is not None
    for problem in made().problems(Split.VALIDATION):
        text = ""
        for piece in SPEC.consulted(problem):
            if isinstance(piece, Ask):
                text += oracle.feedback(piece.agent, problem.text, text, piece.request)
            else:
                text += piece
        assert text == problem.solution


def test_what_was_measured_decides_the_strata(tmp_path: Path) -> None:
    path = measured(tmp_path / "e.jsonl", {"gold": (2, 0), "iron": (1, 0), "tin": (4, 4)})
    by_split = every(made(measured=str(path), hard=5))
    strata = {p.text.split()[-1].rstrip("."): p.stratum for ps in by_split.values() for p in ps}
    assert strata["gold"] == strata["tin"] == EASY and strata["iron"] == OTHER
    assert list(strata.values()).count(HARD) == 5 and len(strata) == 118
    assert {p.stratum for split in (Split.VALIDATION, Split.TEST) for p in by_split[split]} == {EASY, HARD}


def test_what_is_no_such_record_and_an_unknown_option_are_errors_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text('{"results": []}\n')
    for path in (tmp_path / "other.jsonl", tmp_path / "missing.jsonl"):
        with pytest.raises(TaskError, match=r"task\.options\.measured = .*task\.name=element_numbers"):
            made(measured=str(path))
    with pytest.raises(TaskError, match=r"task\.options\.strata: .* it has measured, hard"):
        made(strata="a")
    with pytest.raises(TaskError, match="it has none"):
        build_task(TaskSettings(name="leg_counting", options={"hard": 1}))


def test_the_oracle_answers_in_a_sentence_and_is_as_unreliable_as_it_is_asked_to_be() -> None:
    oracle = ElementsOracle(NO_TAGS)

    def answered(request: str, error_rate: float) -> str:
        agent = ScriptedAgent(
            name=KNOWLEDGE, oracle=oracle.feedback, unreliability=Unreliability(error_rate=error_rate)
        )
        return asyncio.run(
            agent.answer(AgentQuery(problem="Add 7 …", rollout="", request=request, seed=3))
        ).text

    assert answered("What is Tellurium's atomic number?", 0.0) == "Tellurium has atomic number 52."
    assert answered("how do I add?", 0.0) == ""
    wrong = answered("atomic number of tellurium", 1.0)
    assert wrong.startswith("Tellurium has atomic number ") and "52" not in wrong
    with pytest.raises(KeyError):
        oracle.feedback("verify", "", "", "")


def test_facts_are_graded_by_the_first_number() -> None:
    task = build_task(TaskSettings(name="element_numbers"))
    problems = task.problems(Split.TEST)
    assert len(problems) == 118 * len(WORDINGS)
    tin = next(p for p in problems if p.id == "tin/0")
    right = asyncio.run(task.grade(tin, "Tin (Sn) has number 50, lead 82."))
    assert tin.text == "What is the atomic number of tin?" and right.verdict is Verdict.CORRECT
    with pytest.raises(TaskError, match=r"evaluate\.split"):
        task.problems(Split.TRAIN)
