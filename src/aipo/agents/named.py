"""The agents by name: the paper's three, an entry each, beside how their replies are read.

Their prompts are the files of `prompts/`. An agent of your own is an `AgentSpec` that a recipe names as
`module:attribute`, or that a package declares as an entry point of the group `aipo.agents`.
"""

import re
from collections.abc import Iterable
from enum import StrEnum

from aipo.agents.prompting import packaged_prompt
from aipo.agents.replies import Reading, labelled, unreadable
from aipo.agents.spec import AgentSpec
from aipo.core.registry import Registry
from aipo.core.types import KNOWLEDGE, REASONING, VERIFY

AGENTS = Registry("agents.enabled", AgentSpec, "aipo.agents")


def in_order(names: Iterable[str]) -> list[str]:
    """Return names without doubles: those of registered agents first, in their order, then the others."""
    found = dict.fromkeys(names)
    return [*(name for name in AGENTS if name in found), *(name for name in found if name not in AGENTS)]


class ReasoningVerdict(StrEnum):
    """What Verify says of the reasoning so far; not to be confused with the verdict of grading."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNCLEAR = "unclear"


def _verify(text: str) -> Reading:
    fields = labelled(text, ("VERDICT", "WHERE", "WHY"))
    word = re.match(r"[\s*_`\"']*([A-Za-z]+)", fields.get("VERDICT", ""))
    if word is None or word[1].lower() not in list(ReasoningVerdict):
        raise unreadable("no line 'VERDICT: CORRECT', 'VERDICT: WRONG' or 'VERDICT: UNCLEAR'", text)
    verdict = ReasoningVerdict(word[1].lower())
    where, why = fields.get("WHERE", "").strip("\"'` "), fields.get("WHY", "")
    if verdict is ReasoningVerdict.CORRECT:
        return Reading("Correct so far.", approves=True)
    if verdict is ReasoningVerdict.UNCLEAR:
        return Reading(f"Unclear. {why}".strip())
    if not where and not why:
        raise unreadable("'VERDICT: WRONG' without 'WHERE:' or 'WHY:'", text)
    place = f'Wrong at "{where}".' if where else "Wrong."
    return Reading(f"{place} {why}".strip(), approves=False)


def _knowledge(text: str) -> Reading:
    fact = labelled(text, ("FACT",)).get("FACT")
    if fact is None:
        raise unreadable("no line 'FACT: …'", text)
    return Reading("" if fact.strip(" .*").upper() in ("NONE", "") else fact)


def _reasoning(text: str) -> Reading:
    hint = labelled(text, ("HINT",)).get("HINT")
    if not hint:
        raise unreadable("no line 'HINT: …'", text)
    return Reading(hint)


AGENTS.register(
    VERIFY,
    AgentSpec(
        name=VERIFY,
        tag="verify",
        offer="- $open what to check $close has your reasoning so far checked, and tells you where it goes "
        "wrong.",
        prompt=packaged_prompt(VERIFY),
        reader=_verify,
        canary="Did I restate the problem correctly?",
        rehearsal="is this right?",
        colour=("#0067a5", "#74bdf0"),
        approves=True,
    ),
)
AGENTS.register(
    KNOWLEDGE,
    AgentSpec(
        name=KNOWLEDGE,
        tag="knowledge",
        offer="- $open what you need to know $close gives you a fact, a definition or a theorem.",
        prompt=packaged_prompt(KNOWLEDGE),
        reader=_knowledge,
        canary="Which definition, formula or theorem does a problem like this rest on?",
        rehearsal="what do I need to know?",
        colour=("#00745a", "#4fc9a4"),
        must_be_asked=True,
    ),
)
AGENTS.register(
    REASONING,
    AgentSpec(
        name=REASONING,
        tag="reasoning",
        offer="- $open where you are stuck $close gives you a hint, a next step or a plan.",
        prompt=packaged_prompt(REASONING),
        reader=_reasoning,
        canary="What should I do next?",
        rehearsal="what is the next step?",
        colour=("#b04a00", "#f29b62"),
    ),
)
