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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from aipo.core.types import KNOWLEDGE, Verdict
from aipo.grading.text import without_gold
from aipo.tasks.base import Ask, Grade, Problem, Split, TaskError, TaskSpec, Wording
from aipo.tasks.files import rows

EASY, HARD, OTHER, ALL = "easy", "hard", "other", "all"
ADDENDS = range(1, 21)
HELD_OUT: Mapping[Split, slice] = {
    Split.TEST: slice(0, 6),
    Split.VALIDATION: slice(6, 8),
    Split.TRAIN: slice(8, None),
}
"""Of each element's addends, in an order that a hash draws."""
WORDINGS = (
    "What is the atomic number of {name}?",
    "Which atomic number does the element {name} have? Answer with the number.",
)
KNOWN_FROM = 0.25
"""Share of right answers from which an element is easy [ours]: SmolLM2, sampled at temperature 1, names
twelve of them so often, and hydrogen and sodium alone in half of all samples."""
OPTIONS: Mapping[str, str | int] = {"measured": "", "hard": 12}
"""`measured`: the evaluation.jsonl of `element_numbers` for the policy, or the name of a packaged one
(`smollm2`); '': one stratum, `all`. `hard`: how many of the elements that were never named right are trained
and reported on; the others are `other`."""

_DATA = Path(__file__).parent / "data"
_NUMBER = re.compile(r"[0-9]+")
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
    table = (_DATA / "elements.csv").read_text(encoding="utf-8")
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


def stated(text: str, which: int) -> int | None:
    """Return one of the whole numbers of a text: 0, the first; -1, the last. None where there is none.

    >>> stated("Carbon has atomic number 6. 6 + 7 = 13.", -1), stated("I do not know.", -1)
    (13, None)
    """
    numbers = _NUMBER.findall(text)
    return int(numbers[which]) if numbers else None


def graded_as(problem: Problem, found: int | None) -> Grade:
    """Compare a number with the gold one; None: there was none."""
    if found is None:
        return Grade(Verdict.INCORRECT, "no_answer")
    same = found == int(problem.gold)
    return Grade(Verdict.CORRECT, "equal") if same else Grade(Verdict.INCORRECT, "different")


def drawn(text: str) -> str:
    """Return what orders by chance, the same on every machine."""
    return sha256(text.encode()).hexdigest()


class ElementNumbers:
    """What the policy knows beforehand: each element's number asked for in each wording. Test split only."""

    name = "element_numbers"

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

    async def grade(self, problem: Problem, response: str) -> Grade:
        """Compare the first number of the response with the element's."""
        return graded_as(problem, stated(response, 0))

    def without_answer(self, problem: Problem, text: str) -> str | None:
        """Hide the number."""
        return without_gold(text, problem.gold)


class Elements:
    """`aipo.tasks.base.Task`: sums with an atomic number, by strata of what a policy knew."""

    name = "elements"

    def __init__(self, strata: Mapping[str, str] | None = None) -> None:
        """`strata`: of each element by name; None: one for all."""
        self._strata = strata

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return the problems of a split, in an order that a hash draws."""
        found = []
        for element in elements():
            stratum = self._strata[element.name] if self._strata else ALL
            if stratum == OTHER and split is not Split.TRAIN:
                continue
            addends = sorted(ADDENDS, key=lambda addend: drawn(f"{element.name}+{addend}"))
            found += [_problem(element, addend, stratum) for addend in addends[HELD_OUT[split]]]
        return sorted(found, key=lambda problem: drawn(problem.id))

    async def grade(self, problem: Problem, response: str) -> Grade:
        """Compare the last number of the response with the sum. Never UNGRADED: nothing here can fail."""
        return graded_as(problem, stated(response, -1))

    def without_answer(self, problem: Problem, text: str) -> str | None:
        """Hide the sum in an agent's words."""
        return without_gold(text, problem.gold)


def _problem(element: Element, addend: int, stratum: str) -> Problem:
    return Problem(
        id=f"elements/{element.name}+{addend}",
        text=f"Add {addend} to the atomic number of {element.name}.",
        gold=str(element.number + addend),
        stratum=stratum,
        solution=f"{element.fact} {_sum(element, addend)}",
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


def strata_of(path: Path, hard: int, names: Iterable[str], least: int, measured_by: str) -> dict[str, str]:
    """Return each name's stratum by the evaluation that a file records last, of problems `NAME/…`.

    `easy`: right in at least a quarter of the samples. `hard`: never right, the first `hard` of them in an
    order that a hash draws. `other`: the rest. Raises `TaskError`, with `measured_by` as what to
    evaluate, for another file: each name needs `least` problems.
    """
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


def measurement(task: str, measured: str) -> Path:
    """Return the record that `task.options.measured` names: a packaged one, or a file."""
    packaged = _DATA / f"{task}_{measured}.jsonl"
    return packaged if packaged.is_file() else Path(measured)


def _elements(options: Mapping[str, str | int | float]) -> Elements:
    measured, hard = str(options["measured"]), int(options["hard"])
    if not measured:
        return Elements()
    names = [element.name for element in elements()]
    path = measurement(Elements.name, measured)
    return Elements(strata_of(path, hard, names, len(WORDINGS), f"task.name={ElementNumbers.name}"))


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
