"""What the benchmarks with consultations share: a policy that consults now and then, and an agent that takes
its time.

The policy is the reference's model with random
weights, whose last logits are shifted by a table over the last token, so that a request begins after any word
with probability 1/ASK_EVERY and the end with 1/END_EVERY. Every draw is the sampler's own. An agent's
latency depends on its rollout and on which consultation it is, on nothing else.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from aipo.agents.base import AgentQuery, AgentReply
from aipo.consult.codec import TagCodec
from aipo.consult.limits import Limits
from aipo.consult.protocol import Protocol
from aipo.core.types import KNOWLEDGE, Condition
from aipo.engines.transformers import TransformersEngine
from aipo.rollout.episode import ConsultContext, Rollout, RolloutSpec, rollout
from measure import END, VOCABULARY, policy, words

ASK_EVERY, END_EVERY = 30, 80
MEDIAN_S, SIGMA, LONGEST_S = 0.3, 0.8, 3.0
"""Latency: log-normal, cut at 3 s; one in 500 is."""
PROMPT_TOKENS = 32
WORD = 500
"""What is asked for: any word will do."""
LIMITS = Limits(max_consultations=3, max_feedback_tokens=16, max_response_tokens=240)
PROTOCOL = Protocol(tags={KNOWLEDGE: "knowledge"}, feedback_tag="feedback", enabled=(KNOWLEDGE,))


def latency_s(seed: int) -> float:
    """Return one latency: the quantile that the seed names."""
    return min(LONGEST_S, MEDIAN_S * math.exp(SIGMA * Random(seed).gauss(0.0, 1.0)))


@dataclass
class Slow:
    """An agent with latencies; `speed` 0 answers at once."""

    speed: float = 1.0
    name: str = KNOWLEDGE
    waited_s: dict[int, float] = field(default_factory=dict)
    """By the query's seed."""

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Wait and say the same few words."""
        wait = latency_s(query.seed) * self.speed
        self.waited_s[query.seed] = wait
        if wait:
            await asyncio.sleep(wait)
        return AgentReply(text="no consultations left request not understood")


def biased(
    model: PreTrainedModel, tokens: PreTrainedTokenizerFast, request: Sequence[str]
) -> PreTrainedModel:
    """Make the model write `request`, one token each, with probability 1/ASK_EVERY after any word.

    The last of `request` ends the completion in our protocol; what follows it elsewhere is the end token.
    """
    chain = [tokens.convert_tokens_to_ids(token) for token in request]
    end = tokens.convert_tokens_to_ids(END)
    table = torch.zeros(len(tokens), VOCABULARY)
    table[:, [i for i in range(len(tokens)) if i in tokens.all_special_ids]] = -40.0
    table[:, chain] = -40.0
    table[:, chain[0]] = math.log(VOCABULARY / ASK_EVERY)
    table[:, end] = math.log(VOCABULARY / END_EVERY)
    for last, following in zip(chain, [*chain[1:], end], strict=True):
        table[last] = -40.0
        table[last, following] = 40.0

    def shift(module: Any, arguments: Any, keywords: dict[str, Any], output: Any) -> Any:
        output.logits[:, -1] += table[keywords["input_ids"][:, -1]]
        return output

    model.register_forward_hook(shift, with_kwargs=True)
    return model


@dataclass
class Bench:
    """One engine, one policy, and the rollouts to make with it."""

    tokens: PreTrainedTokenizerFast
    engine: TransformersEngine
    groups: int
    rollouts: int

    def specs(self) -> list[RolloutSpec]:
        """Name the rollouts: as many groups as asked, equal shares of the rollouts."""
        rng = Random(2)
        prompts = [words(rng, PROMPT_TOKENS) for _ in range(self.groups)]
        return [
            RolloutSpec(
                id=f"r{i}",
                problem="",
                prompt_ids=prompts[i % self.groups],
                condition=Condition.CONSULTING,
                seed=1000 + i,
            )
            for i in range(self.rollouts)
        ]

    async def run(self, agent: Slow, specs: Sequence[RolloutSpec] | None = None) -> list[Rollout]:
        """Make rollouts, all at once."""
        consult = ConsultContext(
            protocol=PROTOCOL,
            codec=TagCodec(self.tokens, PROTOCOL),
            limits=LIMITS,
            agents={agent.name: agent},
            agent_timeout_s=10.0,
        )
        wanted = self.specs() if specs is None else specs
        return await asyncio.gather(*(rollout(self.engine, spec, consult) for spec in wanted))


def bench(
    tokens: PreTrainedTokenizerFast, *, rollouts: int, groups: int, quick: bool, slots: int = 0
) -> Bench:
    """Build the workload; without `slots`, each rollout has one."""
    model = biased(
        policy(quick=quick), tokens, ["<knowledge>", str(tokens.convert_ids_to_tokens(WORD)), "</knowledge>"]
    )
    capacity = PROMPT_TOKENS + LIMITS.max_response_tokens
    engine = TransformersEngine(model, tokens, slots=slots or rollouts, capacity=capacity)
    return Bench(tokens, engine, groups, rollouts)
