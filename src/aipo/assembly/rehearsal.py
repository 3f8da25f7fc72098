"""One consultation end to end, written by a script in the policy's place: a new policy may ask for nothing.

It asks about the task's own problem (`aipo.assembly.questions`). Everything but the script
is the run's own: protocol, codec, agents, deadlines, the one rollout coroutine.
"""

from aipo.agents.spec import AgentSpec
from aipo.assembly.parts import Parts
from aipo.assembly.questions import Question
from aipo.assembly.traces import Script
from aipo.core.types import Condition
from aipo.rollout.episode import Consultation, RolloutSpec, rollout


async def rehearsed_consultation(parts: Parts, spec: AgentSpec, question: Question) -> Consultation:
    """Return what came of a question to an enabled agent. Raises `EngineError`, `ValueError`."""
    consult, tokenizer = parts.sampler.consult, parts.tokenizer
    words = question.written + consult.protocol.written(spec.name, f" {question.request} ")
    script = Script(tokenizer.encode(words, add_special_tokens=False), [int(tokenizer.eos_token_id)])
    attempt = RolloutSpec(
        id="rehearsal",
        problem=question.problem.text,
        prompt_ids=parts.sampler.prompts.ids(question.problem, Condition.CONSULTING),
        condition=Condition.CONSULTING,
        seed=0,
    )
    produced = await rollout(script, attempt, consult)
    if not produced.consultations:
        raise ValueError(f"{words!r} was not understood as a request; check consult.tags and consult.format")
    return produced.consultations[0]
