"""Procedures that a small policy lacks: `What is the pronic number of 7?`

What is missing is how such a number is found; whoever is told the rule applies it with one or two steps of
arithmetic, and can then do so for any number. The names are those of elementary number theory and everyday
arithmetic; the solutions and the agent's sentences are this package's own.

No two splits share a question: of each rule, numbers are held out. What a policy knows beforehand is measured
by an evaluation of this very task on its validation problems, and decides the strata, rule by rule.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from aipo.core.types import REASONING
from aipo.tasks.base import Ask, Problem, Split, TaskSpec, Wording
from aipo.tasks.words.measured import MeasuredTask, drawn, stated, strata_of

OPTIONS: Mapping[str, str | int] = {"measured": "", "hard": 6}
"""`measured`: the evaluation.jsonl of this task's validation problems for the policy, or the name of a
packaged one (`smollm2`); '': one stratum, `all`. `hard`: how many of the rules that never led to the right
number are trained and reported on; the others are `other`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How a number is found from n."""

    name: str
    """As a problem calls it."""
    words: str
    """The rule as a clause: `multiply n by n plus 1`."""
    steps: Callable[[int], str]
    """The arithmetic for n; its last number is the answer."""


RULES = (
    Rule("double", "multiply n by 2", lambda n: f"{n} * 2 = {n * 2}"),
    Rule("triple", "multiply n by 3", lambda n: f"{n} * 3 = {n * 3}"),
    Rule("square", "multiply n by itself", lambda n: f"{n} * {n} = {n * n}"),
    Rule("successor", "add 1 to n", lambda n: f"{n} + 1 = {n + 1}"),
    Rule("predecessor", "take 1 from n", lambda n: f"{n} - 1 = {n - 1}"),
    Rule("complement to one hundred", "take n from 100", lambda n: f"100 - {n} = {100 - n}"),
    Rule(
        "gnomon", "multiply n by 2 and take away 1", lambda n: f"{n} * 2 = {n * 2}. {n * 2} - 1 = {n * 2 - 1}"
    ),
    Rule("pronic number", "multiply n by n plus 1", lambda n: f"{n} * {n + 1} = {n * (n + 1)}"),
    Rule(
        "triangular number",
        "multiply n by n plus 1 and halve it",
        lambda n: f"{n} * {n + 1} = {n * (n + 1)}. {n * (n + 1)} / 2 = {n * (n + 1) // 2}",
    ),
    Rule(
        "lazy caterer number",
        "multiply n by n plus 1, halve it and add 1",
        lambda n: (
            f"{n} * {n + 1} = {n * (n + 1)}. {n * (n + 1)} / 2 = {n * (n + 1) // 2}. "
            f"{n * (n + 1) // 2} + 1 = {n * (n + 1) // 2 + 1}"
        ),
    ),
    Rule(
        "Lucas-Lehmer successor",
        "multiply n by itself and take away 2",
        lambda n: f"{n} * {n} = {n * n}. {n * n} - 2 = {n * n - 2}",
    ),
    Rule(
        "Collatz successor",
        "halve n if it is even, else multiply it by 3 and add 1",
        lambda n: f"{n} * 3 = {n * 3}. {n * 3} + 1 = {n * 3 + 1}" if n % 2 else f"{n} / 2 = {n // 2}",
    ),
    Rule(
        "Sophie Germain successor",
        "multiply n by 2 and add 1",
        lambda n: f"{n} * 2 = {n * 2}. {n * 2} + 1 = {n * 2 + 1}",
    ),
    Rule(
        "Euler lucky value",
        "multiply n by n minus 1 and add 41",
        lambda n: f"{n} * {n - 1} = {n * (n - 1)}. {n * (n - 1)} + 41 = {n * (n - 1) + 41}",
    ),
    Rule(
        "centred square number",
        "multiply n by itself, do the same with n minus 1, and add the two",
        lambda n: (
            f"{n} * {n} = {n * n}. {n - 1} * {n - 1} = {(n - 1) ** 2}. "
            f"{n * n} + {(n - 1) ** 2} = {n * n + (n - 1) ** 2}"
        ),
    ),
)
SAID = (
    "To find the {name} of n, {words}.",
    "You get the {name} of a number n like this: {words}.",
    "Think of n as the number. Then {words}; that is the {name}.",
)
"""How the agent puts it."""
NOISE = ("", "", "Good question. ", "Let me see. ", "This is easily confused with other things. ")
"""What it says before; two of five times nothing."""
_BY_NAME = {rule.name: rule for rule in RULES}


def rule_in(text: str) -> Rule | None:
    """Return the rule that a text names, the longest name first; None if it names none.

    >>> rule_in("How do I find a Pronic Number?").words, rule_in("help me")
    ('multiply n by n plus 1', None)
    """
    plain = " ".join(text.lower().split())
    names = sorted(_BY_NAME, key=len, reverse=True)
    return next((_BY_NAME[name] for name in names if name.lower() in plain), None)


class Rules(MeasuredTask):
    """Numbers found by a rule, by strata of what a policy knew of the rules."""

    name = "rules"
    names = tuple(_BY_NAME)
    numbers = range(3, 13)
    between = "/"
    held_out: ClassVar = {Split.TEST: slice(0, 3), Split.VALIDATION: slice(3, 5), Split.TRAIN: slice(5, None)}

    def problem(self, name: str, number: int, stratum: str) -> Problem:
        """Return the question for a rule's number."""
        rule = _BY_NAME[name]
        return Problem(
            id=f"{name}/{number}",
            text=f"What is the {name} of {number}?",
            gold=str(stated(rule.steps(number), -1)),
            stratum=stratum,
            solution=f"{SAID[0].format(name=name, words=rule.words)} {rule.steps(number)}.",
        )


