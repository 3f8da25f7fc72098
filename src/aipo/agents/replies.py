"""What an agent's model wrote, read: one format and one parser for each of the three agents.

Owns the reply formats that `prompts/` asks for. Must not know how a model is reached, tags or token ids.
Invariant: a reply in no known format is an `AgentError`, never feedback; the work is linear in the reply.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from aipo.agents.base import AgentError, AgentFailure
from aipo.core.types import KNOWLEDGE, REASONING, VERIFY

_OPEN, _CLOSE = "<think>", "</think>"
_EXCERPT = 80
_LABEL = re.compile(r"[\s>#*_\-]{0,12}([A-Za-z]{1,12})[*_]{0,3}\s{0,3}:[*_]{0,3}(.*)", re.DOTALL)
"""`FACT: words`, also as models like to dress it up: `**FACT:** words`."""


class ReasoningVerdict(StrEnum):
    """What Verify says of the reasoning so far; not to be confused with the verdict of grading."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reply says."""

    words: str
    """What the policy will read; empty: the agent has nothing to say."""
    approves: bool | None = None
    """Verify only: whether it found nothing wrong; None where it does not say."""


def read_reply(agent: str, text: str) -> Reading:
    """Return what an agent's reply says; an empty text says nothing.

    Raises `AgentError` (UNREADABLE), with an excerpt, for a reply that is not in the agent's format.

    >>> read_reply("verify", "<think>...</think>VERDICT: WRONG\\nWHERE: 2 + 2 = 5\\nWHY: It is 4.")
    Reading(words='Wrong at "2 + 2 = 5". It is 4.', approves=False)
    """
    if not text.strip():
        return Reading("")
    said = _printable(without_thinking(text)).strip()
    if not said:
        raise _unreadable("nothing but thinking; raise max_reply_tokens or turn the model's thinking off")
    return _READERS[agent](said)


def without_thinking(text: str) -> str:
    """Return a reply without its `<think>…</think>` blocks.

    A block that is never closed is cut to its end. An end that was never opened, as chat templates that open
    it themselves leave it, ends a block that began with the reply.

    >>> without_thinking("<think>a</think>b<think>c</think>d"), without_thinking("a</think>b<think>c")
    ('bd', 'b')
    """
    kept: list[str] = []
    place, first = 0, True
    while True:
        begin, end = text.find(_OPEN, place), text.find(_CLOSE, place)
        if first and end >= 0 and (begin < 0 or end < begin):
            place, first = end + len(_CLOSE), False
            continue
        first = False
        if begin < 0:
            return "".join([*kept, text[place:]])
        kept.append(text[place:begin])
        end = text.find(_CLOSE, begin)
        if end < 0:
            return "".join(kept)
        place = end + len(_CLOSE)


def _verify(text: str) -> Reading:
    fields = _fields(text, ("VERDICT", "WHERE", "WHY"))
    word = re.match(r"[\s*_`\"']*([A-Za-z]+)", fields.get("VERDICT", ""))
    if word is None or word[1].lower() not in list(ReasoningVerdict):
        raise _unreadable("no line 'VERDICT: CORRECT', 'VERDICT: WRONG' or 'VERDICT: UNCLEAR'", text)
    verdict = ReasoningVerdict(word[1].lower())
    where, why = fields.get("WHERE", "").strip("\"'` "), fields.get("WHY", "")
    if verdict is ReasoningVerdict.CORRECT:
        return Reading("Correct so far.", approves=True)
    if verdict is ReasoningVerdict.UNCLEAR:
        return Reading(f"Unclear. {why}".strip())
    if not where and not why:
        raise _unreadable("'VERDICT: WRONG' without 'WHERE:' or 'WHY:'", text)
    place = f'Wrong at "{where}".' if where else "Wrong."
    return Reading(f"{place} {why}".strip(), approves=False)


def _knowledge(text: str) -> Reading:
    fact = _fields(text, ("FACT",)).get("FACT")
    if fact is None:
        raise _unreadable("no line 'FACT: …'", text)
    return Reading("" if fact.strip(" .*").upper() in ("NONE", "") else fact)


def _reasoning(text: str) -> Reading:
    hint = _fields(text, ("HINT",)).get("HINT")
    if not hint:
        raise _unreadable("no line 'HINT: …'", text)
    return Reading(hint)


_READERS: Mapping[str, Callable[[str], Reading]] = MappingProxyType(
    {VERIFY: _verify, KNOWLEDGE: _knowledge, REASONING: _reasoning}
)


def _fields(text: str, labels: tuple[str, ...]) -> dict[str, str]:
    """Return what stands behind each label, up to the next; the first of two equal labels counts."""
    found: dict[str, list[str]] = {}
    current: list[str] = []  # what stands before the first label is not read
    for line in text.splitlines():
        match = _LABEL.match(line)
        label = match[1].upper() if match else ""
        if match and label in labels:
            current = [match[2]]
            if label not in found:
                found[label] = current
        else:
            current.append(line)
    return {label: " ".join(" ".join(lines).split()) for label, lines in found.items()}


def _printable(text: str) -> str:
    """Drop control characters, which no honest reply needs, and make every kind of space a plain one."""
    return "".join(char if char.isprintable() or char == "\n" else " " * char.isspace() for char in text)


def excerpt(text: str) -> str:
    """Return the beginning of foreign text, on one line and without control characters."""
    line = " ".join(_printable(text[: 4 * _EXCERPT]).split())
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 1] + "…"


def _unreadable(reason: str, text: str = "") -> AgentError:
    shown = f"; it begins: {excerpt(text)}" if text else ""
    return AgentError(f"unreadable reply: {reason}{shown}", AgentFailure.UNREADABLE)
