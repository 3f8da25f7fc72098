"""Elicited rollouts on real engines: every POLICY token has the log-probability that the update computes.

The in-process engine and the vLLM client, the latter against a twin over HTTP; a random policy.
"""

import asyncio
from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from aipo.consult.codec import TagCodec
from aipo.consult.limits import Limits
from aipo.core.types import PAPER_AGENTS, Condition, ConsultOutcome, Source
from aipo.engines.base import Engine
from aipo.engines.link import HttpLink
from aipo.engines.transformers import TransformersEngine
from aipo.engines.vllm import VllmEngine
from aipo.rollout.elicit import PLACES, Elicit
from aipo.rollout.episode import ConsultContext, Rollout, RolloutSpec, rollout
from aipo.training.log_probs import token_log_probs
from support.episodes import PROTOCOL, Answering
from support.policies import random_policy
from support.vllm_twin import Twin

Name = Literal["transformers", "vllm"]


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_what_the_policy_wrote_around_a_systems_tags_has_its_exact_probability(
    name: Name, tmp_path_factory: pytest.TempPathFactory
) -> None:
    policy = random_policy(tmp_path_factory, "qwen2.5")
    produced = asyncio.run(asyncio.wait_for(rollouts(policy, name), 60))
    told = [c for r in produced for c in r.consultations if c.outcome is ConsultOutcome.ANSWERED]
    assert sum(c.elicited for c in told) >= 8
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    behind = 0
    for one in produced:
        log_p, _ = token_log_probs(model, torch.tensor([one.stream.ids]), 1.0)
        pairs = list(zip(log_p[0].tolist(), one.stream.log_probs, one.stream.sources, strict=True))
        assert max(abs(a - b) for a, b, source in pairs if source is Source.POLICY) < 1e-4
        first = one.stream.sources.index(Source.SCAFFOLD) if Source.SCAFFOLD in one.stream.sources else 999
        behind += sum(source is Source.POLICY for source in one.stream.sources[first:])
    assert behind > 100
    again = asyncio.run(asyncio.wait_for(rollouts(policy, name), 60))
    assert [r.stream.ids for r in again] == [r.stream.ids for r in produced]


async def rollouts(policy: Path, name: Name) -> list[Rollout]:
    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    codec = TagCodec(tokenizer, PROTOCOL)
    agents = dict.fromkeys(PAPER_AGENTS, Answering(lambda query: "8 legs"))
    consult = ConsultContext(
        protocol=PROTOCOL, codec=codec, limits=Limits(3, 8, 80), agents=agents, agent_timeout_s=5.0
    )
    place = PLACES["random"]
    how = Elicit(
        share=0.8,
        place=place,
        options=place.options,
        agents=PAPER_AGENTS,
        system_closes=True,
        max_request_tokens=8,
        credited=False,
    )
    prompt = tuple(tokenizer.encode("How many legs has a spider?", add_special_tokens=False))
    specs = [
        RolloutSpec(
            id=f"r{i}",
            problem="legs",
            prompt_ids=prompt,
            condition=Condition.CONSULTING,
            seed=i,
            opening=how.chosen(i, i),
        )
        for i in range(24)
    ]

    async def all_with(engine: Engine) -> list[Rollout]:
        return list(await asyncio.gather(*(rollout(engine, spec, consult) for spec in specs)))

    if name == "transformers":
        return await all_with(TransformersEngine(model, tokenizer, slots=16, capacity=200))
    with Twin(policy) as twin:
        engine = VllmEngine(HttpLink(twin.url, timeout_s=20, concurrency=64), model, twin.tokenizer)
        await engine.connect()
        await engine.load_weights(model.save_pretrained, 0)
        return await all_with(engine)
