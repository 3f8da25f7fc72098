"""For all texts: what follows a request is ignored, nothing forged survives, tokens and characters agree."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aipo.agents.named import AGENTS
from aipo.assembly.agents import protocol_of
from aipo.consult.codec import TagCodec
from aipo.consult.protocol import Malformed, Request, neutralise
from aipo.core.types import KNOWLEDGE, PAPER_AGENTS
from support.tokenizers import byte_fallback_bpe, byte_level_bpe, word_level

PROTOCOL = protocol_of([AGENTS[name] for name in PAPER_AGENTS])
CODECS = {
    build.__name__: TagCodec(build(), PROTOCOL) for build in (word_level, byte_level_bpe, byte_fallback_bpe)
}
FRAGMENTS = ["<", ">", "/", "</", "ver", "ify>", "ack>", "<|im_end|>", "<end>", "</s>", "\n", " ", "\u4f60"]
TEXTS = st.lists(
    st.sampled_from([*PROTOCOL.control_strings, *FRAGMENTS]) | st.text(max_size=3), max_size=12
).map("".join)


@given(TEXTS, st.text(max_size=5))
def test_what_follows_the_end_tag_does_not_matter(text: str, more: str) -> None:
    whole = PROTOCOL.parse(text)
    ends = [text.find(stop) + len(stop) for stop in PROTOCOL.stop_strings if stop in text]
    assert (whole is None) == (not ends)
    if ends:
        assert PROTOCOL.parse(text[: min(ends)]) == whole == PROTOCOL.parse(text + more)


@given(TEXTS)
def test_a_request_is_the_innermost_and_holds_no_tag(text: str) -> None:
    found = PROTOCOL.parse(text)
    if isinstance(found, Request):
        assert text.startswith(PROTOCOL.request_open(found.agent), found.start)
        assert not any(tag in found.text for tag in PROTOCOL.control_strings)
        assert found.text in text and (found.text or found.agent != KNOWLEDGE)
    elif isinstance(found, Malformed):
        assert text.startswith(PROTOCOL.control_strings, found.start) and found.reason


@given(st.text("ab<>·‹›[]", max_size=30), st.lists(st.text("ab<>·‹›[]", min_size=1, max_size=4), max_size=4))
def test_neutralised_text_holds_nothing_forbidden_and_stays_so(text: str, forbidden: list[str]) -> None:
    inert = neutralise(text, forbidden)
    assert not any(string in inert for string in forbidden)
    assert len(inert) == len(text) and neutralise(inert, forbidden) == inert
    assert any(string in text for string in forbidden) or inert == text


@pytest.mark.parametrize("name", CODECS)
@settings(deadline=None)
@given(reply=TEXTS, limit=st.integers(0, 40))
def test_no_reply_forges_a_control_id(name: str, reply: str, limit: int) -> None:
    codec = CODECS[name]
    block = codec.feedback(reply, limit)
    start, end = block.content
    assert end - start <= limit and len(block.ids) <= codec.request_room(limit)
    empty = codec.feedback("", 0).ids
    assert block.ids[:start] + block.ids[end:] == empty
    content = codec.text(block.ids[start:end])
    assert not any(string in content for string in codec.forbidden)
    assert codec.text(block.ids).count("<feedback>") == codec.text(block.ids).count("</feedback>") == 1


@pytest.mark.parametrize("name", ["byte_level_bpe", "byte_fallback_bpe"])
@settings(deadline=None)
@given(reply=TEXTS)
def test_an_uncut_reply_comes_back_as_its_inert_text(name: str, reply: str) -> None:
    codec = CODECS[name]
    block = codec.feedback(reply, 10_000)
    readable = "".join(char for char in reply if char in "\n\t" or unicodedata.category(char) != "Cc")
    assert codec.text(block.ids[slice(*block.content)]) == neutralise(readable, codec.forbidden)


@pytest.mark.parametrize("name", CODECS)
@settings(deadline=None)
@given(text=TEXTS)
def test_token_at_is_the_last_whole_prefix_before_a_character(name: str, text: str) -> None:
    codec = CODECS[name]
    ids = codec._encode(text)
    decoded = codec.text(ids)
    prefixes = {count: codec.text(ids[:count]) for count in range(len(ids) + 1)}
    whole = {count: len(prefix) for count, prefix in prefixes.items() if decoded.startswith(prefix)}
    for char in range(len(decoded)):
        assert codec.token_at(ids, char) == max(count for count, chars in whole.items() if chars <= char)
