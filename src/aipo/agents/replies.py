"""What an agent's model wrote, read: thinking left out, labelled lines found, the rest refused.

Each agent's own format is a reader in its entry (`aipo.agents.named`). A reply in no known format is an
`AgentError`, never feedback, and the work is linear in the reply.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from aipo.agents.base import AgentError, AgentFailure

_OPEN, _CLOSE = "<think>", "</think>"
_EXCERPT = 80
_LABEL = re.compile(r"[\s>#*_\-]{0,12}([A-Za-z]{1,12})[*_]{0,3}\s{0,3}:[*_]{0,3}(.*)", re.DOTALL)
"""`FACT: words`, also as models like to dress it up: `**FACT:** words`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reply says."""

    words: str
    """What the policy will read; empty: the agent has nothing to say."""
    approves: bool | None = None
    """Of an agent that checks (`AgentSpec.approves`): whether it found nothing wrong; None where it does not
    say."""


def read_reply(reader: Callable[[str], Reading], text: str) -> Reading:
    """Return what a reply says by an agent's reader; an empty text says nothing.

    The reader sees the reply without thinking and control characters. Raises `AgentError` (UNREADABLE), with
    an excerpt, for a reply that is not in the agent's format.

    >>> read_reply(Reading, "<think>...</think> It is 4.")
    Reading(words='It is 4.', approves=None)
    """
    if not text.strip():
        return Reading("")
    said = _printable(without_thinking(text)).strip()
    if not said:
        raise unreadable("nothing but thinking; raise max_reply_tokens or turn the model's thinking off")
    return reader(said)


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


def labelled(text: str, labels: tuple[str, ...]) -> dict[str, str]:
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


def unreadable(reason: str, text: str = "") -> AgentError:
    """Return the error of a reply in another format; `text`: the reply, whose beginning is shown."""
    shown = f"; it begins: {excerpt(text)}" if text else ""
    return AgentError(f"unreadable reply: {reason}{shown}", AgentFailure.UNREADABLE)
