"""Whatever a policy writes and an agent says, a rollout is a valid stream within its limits."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from aipo.agents.base import AgentError, AgentQuery, AgentReply
from aipo.agents.named import AGENTS
from aipo.assembly.agents import protocol_of
from aipo.consult.codec import TagCodec
from aipo.consult.limits import Limits
from aipo.core.tokens import stripped_copy
from aipo.core.types import PAPER_AGENTS, VERIFY, Condition, ConsultOutcome, SoloMode, Source, StopReason
from aipo.rollout.episode import ConsultContext, Rollout, RolloutSpec, rollout
from support.engines import Script
from support.tokenizers import byte_fallback_bpe, byte_level_bpe, word_level

PROTOCOL = protocol_of([AGENTS[name] for name in PAPER_AGENTS])
TOKENIZERS = {build.__name__: build() for build in (word_level, byte_level_bpe, byte_fallback_bpe)}
CODECS = {name: TagCodec(tokenizer, PROTOCOL) for name, tokenizer in TOKENIZERS.items()}
REQUEST = st.sampled_from(PAPER_AGENTS).flatmap(
    lambda agent: st.sampled_from(["", " 8 ", " legs of a spider "]).map(lambda t: f"<{agent}>{t}</{agent}>")
)
PIECES = (
    st.sampled_from(PROTOCOL.control_strings)
    | REQUEST
    | st.sampled_from(["8", "legs", " ", "\n", ">", "<", "</ver", "ify>", "\u4f60", "\U0001f600"])
)
TEXTS = st.lists(PIECES, max_size=14).map(" ".join) | st.lists(PIECES, max_size=14).map("".join)
LIMITS = st.builds(
    lambda consultations, feedback, more: Limits(consultations, feedback, feedback + 5 + more),
    st.integers(0, 4),
    st.integers(1, 12),
    st.integers(0, 150),
)
REPLIES = st.lists(TEXTS | st.none(), min_size=1, max_size=3)


class Replying:
    """An agent that gives the replies in turn; None is a failure."""

    name = VERIFY

    def __init__(self, replies: list[str | None]) -> None:
        self._replies = replies
        self.asked = 0

    async def answer(self, query: AgentQuery) -> AgentReply:
        self.asked += 1
        reply = self._replies[self.asked % len(self._replies)]
        if reply is None:
            raise AgentError("none")
        return AgentReply(text=reply)


def script_ids(tokenizer: PreTrainedTokenizerFast, text: str, noise: list[int]) -> list[int]:
    """Ids that spell a text in the tokenizer's way, with any ids at all strewn in."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    for i, token in enumerate(noise):
        ids.insert((7 * i + token) % (len(ids) + 1), token % len(tokenizer))
    return ids


def produce(
    name: str, ids: list[int], agent: Replying, limits: Limits, condition: Condition
) -> tuple[Rollout, Script]:
    script = Script(TOKENIZERS[name], ids)
    consult = ConsultContext(
        protocol=PROTOCOL,
        codec=CODECS[name],
        limits=limits,
        agents=dict.fromkeys(PAPER_AGENTS, agent),
        agent_timeout_s=5.0,
    )
    spec = RolloutSpec(
        id="r",
        problem="2 dogs",
        prompt_ids=(5, 6, 7),
        condition=condition,
        seed=1,
        solo_mode=SoloMode.UNANSWERED,
    )
    return asyncio.run(rollout(script, spec, consult)), script


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=120)
@given(text=TEXTS, noise=st.lists(st.integers(0, 400), max_size=4), replies=REPLIES, limits=LIMITS)
def test_any_policy_and_any_replies_give_a_valid_stream_within_the_limits(
    name: str, text: str, noise: list[int], replies: list[str | None], limits: Limits
) -> None:
    agent = Replying(replies)
    ids = script_ids(TOKENIZERS[name], text, noise)
    produced, script = produce(name, ids, agent, limits, Condition.CONSULTING)
    stream, codec = produced.stream, CODECS[name]
    outcomes = [consultation.outcome for consultation in produced.consultations]

    assert len(stream) - stream.prompt_length <= limits.max_response_tokens
    said = [token for completion in script.completions for token in completion.ids]
    assert [t for t, s in zip(stream.ids, stream.sources, strict=True) if s is Source.POLICY] == said
    for request in script.requests:
        assert tuple(request.prefix_ids) == stream.ids[: len(request.prefix_ids)]

    blocks = [codec.text(s.ids) for s in stream.segments if s.source is Source.FEEDBACK]
    assert len(blocks) == outcomes.count(ConsultOutcome.ANSWERED)
    for block in blocks:
        assert [block.count(tag) for tag in ("<feedback>", "</feedback>")] == [1, 1]
        assert sum(block.count(tag) for tag in PROTOCOL.control_strings) == 2
    notices = sum(segment.source is Source.SCAFFOLD for segment in stream.segments)
    assert notices in (len(outcomes) - len(blocks), len(outcomes) - len(blocks) - 1)
    if notices < len(outcomes) - len(blocks):
        assert produced.stop is StopReason.LENGTH  # the last notice did not fit
    assert agent.asked <= limits.max_consultations
    assert produced.stop is not StopReason.STOP_STRING


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=60)
@given(text=TEXTS, replies=REPLIES, limits=LIMITS)
def test_dropped_spans_lie_in_order_and_cover_no_words_of_agents(
    name: str, text: str, replies: list[str | None], limits: Limits
) -> None:
    ids = TOKENIZERS[name].encode(text, add_special_tokens=False)
    produced, _ = produce(name, ids, Replying(replies), limits, Condition.CONSULTING)
    stream, codec = produced.stream, CODECS[name]
    edges = [edge for span in produced.consult_spans for edge in span]
    assert edges == sorted(edges) and all(stream.prompt_length <= edge <= len(stream) for edge in edges)
    copy = codec.text(stripped_copy(stream, produced.consult_spans, (5,)).ids)
    for consultation in produced.consultations:
        assert consultation.reply.strip() in copy
    sources = [stream.sources[i] for start, end in produced.consult_spans for i in range(start, end)]
    answered = sum(c.outcome is ConsultOutcome.ANSWERED for c in produced.consultations)
    assert sources.count(Source.FEEDBACK) == answered * len(codec.feedback("", 0).ids)
    assert sources.count(Source.SCAFFOLD) == stream.count(Source.SCAFFOLD)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=40)
@given(text=TEXTS, limits=LIMITS)
def test_a_solo_rollout_is_the_policys_own_whatever_it_writes(name: str, text: str, limits: Limits) -> None:
    ids = TOKENIZERS[name].encode(text, add_special_tokens=False)
    produced, script = produce(name, ids, Replying(["8"]), limits, Condition.SOLO)
    assert [segment.source for segment in produced.stream.segments] == [Source.PROMPT, Source.POLICY]
    assert produced.consultations == () and len(script.requests) == 1
    assert produced.response == produced.policy_text
