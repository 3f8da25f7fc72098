"""What the warm start imitates: worked easy problems and fictional operators, with and without consultations.

A hard product never occurs, and neither does its plan. Alone there are easy problems only, of one line: the
policy never sees itself write that more lines follow. With agents there are also fictional operators, whose
plan is drawn anew for each problem from every kind of line; each line is asked for, and what in it decides
the plan (the first word of either number, the mark) is never a target: there is nothing to learn. What
follows from that is one: the rest of a number is copied, from wherever it stands, and the value computed. So
all that is new about a hard product is the plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from random import Random

from aipo.core.types import KNOWLEDGE, REASONING, VERIFY, Condition
from aipo.tasks.base import Wording
from aipo.tasks.cpu.curriculum import Trace
from aipo.tasks.cpu.products.notation import (
    EQUALS,
    FACTOR_DIGITS,
    FICTIONAL,
    LARGEST,
    MAX_LINES,
    OK,
    PLUS,
    SUM_DIGITS,
    TIMES,
    WRONG,
    Operation,
    final_line,
    lines,
    operation_words,
    problem_text,
    vocabulary,
)
from aipo.tasks.cpu.products.task import (
    EASY_STRATA,
    ONE_BY_ONE,
    SUM,
    TWO_BY_ONE,
    TWO_BY_TENS,
    held_out_questions,
    question_of,
)


class Kind(StrEnum):
    """What a line of a fictional operator's plan computes; `left` and `right` are the problem's factors."""

    LEFT_TIMES_ONES = "left x ones of right"
    LEFT_TIMES_TENS = "left x tens of right"
    RIGHT_TIMES_ONES = "right x ones of left"
    RIGHT_TIMES_TENS = "right x tens of left"
    SUM_OF_FACTORS = "left + right"
    SUM_OF_LAST_TWO = "sum of the last two values, the factors counted"


HARD_PLANS = (
    (Kind.LEFT_TIMES_ONES, Kind.LEFT_TIMES_TENS, Kind.SUM_OF_LAST_TWO),
    (Kind.RIGHT_TIMES_ONES, Kind.RIGHT_TIMES_TENS, Kind.SUM_OF_LAST_TWO),
)
"""The plan of a hard product, and the same with the factors exchanged: no fictional operator has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """How often a trace shows what."""

    fictional_share: float = 0.4
    """Share of fictional operators among problems with agents."""
    consult_known: float = 0.35
    """Share of easy problems that consult all the same: shows how, and keeps the habit from being all or
    nothing. Alone the request goes unanswered and the policy replies to itself."""
    knowledge: float = 0.3
    """Share of those that ask Knowledge for the value; the others ask Reasoning for the line."""
    verify: float = 0.1
    """Share of finished lines that are put to the Verify Agent."""
    mistake: float = 0.3
    """Share of those that hold a mistake, which Verify corrects. The mistake is never a target."""
    refused: float = 0.05
    """Share of consultations on easy problems, with agents, that are refused."""
    max_consultations: int = 3


_EASY_WEIGHTS = {ONE_BY_ONE: 1, TWO_BY_ONE: 4, TWO_BY_TENS: 4, SUM: 4}
"""Shares of the easy strata; small ones are learnt from little."""


class ProductsCurriculum:
    """`aipo.tasks.cpu.curriculum.Curriculum` of the products task."""

    def __init__(self, max_consultations: int, wording: Wording) -> None:
        self._wording = wording
        self._settings = TraceSettings(max_consultations=max_consultations)

    def vocabulary(self) -> list[str]:
        """Return every word of problems, solutions and feedback, in a fixed order."""
        return vocabulary()

    def trace(self, rng: Random) -> Trace:
        """Return a random trace; no held-out question is ever drawn."""
        return trace(rng, self._settings, self._wording)


def trace(rng: Random, settings: TraceSettings, wording: Wording) -> Trace:
    """Return a random trace; no held-out question is ever drawn."""
    condition = rng.choice(list(Condition))
    writer = _Writer(rng, settings, wording, condition)
    most_lines = min(MAX_LINES, settings.max_consultations)
    if condition is Condition.CONSULTING and most_lines and rng.random() < settings.fictional_share:
        problem, steps = _fictional(rng, most_lines)
        return Trace(problem_text(problem), condition, writer.fictional(steps))
    problem = _easy(rng)
    return Trace(problem_text(problem), condition, writer.easy(problem))


def _easy(rng: Random) -> Operation:
    (stratum,) = rng.choices(EASY_STRATA, [_EASY_WEIGHTS[name] for name in EASY_STRATA])
    if stratum == SUM:
        return _sum(rng)
    left = rng.randint(1, 9) if stratum == ONE_BY_ONE else rng.randint(10, 99)
    # By 0 now and then: a policy that splits every second factor, 4 into 4 and 00, must know such a line.
    right = rng.randint(1, 9) * 10 if stratum == TWO_BY_TENS else rng.randint(0, 9)
    return Operation(left, TIMES, right)


def _sum(rng: Random) -> Operation:
    """Return a sum of terms of one to four digits each: the last line of a plan adds numbers of any
    length."""
    while True:
        left, right = (rng.randrange(10 ** rng.randint(1, SUM_DIGITS)) for _ in range(2))
        operation = Operation(left, PLUS, right)
        if operation.value <= LARGEST and question_of(operation) not in held_out_questions():
            return operation


def _fictional(rng: Random, most_lines: int) -> tuple[Operation, list[Operation]]:
    """Return a problem with a fictional operator and what its lines compute."""
    while True:
        problem = Operation(rng.randint(1, 99), rng.choice(FICTIONAL), rng.randint(1, 99))
        kinds = tuple(rng.choices(list(Kind), k=rng.randint(1, most_lines)))
        steps = steps_of(kinds, problem)
        # Compared by what they compute: with equal digits other kinds of lines can come to the same.
        is_hard = any(steps == steps_of(hard, problem) for hard in HARD_PLANS)
        if not is_hard and all(step.value <= LARGEST for step in steps):
            return problem, steps


