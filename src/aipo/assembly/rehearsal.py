"""One consultation end to end, written by a script in the policy's place: a new policy may ask for nothing.

Everything but the script is the run's own: protocol, codec, agents, deadlines, the one rollout coroutine.
"""

from collections.abc import Sequence

from aipo.agents.spec import AgentSpec
from aipo.assembly.parts import Parts
from aipo.assembly.traces import Script
from aipo.core.types import Condition
from aipo.rollout.episode import Consultation, RolloutSpec, rollout
from aipo.tasks.base import Problem


async def rehearsed_consultation(parts: Parts, specs: Sequence[AgentSpec], problem: Problem) -> Consultation:
    """Return what came of a consultation of one of the enabled agents. Raises `EngineError`, `ValueError`."""
    consult, tokenizer = parts.sampler.consult, parts.tokenizer
    spec = specs[-1]  # of the paper's three the one that has words for every problem
    words = consult.protocol.written(spec.name, f" {spec.rehearsal} ")
    script = Script(tokenizer.encode(words, add_special_tokens=False), [int(tokenizer.eos_token_id)])
    attempt = RolloutSpec(
        id="rehearsal",
        problem=problem.text,
        prompt_ids=parts.sampler.prompts.ids(problem, Condition.CONSULTING),
        condition=Condition.CONSULTING,
        seed=0,
    )
    produced = await rollout(script, attempt, consult)
    if not produced.consultations:
        raise ValueError(f"{words!r} was not understood as a request; check consult.tags and consult.format")
    return produced.consultations[0]
