"""From a data set's own columns to the one row: mathematics, integers, and chat-shaped training rows.

A row without a usable problem or gold raises `ValueError` with field, value and fix.
"""

import re
from collections.abc import Mapping
from typing import Any

from aipo.grading.text import integer
from aipo.tasks.benchmarks.benchmark import Convert, Kind, Row
from aipo.tasks.cells import gold_of, id_of, text_of, turns_of
from aipo.tasks.files import shown

_WHOLE = re.compile(r"(?<=\d)\.0+$")
_DEGREES = re.compile(r"(?:\^\s*+(?:\{\s*+)?\\circ\s*+\}?|°|\\degree)$")
# The instruction that some copies carry inside the problem; ours is added instead of it.
_DAPO_HEAD = re.compile(r"\ASolve the following math problem step by step\.[^\n]*\n\n")
_DAPO_TAIL = re.compile(r"\n\nRemember to put your answer on its own line after \"Answer:\"\.\s*\Z")


def math_row(problem: str, answer: str, *ids: str, after: str = "") -> Convert:
    """Return the reader of rows with a problem and a gold in LaTeX."""

    def convert(default: str, row: Mapping[str, Any]) -> Row:
        gold = gold_of(row, answer, after)
        return Row(
            id=id_of(row, default, *ids),
            problem=text_of(row, problem),
            gold=gold,
            kind=Kind.MATH,
            secrets=(gold,),
        )

    return convert


def aime_integer(text: str) -> str | None:
    r"""Return the canonical digits of an integer, of degrees too; None for anything else.

    >>> aime_integer(r"336^\circ"), aime_integer("042"), aime_integer("4.2")
    ('336', '42', None)
    """
    return integer(without_degrees(text))


def without_degrees(text: str) -> str:
    """Return a text without a degree sign at its end."""
    return _DEGREES.sub("", text.strip())


def integer_row(problem: str, answer: str, *ids: str, largest: int | None = None) -> Convert:
    r"""Return the reader of rows whose gold is an integer in any spelling: `042`, `336^\circ`, `27.0`.

    With a `largest`, the gold is from 0 to it.

    >>> integer_row("question", "answer")("x/0", {"question": "Find n.", "answer": "27.0"}).gold
    '27'
    """

    def convert(default: str, row: Mapping[str, Any]) -> Row:
        value = gold_of(row, answer)
        gold = aime_integer(_WHOLE.sub("", value))
        if gold is None or (largest is not None and not 0 <= int(gold) <= largest):
            bounds = f" from 0 to {largest}" if largest is not None else ""
            raise ValueError(f"field {answer!r}: {shown(value)}; must be an integer{bounds}")
        return Row(
            id=id_of(row, default, *ids),
            problem=text_of(row, problem),
            gold=gold,
            kind=Kind.INTEGER,
            secrets=(gold,),
        )

    return convert


def aime_row(default: str, row: Mapping[str, Any]) -> Row:
    """Read a row of any hub copy of AIME, whose columns have several names.

    >>> aime_row("x/0", {"ID": "I-1", "Problem": "Find n.", "Answer": "042"}).gold
    '42'
    """
    problem = next((name for name in ("problem", "Problem", "question") if name in row), "problem")
    answer = next((name for name in ("answer", "Answer") if name in row), "answer")
    return integer_row(problem, answer, "id", "ID", "problem_idx", largest=999)(default, row)


def chat_row(default: str, row: Mapping[str, Any]) -> Row:
    """Read a row in verl's shape: `prompt` is a text, or one message of the user's.

    A system message beside it is left out, on purpose: a benchmark is asked with its own prompt.

    The gold is `reward_model.ground_truth`. The id is `extra_info.index` where there is one.
    """
    reward = row.get("reward_model")
    if not isinstance(reward, Mapping):
        raise ValueError(f"field 'reward_model': {shown(reward)}; must be a table with 'ground_truth'")
    gold = gold_of(reward, "ground_truth")
    turns = turns_of(row, "prompt")
    if len([turn for turn in turns if turn[0] != "system"]) > 1:
        raise ValueError(
            f"field 'prompt': {len(turns)} messages; must be the user's alone. For conversations use "
            "task.name = 'jsonl' with task.problem_field = 'prompt'"
        )
    text = _DAPO_TAIL.sub("", _DAPO_HEAD.sub("", turns[-1][1].strip())).strip()
    extra = row.get("extra_info")
    identity = id_of(extra, default, "index") if isinstance(extra, Mapping) else default
    return Row(id=identity, problem=text, gold=gold, kind=Kind.MATH, secrets=(gold,))


def gym_row(default: str, row: Mapping[str, Any]) -> Row:
    """Read a frozen reasoning-gym row; its task is the stratum."""
    from aipo.tasks.benchmarks.gym_tasks import known

    name = known(text_of(row, "task")).name
    gold, question = gold_of(row, "answer"), text_of(row, "question")
    if not isinstance(row.get("metadata"), Mapping):
        raise ValueError(f"field 'metadata': {shown(row.get('metadata'))}; must be a table")
    entry = {key: row[key] for key in ("task", "question", "answer", "metadata")}
    return Row(
        id=id_of(row, default, "id"),
        problem=question,
        gold=gold,
        kind=Kind.REASONING_GYM,
        material=entry,
        secrets=(gold,),
        stratum=name,
    )
