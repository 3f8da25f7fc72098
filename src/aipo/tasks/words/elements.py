"""Facts composed in a short calculation: `Add 7 to the atomic number of tellurium.`

Nothing but the fact is missing: a policy that is told the number adds. What a policy knows is measured with
`element_numbers`, which asks for each number in two wordings; the record of that evaluation decides the
strata. The table, `data/elements.csv`, has the numbers, names and symbols of IUPAC's periodic table of the
elements (iupac.org, 118 elements, names as recommended by IUPAC: aluminium, caesium, sulfur).

No two splits share a question. Every element occurs in all splits but those of the stratum `other`, which are
for training alone; it is the addends that are held out, as the number of an element cannot be guessed from
others.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from aipo.core.types import KNOWLEDGE
from aipo.tasks.base import Ask, Problem, Split, TaskError, TaskSpec, Wording
from aipo.tasks.words.measured import DATA, MeasuredTask, NumberTask, strata_of

WORDINGS = (
    "What is the atomic number of {name}?",
    "Which atomic number does the element {name} have? Answer with the number.",
)
OPTIONS: Mapping[str, str | int] = {"measured": "", "hard": 12}
"""`measured`: the evaluation.jsonl of `element_numbers` for the policy, or the name of a packaged one
(`smollm2`); '': one stratum, `all`. `hard`: how many of the elements that were never named right are trained
and reported on; the others are `other`."""

_REQUEST = "atomic number of {name}"


@dataclass(frozen=True, slots=True)
class Element:
    """One element of the table."""

    number: int
    name: str

    @property
    def fact(self) -> str:
        """The sentence that states its number."""
        return f"{self.name.capitalize()} has atomic number {self.number}."


@cache
def elements() -> tuple[Element, ...]:
    """Return the table, by number."""
    table = (DATA / "elements.csv").read_text(encoding="utf-8")
    return tuple(Element(int(row["number"]), row["name"]) for row in csv.DictReader(table.splitlines()))


@cache
def _by_name() -> Mapping[str, Element]:
    return {element.name: element for element in elements()}


def element_in(text: str) -> Element | None:
    """Return the element that a text names first, None if it names none.

    >>> element_in("the atomic number of Tellurium, please"), element_in("how do I add?")
    (Element(number=52, name='tellurium'), None)
    """
    words = re.findall(r"[a-z]+", text.lower())
    return next((_by_name()[word] for word in words if word in _by_name()), None)


class ElementNumbers(NumberTask):
    """What the policy knows beforehand: each element's number asked for in each wording. Test split only."""

    name = "element_numbers"
    graded_number = 0

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return a problem for each element and wording. Raises `TaskError` for other splits than test."""
        if split is not Split.TEST:
            raise TaskError(f"{self.name} measures and trains nothing; set evaluate.split = 'test'")
        return [
            Problem(
                id=f"{element.name}/{index}", text=wording.format(name=element.name), gold=str(element.number)
            )
            for element in elements()
            for index, wording in enumerate(WORDINGS)
        ]


class Elements(MeasuredTask):
    """Sums with an atomic number, by strata of what a policy knew of the elements."""

    name = "elements"
    names = tuple(element.name for element in elements())
    numbers = range(1, 21)
    between = "+"
    held_out: ClassVar = {Split.TEST: slice(0, 6), Split.VALIDATION: slice(6, 8), Split.TRAIN: slice(8, None)}

    def problem(self, name: str, number: int, stratum: str) -> Problem:
        """Return the question for the number added to the element's."""
        element = _by_name()[name]
        return Problem(
            id=f"elements/{name}+{number}",
            text=f"Add {number} to the atomic number of {name}.",
            gold=str(element.number + number),
            stratum=stratum,
            solution=f"{element.fact} {_sum(element, number)}",
        )


def _sum(element: Element, addend: int) -> str:
    return f"{element.number} + {addend} = {element.number + addend}."


def consulted(problem: Problem) -> Sequence[str | Ask]:
    """Return the expert's turn with the fact asked for; without tags it reads as the solution does.

    >>> consulted(Elements().problems(Split.TEST)[0])
    [Ask(agent='knowledge', request='atomic number of tantalum'), ' 73 + 16 = 89.']
    """
    element = element_in(problem.text)
    assert element is not None, problem
    addend = int(problem.gold) - element.number
    return [Ask(KNOWLEDGE, _REQUEST.format(name=element.name)), f" {_sum(element, addend)}"]


class ElementsOracle:
    """`aipo.tasks.base.Oracle`: Knowledge states the number of the element that a request names."""

    def __init__(self, wording: Wording) -> None:
        """An oracle that reads requests needs nothing of the protocol."""

    def feedback(self, agent: str, problem: str, rollout: str, request: str) -> str:
        """Return the sentence, '' for a request that names no element. Raises `KeyError` for other agents."""
        if agent != KNOWLEDGE:
            raise KeyError(agent)
        element = element_in(request)
        return element.fact if element else ""


def _elements(options: Mapping[str, str | int | float]) -> Elements:
    by = f"task.name={ElementNumbers.name}"
    return Elements(strata_of(Elements.name, options, Elements.names, len(WORDINGS), by))


WORD_TASKS = (
    TaskSpec(
        name=Elements.name,
        title="Sums with atomic numbers",
        make=lambda settings, sandbox: _elements(settings.options),
        kind="words",
        source="drawn by this package",
        max_response_tokens=64,
        oracle=ElementsOracle,
        agents=(KNOWLEDGE,),
        options=OPTIONS,
        consulted=consulted,
    ),
    TaskSpec(
        name=ElementNumbers.name,
        title="Atomic numbers",
        make=lambda settings, sandbox: ElementNumbers(),
        kind="words",
        source="drawn by this package",
        max_response_tokens=32,
        oracle=ElementsOracle,
        agents=(KNOWLEDGE,),
    ),
)
