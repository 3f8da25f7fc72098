"""Numbers found by a rule: disjoint splits, an oracle with noise, strata by measurement."""

import asyncio
import json
from pathlib import Path

import pytest

from aipo.assembly.parts import build_task
from aipo.config.settings import TaskSettings
from aipo.core.types import REASONING, Verdict
from aipo.tasks.base import Ask, Problem, Split, TaskError, Wording
from aipo.tasks.registry import task_spec
from aipo.tasks.words.measured import EASY, HARD, OTHER
from aipo.tasks.words.rules import NOISE, RULES, SAID, Rules, RulesOracle, rule_in

SPEC = task_spec("rules")
ORACLE = RulesOracle(Wording({}, "feedback", {}))


def every(**options: str | int) -> dict[Split, list[Problem]]:
    task = build_task(TaskSettings(name="rules", options=options))
    assert isinstance(task, Rules)
    return {split: list(task.problems(split)) for split in Split}


def test_no_two_splits_share_a_question_and_each_solution_is_correct() -> None:
    by_split = every()
    problems = [problem for found in by_split.values() for problem in found]
    assert len({problem.text for problem in problems}) == len(problems) == 10 * len(RULES)
    assert [len(found) for found in by_split.values()] == [5 * len(RULES), 2 * len(RULES), 3 * len(RULES)]
    for problem in problems:
        assert problem.solution
        assert asyncio.run(Rules().grade(problem, problem.solution)).verdict is Verdict.CORRECT
        assert asyncio.run(Rules().grade(problem, "I do not know.")).verdict is Verdict.INCORRECT


def test_the_answers_are_those_of_the_textbook() -> None:
    golds = {p.text: p.gold for found in every().values() for p in found}
    known = {
        "pronic number of 7": "56",
        "triangular number of 10": "55",
        "lazy caterer number of 4": "11",
        "centred square number of 5": "41",
        "Collatz successor of 7": "22",
        "Collatz successor of 8": "4",
        "Lucas-Lehmer successor of 4": "14",
        "gnomon of 6": "11",
        "complement to one hundred of 12": "88",
    }
    assert {text: golds[f"What is the {text}?"] for text in known} == known


def test_the_oracle_says_the_rule_in_several_sentences_and_never_the_answer() -> None:
    said: set[str] = set()
    for problem in every()[Split.TRAIN]:
        rule = rule_in(problem.text)
        assert rule is not None and SPEC.consulted is not None
        asked = next(piece for piece in SPEC.consulted(problem) if isinstance(piece, Ask))
        words = ORACLE.feedback(asked.agent, problem.text, "", asked.request)
        assert words == ORACLE.feedback(asked.agent, problem.text, "something else", asked.request)
        assert rule.words in words and problem.text not in words
        said.add(words.replace(rule.words, "").replace(rule.name, ""))
    assert len(said) > 2 * len(SAID) and any(words.startswith(NOISE[2]) for words in said)
    assert ORACLE.feedback(REASONING, "What is seven?", "", "help") == ""
    with pytest.raises(KeyError):
        ORACLE.feedback("knowledge", "", "", "")


def test_what_was_measured_decides_the_strata(tmp_path: Path) -> None:
    right = {"double": 8, "square": 2, "gnomon": 1}
    results = [
        {"problem": p.id, "samples": 8, "ungraded": 0, "correct": right.get(p.id.rpartition("/")[0], 0)}
        for p in every()[Split.VALIDATION]
    ]
    path = tmp_path / "evaluation.jsonl"
    path.write_text(json.dumps({"results": results}) + "\n")
    by_split = every(measured=str(path), hard=4)
    strata = {p.id.rpartition("/")[0]: p.stratum for found in by_split.values() for p in found}
    assert strata["double"] == strata["square"] == EASY and strata["gnomon"] == OTHER
    assert list(strata.values()).count(HARD) == 4 and len(strata) == len(RULES)
    assert {p.stratum for split in (Split.VALIDATION, Split.TEST) for p in by_split[split]} == {EASY, HARD}
    path.write_text('{"results": []}\n')
    with pytest.raises(TaskError, match=r"task\.options\.measured = .*task\.name=rules evaluate\.split=val"):
        every(measured=str(path))
