"""Tool calls and their replies as token ids: the codec of `aipo.consult.tools`.

The policy's own ids are never encoded again: a reply is put behind what it wrote, and begins with the turn's
end unless the policy has written that itself.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aipo.consult.codec import Codec, CodecError, FeedbackBlock
from aipo.consult.tool_template import NOBODY
from aipo.consult.tools import ToolCalls
from aipo.core.types import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ToolCodec(Codec):
    """The codec of tool calls. What stands around an agent's words is SCAFFOLD: nobody learns to write it.

    Raises `CodecError` also where the tokenizer does not give back what its chat template writes.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", calls: ToolCalls) -> None:
        self._tokenizer = tokenizer
        self._calls, self._replies = calls, calls.texts.replies
        self._escaped = any(reply.escaped for reply in self._replies.values())
        self._around = {
            name: tuple(map(self._checked, (reply.before, reply.ended, reply.after)))
            for name, reply in self._replies.items()
        }
        super().__init__(tokenizer, {mark: self._encode(mark) for mark in calls.control_strings})

    def request_tags(self, agent: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Raise `CodecError`: a call's JSON has no two ends that a system could write around any words."""
        raise CodecError(
            f"consult.format = 'tools': the system can open no request of {agent}; set "
            "consult.elicit.share = 0"
        )

    def banned_sequences(self) -> tuple[tuple[int, ...], ...]:
        """Return the ids of what every call begins with, for the solo mode `banned`.

        Watertight where it is one id (`<tool_call>` of Qwen); text (Llama's `{"name"`) can also be sampled in
        another spelling.
        """
        return (tuple(self._encode(self._calls.banned_text)),)

    def _enclosed(self, content: Sequence[int], agent: str | None, turn_ended: bool) -> FeedbackBlock:
        before, ended, after = self._around[agent if agent in self._around else NOBODY]
        opening = ended if turn_ended else before
        span = (len(opening), len(opening) + len(content))
        return FeedbackBlock((*opening, *content, *after), span, Source.SCAFFOLD)

    def _agents(self) -> Sequence[str | None]:
        return tuple(self._around)

    def _written(self, reply: str) -> str:
        return json.dumps(reply, ensure_ascii=False)[1:-1] if self._escaped else reply

    def _cut(self, content: list[int], max_tokens: int) -> list[int]:
        kept = super()._cut(content, max_tokens)
        while self._escaped and _ends_inside_an_escape(self.text(kept)):
            kept = kept[:-1]
        return kept

    def _checked(self, text: str) -> tuple[int, ...]:
        ids = self._encode(text)
        if self.text(ids).strip() != text.strip():
            raise CodecError(
                f"what the chat template writes around a tool's reply, {text!r}, comes back from the "
                f"tokenizer as {self.text(ids)!r}; set consult.format = 'tags', or correct the tokenizer"
            )
        return tuple(ids)


def _ends_inside_an_escape(text: str) -> bool:
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1
