"""How a chat template writes a tool call and its reply: read off the template itself, for no family by name.

A conversation with one call and one reply is rendered, and cut at the words that were put in. Nothing here
looks at a model's name.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aipo.consult.prompts import DATE, PromptError, applied

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ARGUMENT = "query"
"""The one argument of every agent's tool: what it is asked."""
NOBODY = "unknown"
"""Whose reply a notice is where the call named no agent, in templates that say who replies."""
_ASKED, _WHAT = "How many legs?", "legs of a spider"
_SAID = 'It "has"\neight legs.'
_CALL = "callabc12"
"""A call's id, nine letters as Mistral's templates want them."""
_THINKING = re.compile(r"<think(?:ing)?>\s*+(?:</think(?:ing)?>\s*+)?\Z")
_MARK = re.compile(r"</?[A-Za-z_]++>|<\|[^<>|\s]++\|>|\[/?[A-Z_]++\]")
_LEAST_STOP_CHARS = 3


class ToolTemplateError(PromptError):
    """The chat template offers no tools that aipo can read; the message names consult.format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolReply:
    """What stands around a reply's words."""

    before: str
    """From behind a call that the turn's end has not followed yet: that end, and what opens the reply."""
    ended: str
    """The same behind the turn's end, where the policy has written it."""
    after: str
    """What closes the reply and opens the policy's next turn."""
    escaped: bool
    """Whether the words stand as the inside of a JSON string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolTexts:
    """How one template writes calls and replies."""

    opening: str
    """What stands before a call's JSON object, as in `<tool_call>`; '' where nothing does."""
    closing: str
    """What stands behind it, as in `</tool_call>`; '' where only the turn's end does."""
    call: str
    """A call's whole text up to the turn's end."""
    name_key: str
    arguments_key: str
    first_key: str
    """Which of the two comes first, with what stands before it: `{"name"`."""
    ends: tuple[str, ...]
    """The texts of special tokens, one of which ends a turn."""
    replies: Mapping[str, ToolReply]
    """By agent; of `NOBODY` too."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Tags around calls and replies; in foreign text each must be made inert."""
        texts = [self.opening, self.closing]
        for reply in self.replies.values():
            texts += [reply.before, reply.after]
        return tuple(dict.fromkeys(mark for text in texts for mark in _MARK.findall(text)))

    def written(self, name: str, request: str) -> str:
        """Return the text of a call, as the template writes one."""
        what, whose = json.dumps(_WHAT), json.dumps(NOBODY)
        return self.call.replace(what, json.dumps(request, ensure_ascii=False)).replace(
            whose, json.dumps(name)
        )


def tool(name: str, about: str, what: str, needed: bool) -> dict[str, Any]:
    """Return the description of an agent for a template's `tools`."""
    parameters = {
        "type": "object",
        "properties": {ARGUMENT: {"type": "string", "description": what}},
        "required": [ARGUMENT] if needed else [],
    }
    return {
        "type": "function",
        "function": {"name": name, "description": about, "parameters": parameters},
    }


def tool_texts(
    tokenizer: "PreTrainedTokenizerBase", names: Sequence[str], ends: Iterable[int], date: str = DATE
) -> ToolTexts:
    """Return how the tokenizer's chat template writes calls of the tools `names`.

    `ends`: ids that end a turn. Raises `ToolTemplateError` for a template that offers no tools, or writes
    calls that are no JSON object with a name and arguments.
    """
    template = _Template(tokenizer, date)
    end_texts = [str(tokenizer.convert_ids_to_tokens(i)) for i in ends]
    specials = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    offered = template.text([_user()], names)
    if offered == template.text([_user()], ()) or not all(name in offered for name in names):
        raise template.refused("offers no tools")
    whole = template.conversation(NOBODY, names)
    place, end = _call_in(whole)
    if end < 0:
        raise template.refused(f"writes calls that are no JSON object with a name and arguments: {whole!r}")
    opened = template.text([_user()], names, add_generation_prompt=True)
    head = next((h for h in (opened, _THINKING.sub("", opened)) if whole.startswith(h)), None)
    if head is None or len(head) > place:
        raise template.refused(f"opens another turn for a call than for an answer: {whole!r}")
    behind = whole[end:]
    turn_end = min((t for t in end_texts if t in behind), key=behind.index, default=None)
    if turn_end is None:
        raise template.refused(f"ends no turn behind a call: {behind!r}")
    closing = behind.partition(turn_end)[0].strip()
    closing = closing if len(closing) >= _LEAST_STOP_CHARS else ""
    found = json.loads(whole[place:end])
    keys = {isinstance(value, dict): key for key, value in found.items() if _is_call_part(value)}
    raw = whole[place:end]
    return ToolTexts(
        opening=whole[len(head) : place].strip(),
        closing=closing,
        call=whole[len(head) : end] + behind.partition(turn_end)[0].rstrip(" "),
        name_key=keys[False],
        arguments_key=keys[True],
        first_key=raw[: raw.index('"', raw.index('"') + 1) + 1],
        ends=tuple(sorted({*specials, *end_texts} - {closing})),
        replies={name: template.reply(name, names, closing, turn_end) for name in (*names, NOBODY)},
    )


