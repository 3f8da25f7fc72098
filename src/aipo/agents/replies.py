"""What an agent's model wrote, read: its turn alone, thinking left out, the rest for the agent's own reader.

Each agent's own format is a reader in its entry (`aipo.agents.named`), of labelled fields
(`aipo.agents.labels`). A reply in no known format is an `AgentError`, never feedback, and the work is linear
in the reply.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from aipo.agents.base import AgentError, AgentFailure

_THINKING = re.compile(r"[<\[](/?)(?:think|thinking|thoughts?|reasoning|analysis)[>\]]", re.IGNORECASE)
_MARK = re.compile(r"<\|[^<>|\n]{1,24}\|>|</s>|<eos>|<end_of_turn>")
"""Special tokens of chat templates, where a server leaves them in the text."""
_MESSAGE = "<|message|>"
_REFUSAL = re.compile(
    r"(?:i'?m |i am )?(?:(?:very |so )?sorry(?:[,.;!]| but| to )|afraid i )|as an ai\b"
    r"|i (?:cannot|can'?t|am (?:unable|not able) to|won'?t|will not) (?:\w+ )?"
    r"(?:help|assist|provide|answer|give|do|share|comply|complete|offer|reveal|verify|discuss|fulfil)",
    re.IGNORECASE,
)
"""A refusal by its first words; "I can't tell where you are stuck, so begin with …" is none."""
_EXCERPT = 80


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
    said = _printable(without_thinking(of_the_turn(text))).strip()
    if not said:
        raise unreadable("nothing but thinking; raise max_reply_tokens or turn the model's thinking off")
    return reader(said)


def of_the_turn(text: str) -> str:
    """Return the agent's turn without the marks of chat templates around it, and without what follows it.

    Of several messages, as in OpenAI's Harmony format, the last one is the answer.

    >>> of_the_turn("<|channel|>analysis<|message|>Hm.<|end|><|channel|>final<|message|>It is 4.<|return|>")
    'It is 4.'
    >>> of_the_turn("It is 4.<|im_end|>\\n<|im_start|>user\\nThanks!")
    'It is 4.'
    """
    place = text.rfind(_MESSAGE) + len(_MESSAGE) if _MESSAGE in text else 0
    for mark in _MARK.finditer(text, place):
        if text[place : mark.start()].strip():
            return text[place : mark.start()]
        place = mark.end()
    return text[place:]


def without_thinking(text: str) -> str:
    """Return a reply without its `<think>…</think>` blocks, or those of other names that models give them.

    A block that is never closed is cut to its end. An end that was never opened, as chat templates that open
    it themselves leave it, ends a block that began with the reply.

    >>> without_thinking("<think>a</think>b<think>c</think>d"), without_thinking("a</think>b[THINK]c")
    ('bd', 'b')
    """
    kept: list[str] = []
    place, thinks, first = 0, False, True
    for tag in _THINKING.finditer(text):
        closes = bool(tag[1])
        if closes and (thinks or first):
            place, thinks = tag.end(), False
        elif not closes and not thinks:
            kept.append(text[place : tag.start()])
            thinks = True
        first = False
    return "".join([*kept, "" if thinks else text[place:]])


def refuses(words: str) -> bool:
    """Return whether words are a refusal, which is no feedback.

    >>> refuses("I'm sorry, but I can't provide that."), refuses("I is the identity matrix.")
    (True, False)
    """
    return _REFUSAL.match(words.replace("\u2019", "'")) is not None


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
