"""What tasks in words share: answers that are one number, and strata by what a policy knew of each name.

A task's problems are about names (of elements, of rules) and a number each; a name occurs in all splits but
those of the stratum `other`, which are for training alone, and it is the numbers that are held out.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

from aipo.core.types import Verdict
from aipo.grading.text import without_gold
from aipo.tasks.base import Grade, Problem, Split, TaskError
from aipo.tasks.files import rows

EASY, HARD, OTHER, ALL = "easy", "hard", "other", "all"
KNOWN_FROM = 0.25
"""Share of right answers from which a name is easy [ours]: SmolLM2, sampled at temperature 1, names the
numbers of twelve elements so often, and those of hydrogen and sodium alone in half of all samples."""
DATA = Path(__file__).parent / "data"

_NUMBER = re.compile(r"[0-9]+")


def stated(text: str, which: int) -> int | None:
    """Return one of the whole numbers of a text: 0, the first; -1, the last. None where there is none.

    >>> stated("Carbon has atomic number 6. 6 + 7 = 13.", -1), stated("I do not know.", -1)
    (13, None)
    """
    numbers = _NUMBER.findall(text)
    return int(numbers[which]) if numbers else None


def drawn(text: str) -> str:
    """Return what orders by chance, the same on every machine."""
    return sha256(text.encode()).hexdigest()


class NumberTask:
    """Grades the part of `aipo.tasks.base.Task` where the answer is a whole number."""

    graded_number: ClassVar[int] = -1
    """Which number of a response is the answer: -1, the last; 0, the first."""

    async def grade(self, problem: Problem, response: str) -> Grade:
        """Compare the response's number with the gold one. Never UNGRADED: nothing here can fail."""
        found = stated(response, self.graded_number)
        if found is None:
            return Grade(Verdict.INCORRECT, "no_answer")
        same = found == int(problem.gold)
        return Grade(Verdict.CORRECT, "equal") if same else Grade(Verdict.INCORRECT, "different")

    def without_answer(self, problem: Problem, text: str) -> str | None:
        """Hide the number in an agent's words."""
        return without_gold(text, problem.gold)


class MeasuredTask(NumberTask, ABC):
    """`aipo.tasks.base.Task`: problems about names, by strata of what a policy knew of each."""

    names: ClassVar[Sequence[str]]
    numbers: ClassVar[Sequence[int]]
    between: ClassVar[str]
    """Stands between name and number in a problem's id."""
    held_out: ClassVar[Mapping[Split, slice]]
    """Of each name's numbers, in an order that a hash draws."""

    def __init__(self, strata: Mapping[str, str] | None = None) -> None:
        """`strata`: of each name; None: one for all."""
        self._strata = strata

    @abstractmethod
    def problem(self, name: str, number: int, stratum: str) -> Problem:
        """Return the problem about a name and a number."""

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return the problems of a split, in an order that a hash draws."""
        found = []
        for name in self.names:
            stratum = self._strata[name] if self._strata else ALL
            if stratum == OTHER and split is not Split.TRAIN:
                continue
            numbers = sorted(self.numbers, key=lambda number: drawn(f"{name}{self.between}{number}"))
            found += [self.problem(name, number, stratum) for number in numbers[self.held_out[split]]]
        return sorted(found, key=lambda problem: drawn(problem.id))


def strata_of(
    task: str, options: Mapping[str, str | int | float], names: Iterable[str], least: int, measured_by: str
) -> dict[str, str] | None:
    """Return each name's stratum by the evaluation that `task.options.measured` names; None if it names none.

    The last one that a file, or the packaged record of a model, holds; its problems are `NAME/…`, at least
    `least` of each name. `easy`: right in at least a quarter of the samples. `hard`: never right, the first
    `task.options.hard` of them in an order that a hash draws. `other`: the rest. Raises `TaskError`, with
    `measured_by` as what to evaluate, for another file.
    """
    measured, hard = str(options["measured"]), int(options["hard"])
    if not measured:
        return None
    packaged = DATA / f"{task}_{measured}.jsonl"
    path = packaged if packaged.is_file() else Path(measured)
    shares: dict[str, list[float]] = {}
    try:
        *_, (_, record) = rows(path)
        for result in record["results"]:
            name, _, _ = result["problem"].rpartition("/")
            graded = result["samples"] - result["ungraded"]
            shares.setdefault(name, []).append(result["correct"] / graded if graded else 0.0)
        if missing := [name for name in names if len(shares.get(name, ())) < least]:
            raise KeyError(", ".join(missing[:3]))
    except (ValueError, KeyError, TypeError) as error:
        raise TaskError(
            f"task.options.measured = {str(path)!r}: {error}; name the evaluation.jsonl of `aipo evaluate "
            f"RECIPE {measured_by}`"
        ) from error
    unknown = sorted((name for name, found in shares.items() if not any(found)), key=drawn)[:hard]
    return {
        name: EASY if sum(found) / len(found) >= KNOWN_FROM else HARD if name in unknown else OTHER
        for name, found in shares.items()
    }