def consulted(problem: Problem) -> Sequence[str | Ask]:
    """Return the expert's turn with the rule asked for.

    >>> consulted(Rules().problems(Split.TEST)[0])
    [Ask(agent='reasoning', request='how to find the successor'), ' 3 + 1 = 4.']
    """
    rule = rule_in(problem.text)
    assert rule is not None, problem
    n = int(problem.id.rpartition("/")[2])
    return [Ask(REASONING, f"how to find the {rule.name}"), f" {rule.steps(n)}."]


class RulesOracle:
    """`aipo.tasks.base.Oracle`: Reasoning says how the number is found that a request or the problem names.

    Which of its sentences it takes, and what it says before, depends on the problem and the request alone.
    """

    def __init__(self, wording: Wording) -> None:
        """An oracle that reads requests needs nothing of the protocol."""

    def feedback(self, agent: str, problem: str, rollout: str, request: str) -> str:
        """Return the sentence, '' where no rule is named. Raises `KeyError` for other agents."""
        if agent != REASONING:
            raise KeyError(agent)
        rule = rule_in(request) or rule_in(problem)
        if rule is None:
            return ""
        chance = int(drawn(f"{problem} {request}"), 16)
        said = SAID[chance % len(SAID)].format(name=rule.name, words=rule.words)
        return NOISE[chance // len(SAID) % len(NOISE)] + said


def _rules(options: Mapping[str, str | int | float]) -> Rules:
    least = len(Rules.numbers[Rules.held_out[Split.VALIDATION]])
    by = f"task.name={Rules.name} evaluate.split=validation"
    return Rules(strata_of(Rules.name, options, Rules.names, least, by))


RULES_SPEC = TaskSpec(
    name=Rules.name,
    title="Numbers found by a rule",
    make=lambda settings, sandbox: _rules(settings.options),
    kind="words",
    source="drawn by this package",
    max_response_tokens=64,
    oracle=RulesOracle,
    agents=(REASONING,),
    options=OPTIONS,
    consulted=consulted,
)
