"""Protocol text to token ids and back: only here and in `tool_codec` do tags and feedback become ids.

Among an agent's words in a block there is no special token's id and no control string's text.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aipo.consult.protocol import NOTICES, Protocol, neutralise
from aipo.consult.text import NOT_TEXT
from aipo.core.types import ConsultOutcome, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST_TOKEN_CHARS = 64
"""Longer tokens exist (rows of dashes); a reply made of them is cut a little shorter than it could be."""
_SENTENCE_END = re.compile(
    r"(?<![.!?\u2026])(?<!^[0-9])(?<!^[0-9]{2})(?<![.!?:;,]\s[0-9])[.!?\u2026]++[\"')\]\u201d]*+(?=\s)"
    r"|[\u3002\uff01\uff1f]+",
    re.MULTILINE,
)
"""`3.5` ends no sentence, nor does the `1.` of a list."""
_WORD_END = re.compile(r"\S(?=\s)")
_ENCODING_PASSES = 3
"""A normaliser may make a tag of harmless text (`<VERIFY>` where case is folded), but only once."""


class CodecError(ValueError):
    """The tokenizer cannot carry the protocol; the message names the tag or notice and the fix."""


@dataclass(frozen=True, slots=True)
class FeedbackBlock:
    """What is inserted for a reply: what stands before the words, the words, what stands behind them."""

    ids: tuple[int, ...]
    content: tuple[int, int]
    """Half-open span of the agent's words inside `ids`."""
    around: Source = Source.FEEDBACK
    """Of the ids that are not the agent's words."""


