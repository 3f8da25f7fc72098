"""The two system prompts, and the ids of a problem under one of them.

The packaged texts are in `prompts/`. Their version is in each file's first line, which no model reads;
`prompt_hash` identifies the exact text. A solo prompt holds no tag, and a problem's text holds no forbidden
string when it becomes ids. The words are this project's own [ours].
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from aipo.consult.formats import Format
from aipo.consult.packaged import packaged
from aipo.consult.protocol import neutralise
from aipo.core.types import Condition

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Turn = tuple[str, str]
"""A message: who speaks (`system`, `user`, `assistant`, `tool`), and the words."""

EXAMPLES_FOLLOW = "Examples:"
DATE = "2024-07-26"
"""Today, for templates that write it: every day the same, so that a run can go on tomorrow. Llama 3's own
default."""
_SYSTEM, _PROBLEM, _ANSWER = "Answer briefly.", "What is six times seven?", "It is 42."
_DIRECTIVES = ("%-d", "%-m", *(f"%{letter}" for letter in "aAdbBmyYHIpMSjFDc"))
_OPENED = re.compile(r"(<think>|<thinking>|\[THINK\])\s*\Z")


class PromptError(ValueError):
    """A prompt cannot be built; the message names the fix."""


def system_prompt(condition: Condition, protocol: Format, override: str | None) -> str:
    """Return a condition's system prompt; an override is taken word for word, '' means no system message.

    Worked consultations, where the protocol has some, end the consulting prompt, also an override of it.
    Without enabled agents there is nothing to offer: both conditions get the solo text. Raises `PromptError`
    for a solo override that holds a tag.
    """
    offers = condition is Condition.CONSULTING and bool(protocol.enabled)
    if offers and protocol.examples:
        offer = protocol.offer() if override is None else override
        shown = [f"Problem: {problem}\n{turn}" for problem, turn in protocol.examples]
        return "\n\n".join([offer, EXAMPLES_FOLLOW, *shown]).strip()
    if override is None:
        return protocol.offer() if offers else packaged("solo")
    tag = next((tag for tag in protocol.control_strings if tag in override), None)
    if condition is Condition.SOLO and tag:
        raise PromptError(f"consult.solo_prompt holds {tag}; a solo prompt offers no agents, take it out")
    return override


def prompt_hash(text: str) -> str:
    """Return the first 12 hexadecimal digits of the text's SHA-256."""
    return sha256(text.encode()).hexdigest()[:12]


def chat_prompt_ids(
    tokenizer: "PreTrainedTokenizerBase",
    system: str,
    problem: str | Sequence[Turn],
    forbidden: Iterable[str],
    *,
    tools: str = "",
    date: str = DATE,
) -> list[int]:
    """Return the prompt's ids up to the assistant's turn; what is forbidden in `problem` is made inert.

    A `problem` of several turns is a conversation; its own system message stands behind `system`. A template
    without a system message gets it at the head of the user's first. With system = '' there is none; some
    templates then add their own. `tools`: a JSON list of functions that the template offers. `date`
    (YYYY-MM-DD) is today for templates that write it. Raises `PromptError` for a tokenizer without a chat
    template, and for what the template refuses.
    """
    if not tokenizer.chat_template:
        raise PromptError(
            f"the tokenizer of {_named(tokenizer)} has no chat template; set policy.model to an instruct "
            "model, or set tokenizer.chat_template and save the tokenizer"
        )
    turns = [("user", problem)] if isinstance(problem, str) else list(problem)
    forbidden = tuple(forbidden)
    inert = [(role, neutralise(words, forbidden)) for role, words in turns]
    if inert[0][0] == "system":
        system = f"{system}\n\n{inert.pop(0)[1]}".strip()
    if system and takes_system(tokenizer):
        inert.insert(0, ("system", system))
    elif system:
        first = next(place for place, (role, _) in enumerate(inert) if role == "user")
        inert[first] = ("user", f"{system}\n\n{inert[first][1]}")
    offered = {"tools": json.loads(tools)} if tools else {}
    return list(_applied(tokenizer, inert, date, tokenize=True, add_generation_prompt=True, **offered))


def check_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise `PromptError` for a chat template that loses the problem or opens no assistant's turn."""
    asked = [("user", _PROBLEM)]
    opened = _applied(tokenizer, asked, DATE, tokenize=False, add_generation_prompt=True)
    fix = "correct tokenizer.chat_template and save the tokenizer, or use another instruct model"
    if _PROBLEM not in opened:
        raise PromptError(
            f"the chat template of {_named(tokenizer)} leaves the problem out of {opened[-80:]!r}; "
            f"does it take a message's content as a list of parts only? {fix}"
        )
    try:
        whole = _applied(tokenizer, [*asked, ("assistant", _ANSWER)], DATE, tokenize=False)
        closed = _applied(tokenizer, asked, DATE, tokenize=False)
    except PromptError:
        return  # a template for the first turn alone
    head, found, _ = whole.partition(_ANSWER)
    lacks = head.rstrip().removeprefix(opened.rstrip())
    if found and opened == closed and lacks and len(lacks) < len(head.rstrip()):
        raise PromptError(
            f"the chat template of {_named(tokenizer)} opens no assistant's turn: it ignores "
            f"add_generation_prompt, and {lacks.strip()!r} is missing behind the problem; {fix}"
        )


def dated(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Say whether the chat template writes a date."""
    return "strftime_now" in str(tokenizer.chat_template)


def thinking_opened(prompt: str) -> str:
    """Return the tag of thinking that a prompt ends with, '' where it ends otherwise.

    What the policy writes then goes on thinking; whoever grades it has to know.

    >>> thinking_opened("<|im_start|>assistant\\n<think>\\n"), thinking_opened("<|im_start|>assistant\\n")
    ('<think>', '')
    """
    found = _OPENED.search(prompt)
    return found[1] if found else ""


def takes_system(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Say whether a system message's words stand in what the chat template makes of it."""
    return _takes_system(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=8)
def _takes_system(tokenizer: "PreTrainedTokenizerBase", template: str) -> bool:
    try:
        asked = [("system", _SYSTEM), ("user", _PROBLEM)]
        return _SYSTEM in _applied(tokenizer, asked, DATE, tokenize=False, add_generation_prompt=True)
    except PromptError:
        return False


def _applied(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn], date: str, **how: Any) -> Any:
    messages = [{"role": role, "content": words} for role, words in turns]
    return applied(tokenizer, messages, date, **how)


def applied(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, Any]], date: str, **how: Any
) -> Any:
    """Apply the chat template, `date` being today.

    Raises `PromptError` where it refuses, or is no template.
    """
    from jinja2 import TemplateError

    if dated(tokenizer):
        how["chat_template"] = _clock(date) + tokenizer.get_chat_template(tools=how.get("tools"))
    try:
        return tokenizer.apply_chat_template([dict(m) for m in messages], return_dict=False, **how)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise PromptError(
            f"the chat template of {_named(tokenizer)} refuses messages of {roles}: {error}; correct "
            "tokenizer.chat_template and save the tokenizer, or use another instruct model"
        ) from error


def _clock(date: str) -> str:
    """Return a macro in the place of the templates' clock: no function can be handed to a template."""
    today = datetime.fromisoformat(date)
    said = "".join(f".replace({d!r}, {today.strftime(d)!r})" for d in _DIRECTIVES)
    return f"{{%- macro strftime_now(form) -%}}{{{{ form{said} }}}}{{%- endmacro -%}}"


def _named(tokenizer: "PreTrainedTokenizerBase") -> str:
    return repr(tokenizer.name_or_path or "policy.model")