def _user() -> dict[str, Any]:
    return {"role": "user", "content": _ASKED}


def _is_call_part(value: object) -> bool:
    return value == NOBODY or value == {ARGUMENT: _WHAT}


def _call_in(whole: str) -> tuple[int, int]:
    """Return where the call's JSON object begins and ends; an end of -1: there is none."""
    decoder, asked = json.JSONDecoder(), whole.rfind(_WHAT)
    place = whole.find("{", whole.rfind(_ASKED, 0, max(asked, 0)))
    while 0 <= place < asked:
        try:
            found, end = decoder.raw_decode(whole, place)
        except ValueError:
            found, end = None, place
        values = found.values() if isinstance(found, dict) else ()
        if NOBODY in values and {ARGUMENT: _WHAT} in values:
            return place, end
        place = whole.find("{", place + 1)
    return place, -1


class _Template:
    """One chat template with its tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", date: str) -> None:
        self._tokenizer, self._date = tokenizer, date

    def refused(self, why: str) -> ToolTemplateError:
        """Return the error that says why this template cannot be used."""
        name = self._tokenizer.name_or_path or "policy.model"
        return ToolTemplateError(
            f"consult.format = 'tools': the chat template of {name!r} {why[:400]}; set consult.format = "
            "'tags', or name a model in policy.model whose template has tools"
        )

    def text(self, messages: Sequence[Mapping[str, Any]], names: Iterable[str], **how: Any) -> str:
        """Return a conversation's text, the tools of these names offered."""
        tools = [tool(name, "Answers.", "what is asked", True) for name in names]
        offered = {"tools": tools} if tools else {}
        return str(applied(self._tokenizer, messages, self._date, tokenize=False, **offered, **how))

    def conversation(self, name: str, names: Sequence[str]) -> str:
        """Return the text of a question, a call of `name` and its reply, with the next turn opened."""
        failure: PromptError | None = None
        for arguments in ({ARGUMENT: _WHAT}, json.dumps({ARGUMENT: _WHAT})):
            call = {"type": "function", "id": _CALL, "function": {"name": name, "arguments": arguments}}
            turn = {"role": "assistant", "content": "", "tool_calls": [call]}
            reply = {"role": "tool", "name": name, "tool_call_id": _CALL, "content": _SAID}
            try:
                found = self.text([_user(), turn, reply], names, add_generation_prompt=True)
            except (PromptError, TypeError) as error:
                failure = error if isinstance(error, PromptError) else failure
                continue
            if name != NOBODY or _call_in(found)[1] >= 0:
                return found
        if failure is not None:
            raise self.refused(f"writes no tool calls: {failure}")
        return found

    def reply(self, name: str, names: Sequence[str], closing: str, turn_end: str) -> ToolReply:
        """Return what stands around the words of one agent's reply."""
        whole = self.conversation(name, names)
        inside = json.dumps(_SAID)[1:-1]
        said = _SAID if _SAID in whole else inside
        called, found, after = whole.rpartition(said)
        behind = called[called.rfind(_WHAT) + len(_WHAT) :]
        if not found or turn_end not in behind or _CALL in behind:
            raise self.refused(f"writes no reply of a tool that aipo can read: {whole!r}")
        before = behind.partition(closing)[2] if closing else behind[behind.index(turn_end) :]
        return ToolReply(
            before=before, ended=behind.partition(turn_end)[2], after=after, escaped=said == inside
        )
