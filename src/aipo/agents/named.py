"""The agents by name: the paper's three, an entry each, beside how their replies are read.

Their prompts are the files of `prompts/`. An agent of your own is an `AgentSpec` that a recipe names as
`module:attribute`, or that a package declares as an entry point of the group `aipo.agents`.
"""

import re
from collections.abc import Iterable
from enum import StrEnum

from aipo.agents.labels import fields, labelled
from aipo.agents.prompting import packaged_prompt
from aipo.agents.replies import Reading, refuses, unreadable
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


_WORDS = {
    "correct": ReasoningVerdict.CORRECT,
    "right": ReasoningVerdict.CORRECT,
    "wrong": ReasoningVerdict.WRONG,
    "incorrect": ReasoningVerdict.WRONG,
    "unclear": ReasoningVerdict.UNCLEAR,
}
_HALF = frozenset({"partially", "partly", "mostly", "largely", "almost", "half"})
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
"""A word that is no command of LaTeX."""
_READ_CHARACTERS = 300
"""Of what stands behind VERDICT: a verdict that comes later is none."""
_BARE = re.compile(
    r"[\W_]{0,12}(correct|incorrect|wrong|unclear)[*_`\"' ]*(?:$|[.:;!\n])(.*)", re.I | re.DOTALL
)
"""A reply that is a verdict, and what is behind it, without any label."""
_NONE = re.compile(
    r"(?i:none|none known|n/?a|unknown|i (?:do not|don't) know)(?:$|\s*[.,:;(–—-])|NONE\b(?! of)"
)


def verdict_in(words: str) -> tuple[ReasoningVerdict, str] | None:
    """Return the verdict that words state, and what they say behind it; None for none, or for several.

    >>> verdict_in("WRONG: 3 + 4 is 7."), verdict_in("not correct"), verdict_in("CORRECT or WRONG or UNCLEAR")
    ((<ReasoningVerdict.WRONG: 'wrong'>, '3 + 4 is 7.'), (<ReasoningVerdict.WRONG: 'wrong'>, ''), None)
    """
    said = list(_WORD.finditer(words[:_READ_CHARACTERS]))
    places = [i for i, word in enumerate(said) if word[0].lower() in _WORDS]
    if not places:
        return None
    at = places[0]
    before = [word[0].lower() for word in said[:at]]
    stated_first = not set(before) - _HALF - {"not"}
    # A format that is repeated has `or` between its verdicts, and a sentence must not take one of them back.
    others = places[1:] if not stated_first or [w[0].lower() for w in said[at + 1 : at + 2]] == ["or"] else []
    verdict = _WORDS[said[at][0].lower()]
    if verdict is not ReasoningVerdict.UNCLEAR and any(
        _WORDS[said[i][0].lower()] is not verdict for i in others
    ):
        return None
    if set(before) & _HALF:
        verdict = ReasoningVerdict.UNCLEAR
    elif before[-1:] == ["not"]:
        unsaid = verdict is ReasoningVerdict.CORRECT
        verdict = ReasoningVerdict.WRONG if unsaid else ReasoningVerdict.UNCLEAR
    return verdict, words[said[at].end() :].strip().lstrip(".,:;!*_`\"'})$-–— ")


def _verify(text: str) -> Reading:
    found = fields(text, ("VERDICT", "WHERE", "WHY"))
    for index, field in enumerate(found):
        if field.label == "VERDICT" and (decided := verdict_in(field.words)):
            about = {other.label: other.words for other in (*reversed(found[index:]), *found[:index])}
            return _feedback(decided, about.get("WHERE", ""), about.get("WHY", ""), text)
    bare = _BARE.match(text)
    if bare and not found:
        return _feedback((_WORDS[bare[1].lower()], " ".join(bare[2].split())), "", "", text)
    raise unreadable("no line 'VERDICT: CORRECT', 'VERDICT: WRONG' or 'VERDICT: UNCLEAR'", text)


def _feedback(decided: tuple[ReasoningVerdict, str], where: str, why: str, text: str) -> Reading:
    """Return what the policy reads of a verdict."""
    verdict, behind = decided
    where, why = where.strip("\"'` "), why or behind
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
    if fact is None and _NONE.fullmatch(text.strip("\"'`*_.\n ")):
        return Reading("")
    if fact is None:
        raise unreadable("no line 'FACT: …'", text)
    bare = fact.strip("*_\"'` ")
    if refuses(bare):
        raise unreadable("the model refuses", text)
    return Reading("" if not bare.strip(".") or _NONE.match(bare) else fact)


def _reasoning(text: str) -> Reading:
    hint = labelled(text, ("HINT",)).get("HINT")
    if not hint:
        raise unreadable("no line 'HINT: …'", text)
    if refuses(hint):
        raise unreadable("the model refuses", text)
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
