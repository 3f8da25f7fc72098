"""What becomes of an agent's answer before the policy reads it: the leak guard, forged tags, the limit.

What is inserted is a few segments in a row; of them only the agent's words are ever the agent's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from aipo.agents.base import Agent
from aipo.consult.codec import Codec, FeedbackBlock
from aipo.consult.formats import Format
from aipo.consult.limits import Limits
from aipo.core.tokens import Segment
from aipo.core.types import ConsultOutcome, LeakPolicy, Source
from aipo.rollout.asking import Answer
from aipo.rollout.leaks import Hide, guarded


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsultContext:
    """Protocol, limits and agents: what a consultation needs, the same for all rollouts of a run."""

    protocol: Format
    codec: Codec
    limits: Limits
    agents: Mapping[str, Agent]
    agent_timeout_s: float
    leak_policy: LeakPolicy = LeakPolicy.ALLOW
    checker: Agent | None = None
    """Of `agents`, whoever may approve of a copy (`AgentSpec.approves`)."""


@dataclass(frozen=True, slots=True)
class Insertion:
    """What the policy reads of a reply."""

    segments: tuple[Segment, ...]
    words: tuple[int, int]
    """Half-open span of the agent's own words, counted from the first segment's beginning."""

    def __len__(self) -> int:
        return sum(len(segment.ids) for segment in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessedReply:
    """An answer after the leak guard, neutralising and cutting."""

    outcome: ConsultOutcome
    detail: str
    written_tokens: int = 0
    leaked: bool = False
    reply: str = ""
    insertion: Insertion | None = None


def processed(
    answer: Answer, consult: ConsultContext, hide: Hide | None, agent: str, turn_ended: bool
) -> ProcessedReply:
    """Pass an agent's answer through the leak guard, neutralise it and cut it.

    `turn_ended`: the request ended the policy's turn.
    """
    if answer.reply is None:
        return ProcessedReply(outcome=answer.outcome, detail=answer.detail)
    text = answer.reply.text
    guard = guarded(text, hide, consult.leak_policy)
    limit = consult.limits.max_feedback_tokens
    written = consult.codec.feedback(text, limit, agent, turn_ended=turn_ended)
    block = (
        written
        if guard.text == text
        else consult.codec.feedback(guard.text, limit, agent, turn_ended=turn_ended)
    )
    tokens = written.content[1] - written.content[0]
    begin, end = block.content
    if begin == end:
        why = (
            "it states the answer" if guard.leaked else "nothing of the reply can be said in this vocabulary"
        )
        return ProcessedReply(
            outcome=ConsultOutcome.EMPTY, detail=why, written_tokens=tokens, leaked=guard.leaked
        )
    log_q = _log_q(block, answer.reply.log_probs) if block is written else ()
    return ProcessedReply(
        outcome=answer.outcome,
        detail="",
        written_tokens=tokens,
        leaked=guard.leaked,
        reply=consult.codec.text(block.ids[begin:end]),
        insertion=Insertion(_segments(block, log_q), block.content),
    )


def _segments(block: FeedbackBlock, log_q: tuple[float, ...]) -> tuple[Segment, ...]:
    """Return the block as segments: one where what stands around the words is the agent's too, else three."""
    if block.around is Source.FEEDBACK:
        return (Segment(Source.FEEDBACK, block.ids, log_q),)
    begin, end = block.content
    return (
        Segment(block.around, block.ids[:begin]),
        Segment(Source.FEEDBACK, block.ids[begin:end], log_q[begin:end]),
        Segment(block.around, block.ids[end:]),
    )


def _log_q(block: FeedbackBlock, reported: tuple[float, ...]) -> tuple[float, ...]:
    """Return the agent's log-probability of each token of a block; 0 at the tags, which the system wrote.

    Degenerate case: () if the agent reports none, or fewer than the policy reads.
    """
    begin, end = block.content
    if not reported or len(reported) < end - begin:
        return ()
    return (0.0,) * begin + reported[: end - begin] + (0.0,) * (len(block.ids) - end)