class Codec(ABC):
    """Encodes and decodes a format for one tokenizer: what both formats share.

    A `call` is the name of the agent whose reply it is; `turn_ended`: the policy has ended its turn.
    Raises `CodecError` when the vocabulary lacks a word of a notice.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", control_ids: Mapping[str, Sequence[int]]
    ) -> None:
        """`control_ids`: the control strings of the format, and the ids of each."""
        self._tokenizer = tokenizer
        added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        specials = added | set(tokenizer.all_special_ids)
        self._never_content = specials | {ids[0] for ids in control_ids.values() if len(ids) == 1}
        special_strings = {str(tokenizer.convert_ids_to_tokens(i)) for i in specials}
        self.forbidden: tuple[str, ...] = tuple(sorted({*special_strings, *control_ids} - {""}))
        """Control strings and special tokens: what neither a problem's text nor a reply may hold as such."""
        self._notices = {outcome: self._checked_notice(words) for outcome, words in NOTICES.items()}

    @abstractmethod
    def _enclosed(self, content: Sequence[int], agent: str | None, turn_ended: bool) -> FeedbackBlock: ...

    @abstractmethod
    def request_tags(self, agent: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids that open and close a request, for the system to write. Raises `CodecError`."""

    @abstractmethod
    def banned_sequences(self) -> tuple[tuple[int, ...], ...]:
        """Return the ids of what opens a request, for the solo mode `banned`."""

    def _written(self, reply: str) -> str:
        """Return a reply as the format writes it."""
        return reply

    def feedback(
        self, reply: str, max_tokens: int, agent: str | None = None, *, turn_ended: bool = False
    ) -> FeedbackBlock:
        """Return the block for an agent's reply, its content cut to `max_tokens`.

        Forged tags and special tokens are made inert; what the vocabulary lacks is left out, so the content
        may be empty. A cut ends behind a sentence; where none fits, behind a word; where none fits, at the
        limit, but never inside a character. Raises `ValueError` for max_tokens < 0.
        """
        if max_tokens < 0:
            raise ValueError(f"max_tokens = {max_tokens} is negative; make it at least 0")
        # A reply of a million characters is not worth encoding: what cannot fit is not looked at.
        content = self._content(reply[: (max_tokens + 1) * _LONGEST_TOKEN_CHARS])
        if len(content) > max_tokens:
            content = self._cut(content, max_tokens)
        return self._enclosed(content, agent, turn_ended)

    def notice(
        self, outcome: ConsultOutcome, agent: str | None = None, *, turn_ended: bool = False
    ) -> tuple[int, ...]:
        """Return the ids of a whole notice. Raises `KeyError` for ANSWERED, which has none."""
        return self._enclosed(self._notices[outcome], agent, turn_ended).ids

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included, spaces as they are."""
        return str(
            self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    def token_at(self, ids: Sequence[int], char: int) -> int:
        """Return the index of the first token that reaches beyond position `char` of `text(ids)`.

        A token that holds part of a character reaches beyond it. Decodes about log2(len(ids)) prefixes.
        Raises `ValueError` for a position outside the text.
        """
        text = self.text(ids)
        if not 0 <= char < len(text):
            raise ValueError(f"char = {char} is outside a text of {len(text)} characters")

        def boundary(count: int) -> tuple[int, int]:
            """Tokens and characters of the last prefix of at most `count` tokens that splits no character."""
            while not text.startswith(prefix := self.text(ids[:count])):
                count -= 1
            return count, len(prefix)

        low, high = 0, len(ids)  # the answer is a boundary, at least low and below high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if boundary(middle)[1] <= char else (low, middle)
        return boundary(low)[0]

    def request_room(self, max_feedback_tokens: int) -> int:
        """Return the most tokens that one consultation inserts: a full block or the longest notice."""
        around = max(len(self._enclosed([], agent, False).ids) for agent in self._agents())
        return around + max(max_feedback_tokens, *map(len, self._notices.values()))

    def _agents(self) -> Sequence[str | None]:
        """Return the agents whose blocks may differ in length."""
        return (None,)

    def _cut(self, content: list[int], max_tokens: int) -> list[int]:
        """Return the longest beginning of at most `max_tokens` ids that ends well."""
        kept = content[:max_tokens]
        while kept and self.text(kept).endswith("\ufffd"):
            kept = kept[:-1]
        whole, within = self.text(content), len(self.text(kept))
        end = _last_end(_SENTENCE_END, whole, within) or _last_end(_WORD_END, whole, within)
        if not end:
            return kept
        count = self.token_at(content, end - 1)
        # The id that ends the sentence may hold a little more: ids are never encoded again.
        while count < len(kept) and not self._reaches(content[:count], whole, end):
            count += 1
        return content[:count]

    def _reaches(self, ids: list[int], whole: str, end: int) -> bool:
        text = self.text(ids)
        return len(text) >= end and whole.startswith(text)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _content(self, reply: str) -> list[int]:
        reply = self._written(reply.translate(NOT_TEXT))
        for _ in range(_ENCODING_PASSES):
            encoded = self._encode(neutralise(reply, self.forbidden))
            ids = [token for token in encoded if token not in self._never_content]
            reply = self.text(ids)
            if not any(string in reply for string in self.forbidden):
                return ids
        return []

    def _checked_notice(self, words: str) -> list[int]:
        ids = self._encode(words)
        if not ids or self._tokenizer.unk_token_id in ids:
            raise CodecError(
                f"notice {words!r} comes back from the tokenizer as {self.text(ids)!r}; add its words to the "
                f"vocabulary with tokenizer.add_tokens({words.split()})"
            )
        return ids


class TagCodec(Codec):
    """The codec of tags. Raises `CodecError` also when a tag does not survive encoding and decoding."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", protocol: Protocol) -> None:
        self._tokenizer = tokenizer
        self._protocol = protocol
        self._tag_ids = {tag: self._checked_tag(tag) for tag in protocol.control_strings}
        super().__init__(tokenizer, self._tag_ids)

    def request_tags(self, agent: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids of an agent's open and close tag. Raises `KeyError` for an agent without a tag."""
        protocol = self._protocol
        return self._tag_ids[protocol.request_open(agent)], self._tag_ids[protocol.request_close(agent)]

    def banned_sequences(self) -> tuple[tuple[int, ...], ...]:
        """Return the ids of every request's open tag, of enabled agents or not, for the solo mode `banned`.

        Watertight where each is one id; a tag of several tokens can also be sampled in another spelling.
        """
        return tuple(self._tag_ids[self._protocol.request_open(agent)] for agent in self._protocol.tags)

    def _enclosed(self, content: Sequence[int], agent: str | None, turn_ended: bool) -> FeedbackBlock:
        opening, closing = (
            self._tag_ids[tag] for tag in (self._protocol.feedback_open, self._protocol.feedback_close)
        )
        return FeedbackBlock((*opening, *content, *closing), (len(opening), len(opening) + len(content)))

    def _checked_tag(self, tag: str) -> tuple[int, ...]:
        ids = self._encode(tag)
        if self.text(ids).strip() != tag:
            raise CodecError(
                f"tag {tag} comes back from the tokenizer as {self.text(ids)!r}; add it as a special token "
                f"with tokenizer.add_special_tokens({{'additional_special_tokens': [{tag!r}]}}) or choose "
                "another tag under consult.tags (consult.feedback_tag)"
            )
        return tuple(ids)


def _last_end(pattern: "re.Pattern[str]", text: str, within: int) -> int:
    """Return where the last match that ends within so many characters ends; 0 if there is none."""
    return max((match.end() for match in pattern.finditer(text) if match.end() <= within), default=0)
