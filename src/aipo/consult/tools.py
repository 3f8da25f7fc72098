"""Consulting by tool calls: requests are the calls that the model's own chat template defines.

The template offers the agents, one tool each, and says how a call is written (`aipo.consult.tool_template`).
Only what the policy sampled is parsed; its JSON is hostile until it has been read.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aipo.consult.packaged import packaged
from aipo.consult.requests import Malformed, Request
from aipo.consult.text import NOT_TEXT
from aipo.consult.tool_template import ARGUMENT, ToolTexts, tool

_PARTS = re.compile(r"^[-\s]*+\$open(.*?)\$close(.*)\Z", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class ToolCalls:
    """The tool calls of a run, `aipo.consult.formats.Format`."""

    texts: ToolTexts
    enabled: tuple[str, ...]
    must_be_asked: frozenset[str] = frozenset()
    """Agents to whom a call without words is malformed."""
    offers: Mapping[str, str] = field(default_factory=dict)
    """By agent, in order: the line of the prompt with tags, of which the tool's description is made."""
    examples: tuple[tuple[str, str], ...] = ()

    @property
    def tools(self) -> str:
        """The agents as functions, a JSON list; '' where there is none."""
        listed = [self._tool(name, offer) for name, offer in self.offers.items()]
        return json.dumps(listed, ensure_ascii=False) if listed else ""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """What closes a call; none where only the turn's end does."""
        return (self.texts.closing,) if self.texts.closing and self.enabled else ()

    @property
    def ends_with_turn(self) -> bool:
        """A turn may end with a call."""
        return bool(self.enabled)

    @property
    def control_strings(self) -> tuple[str, ...]:
        """The tags around calls and replies; what opens turns is a special token."""
        return self.texts.marks

    @property
    def banned_text(self) -> str:
        """What every call begins with."""
        return self.texts.opening or self.texts.first_key

    def parse(self, text: str) -> Request | Malformed | None:
        """Return the first call in what the policy sampled since the last insertion; None if it made none.

        With a closing text, the first one decides: the call stands between the last opening text before it
        and it. A call that is opened and not closed when the turn ends is malformed. Without a closing text a
        call is the JSON object at the end of the turn, on a line of its own.
        """
        if not self.texts.closing:
            return self._at_the_end(text)
        opening, closing = self.texts.opening, self.texts.closing
        end = text.find(closing)
        if end < 0:
            start = text.find(opening)
            return Malformed(f"{opening} is not closed", start) if start >= 0 and opening else None
        start = text.rfind(opening, 0, end)
        if start < 0:
            return Malformed(f"{closing} closes nothing", end)
        body = text[start + len(opening) : end].strip()
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            return Malformed("the call is no JSON object", start)
        return self._read(found, start)

    def written(self, agent: str, request: str) -> str:
        """Return a call as the template writes it; the turn's end is not in it."""
        return self.texts.written(agent, request.strip())

    def offer(self) -> str:
        """Return the packaged prompt; what the tools are the template says."""
        return packaged("consulting_tools")

    def _tool(self, name: str, offer: str) -> dict[str, Any]:
        found = _PARTS.match(offer)
        what, about = (found[1].strip(), found[2].strip()) if found else ("what you ask", offer)
        return tool(name, about[:1].upper() + about[1:], what, name in self.must_be_asked)

    def _at_the_end(self, text: str) -> Request | Malformed | None:
        end = next((end for end in self.texts.ends if text.endswith(end)), "")
        text = text.removesuffix(end).rstrip()
        found = self._last_object().search(text)
        if found is None:
            return None
        start = found.start(1)
        try:
            call, stop = json.JSONDecoder().raw_decode(text, found.start(2))
        except (ValueError, RecursionError):
            meant = all(f'"{key}"' in text for key in (self.texts.name_key, self.texts.arguments_key))
            return Malformed("the call is no JSON object", start) if meant else None
        if self.texts.arguments_key not in call:
            return None  # an answer in JSON
        if stop < len(text):
            return Malformed("words behind the call", start)
        return self._read(call, start)

    def _last_object(self) -> "re.Pattern[str]":
        """Return the pattern of a line that a call begins, perhaps behind the template's mark or its own."""
        opening = re.escape(self.texts.opening) + "|" if self.texts.opening else ""
        keys = f"{re.escape(self.texts.name_key)}|{re.escape(self.texts.arguments_key)}"
        return re.compile(
            rf'^[ \t]*+((?:(?:{opening}<\|[^<>|\s]++\|>)[ \t]*+)?+(\{{\s*+"(?:{keys})"))', re.MULTILINE
        )

    def _read(self, call: object, start: int) -> Request | Malformed:
        """Return what a decoded call asks, and whom."""
        if not isinstance(call, dict):
            return Malformed("the call is no JSON object", start)
        name, arguments = call.get(self.texts.name_key), call.get(self.texts.arguments_key)
        if not isinstance(name, str) or name not in self.enabled:
            return Malformed("the call names no tool that there is", start)
        asked = arguments.get(ARGUMENT, "") if isinstance(arguments, dict) else None
        if not isinstance(asked, str):
            return Malformed(f"the call of {name} has no words in {ARGUMENT!r}", start)
        # JSON spells what no tokenizer writes: halves of characters, control characters.
        words = asked.translate(NOT_TEXT).strip()
        if not words and (name in self.must_be_asked or (arguments and ARGUMENT not in arguments)):
            return Malformed(f"the call of {name} has no words in {ARGUMENT!r}", start)
        return Request(name, words, start)