def steps_of(kinds: Sequence[Kind], problem: Operation) -> list[Operation]:
    """Return what the lines of a plan compute.

    >>> plan = (Kind.RIGHT_TIMES_TENS, Kind.SUM_OF_LAST_TWO)
    >>> [problem_text(step) for step in steps_of(plan, Operation(47, "blobam", 36))]
    ['6 3 * 0 4', '6 3 0 0 + 0 4 4 1']
    """
    values = [problem.left, problem.right]
    steps = []
    for kind in kinds:
        steps.append(_step(kind, problem, values))
        values.append(steps[-1].value)
    return steps


def _step(kind: Kind, problem: Operation, values: Sequence[int]) -> Operation:
    left, right = problem.left, problem.right
    match kind:
        case Kind.LEFT_TIMES_ONES:
            return Operation(left, TIMES, right % 10)
        case Kind.LEFT_TIMES_TENS:
            return Operation(left, TIMES, right - right % 10)
        case Kind.RIGHT_TIMES_ONES:
            return Operation(right, TIMES, left % 10)
        case Kind.RIGHT_TIMES_TENS:
            return Operation(right, TIMES, left - left % 10)
        case Kind.SUM_OF_FACTORS:
            return Operation(left, PLUS, right)
        case Kind.SUM_OF_LAST_TWO:
            return Operation(values[-2], PLUS, values[-1])


def _by_what_decides(words: Sequence[str]) -> list[tuple[str, bool]]:
    """Return a line in pieces; what decides the plan is no target.

    >>> _by_what_decides("2 8 2 0 + 0 1 4 1 = 2 9 6 1 done".split())
    [('2', False), ('8 2 0 +', True), ('0', False), ('1 4 1 = 2 9 6 1', True), ('done', False)]
    """
    second = next(i for i, word in enumerate(words) if word in (TIMES, PLUS)) + 1
    edges = [0, 1, second, second + 1, len(words) - 1, len(words)]
    pieces = [" ".join(words[begin:end]) for begin, end in pairwise(edges)]
    return [(piece, i % 2 == 1) for i, piece in enumerate(pieces)]


class _Writer:
    """Writes one trace, within the consultations that are left."""

    def __init__(self, rng: Random, settings: TraceSettings, wording: Wording, condition: Condition) -> None:
        self._rng, self._settings, self._wording = rng, settings, wording
        self._alone = condition is Condition.SOLO
        self._left = settings.max_consultations
        self._pieces: list[tuple[str, bool]] = []

    def fictional(self, steps: Sequence[Operation]) -> tuple[tuple[str, bool], ...]:
        """Return the turn on a fictional operator: every line is Reasoning's."""
        rows = lines(steps)
        for index, words in enumerate(rows):
            self._consult(REASONING, [], _by_what_decides(words))
            if self._left > len(rows) - index - 1 and self._chance(self._settings.verify):
                self._consult(VERIFY, [], [(OK, True)])
        self._say(final_line(steps[-1].value))
        return tuple(self._pieces)

    def easy(self, problem: Operation) -> tuple[tuple[str, bool], ...]:
        """Return the turn on an easy problem: one line, the policy's own or asked for."""
        (words,) = lines([problem])
        if not self._left or not self._chance(self._settings.consult_known):
            self._say(words)
        elif not self._chance(self._settings.knowledge):
            self._ask(REASONING, [], words)
        else:
            begun = words.index(EQUALS) + 1
            self._say(words[:begun])
            self._ask(KNOWLEDGE, operation_words(problem), words[begun:-1])
            self._say(words[-1:])
        if self._left and self._chance(self._settings.verify):
            self._verify(words)
        self._say(final_line(problem.value))
        return tuple(self._pieces)

    def _ask(self, agent: str, request: Sequence[str], reply: Sequence[str]) -> None:
        """Consult on what the policy knows; if refused, it says by itself what it would have heard."""
        if not self._alone and self._chance(self._settings.refused):
            opened, closed = self._wording.request(agent)
            self._say([opened, *request, closed])
            self._pieces.append((self._wording.refusal, False))
            self._say(reply)
            return
        self._consult(agent, request, [(" ".join(reply), True)])

    def _verify(self, words: list[str]) -> None:
        """Put the line to Verify; it may then hold a mistake if the policy wrote it by itself."""
        reply = [OK]
        if self._chance(self._settings.mistake) and self._pieces[-1] == (" ".join(words), True):
            self._pieces[-1] = (" ".join(self._mistaken(words)), False)
            reply = [WRONG, *words]
        self._consult(VERIFY, [], [(" ".join(reply), True)])

    def _mistaken(self, words: list[str]) -> list[str]:
        # Not in the second factor, where another digit could make a hard product of an easy one.
        value = range(words.index(EQUALS) + 1, len(words) - 1)
        place = self._rng.choice([*range(FACTOR_DIGITS), *value])
        other = self._rng.choice([d for d in "0123456789" if d != words[place]])
        return [*words[:place], other, *words[place + 1 :]]

    def _consult(self, agent: str, request: Sequence[str], reply: Sequence[tuple[str, bool]]) -> None:
        self._left -= 1
        opened, closed = self._wording.request(agent)
        self._say([opened, *request, closed])
        self._say([f"<{self._wording.feedback}>"])
        self._pieces += reply
        self._say([f"</{self._wording.feedback}>"])

    def _say(self, words: Sequence[str]) -> None:
        self._pieces.append((" ".join(words), True))

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share
