"""What tests of a rollout share: an agent that is told what to say, a consult, and one scripted rollout.

The policy's words are scripted (`support.engines.Script`); codec, protocol and tokenizers are real.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from aipo.agents.base import AgentQuery, AgentReply
from aipo.agents.named import AGENTS
from aipo.assembly.agents import protocol_of
from aipo.consult.codec import TagCodec
from aipo.consult.limits import Limits
from aipo.core.types import KNOWLEDGE, PAPER_AGENTS, Condition, ConsultOutcome
from aipo.rollout.episode import ConsultContext, Rollout, RolloutSpec, rollout
from support.engines import Script
from support.tokenizers import byte_level_bpe, word_level

ANSWERED, REFUSED, MALFORMED = (
    ConsultOutcome.ANSWERED,
    ConsultOutcome.REFUSED_LIMIT,
    ConsultOutcome.MALFORMED,
)
TIMEOUT, AGENT_ERROR, EMPTY = ConsultOutcome.TIMEOUT, ConsultOutcome.AGENT_ERROR, ConsultOutcome.EMPTY
PROTOCOL = protocol_of([AGENTS[name] for name in PAPER_AGENTS])
WORDS, BPE = word_level(), byte_level_bpe()
LIMITS = Limits(max_consultations=3, max_feedback_tokens=8, max_response_tokens=80)
PROMPT = "user dogs 2 ; assistant"
TOKENIZERS = pytest.mark.parametrize("tokenizer", [WORDS, BPE], ids=["word_level", "byte_level_bpe"])


@dataclass
class Answering:
    """An agent that answers as it is told to, and keeps what it was asked."""

    behave: Callable[[AgentQuery], Any] = lambda query: "spider 8"
    name: str = KNOWLEDGE
    asked: list[AgentQuery] = field(default_factory=list)

    async def answer(self, query: AgentQuery) -> AgentReply:
        self.asked.append(query)
        said = self.behave(query)
        if isinstance(said, BaseException):
            raise said
        if asyncio.iscoroutine(said):
            said = await said
        return AgentReply(text=said)


def consult_of(
    agent: Any, tokenizer: PreTrainedTokenizerFast = WORDS, limits: Limits = LIMITS
) -> ConsultContext:
    agents = dict.fromkeys(PAPER_AGENTS, agent)
    return ConsultContext(
        protocol=PROTOCOL,
        codec=TagCodec(tokenizer, PROTOCOL),
        limits=limits,
        agents=agents,
        agent_timeout_s=0.05,
    )


def ids_of(text: str, tokenizer: PreTrainedTokenizerFast = WORDS) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def spec_of(tokenizer: PreTrainedTokenizerFast = WORDS, **more: Any) -> RolloutSpec:
    values: dict[str, Any] = {"id": "r", "condition": Condition.CONSULTING, "seed": 1, **more}
    return RolloutSpec(problem="2 dogs", prompt_ids=ids_of(PROMPT, tokenizer), **values)


def produce(
    text: str,
    agent: Any = None,
    tokenizer: PreTrainedTokenizerFast = WORDS,
    limits: Limits = LIMITS,
    **more: Any,
) -> tuple[Rollout, Script]:
    script = Script(tokenizer, ids_of(text, tokenizer))
    consult = consult_of(agent or Answering(), tokenizer, limits)
    return asyncio.run(rollout(script, spec_of(tokenizer, **more), consult)), script
