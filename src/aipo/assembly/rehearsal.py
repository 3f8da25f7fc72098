"""One consultation end to end, written by a script in the policy's place: a new policy may ask for nothing.

Everything but the script is the run's own: protocol, codec, agents, deadlines, the one rollout coroutine.
"""

from collections.abc import Sequence

from aipo.agents.spec import AgentSpec
from aipo.assembly.parts import Parts
from aipo.core.types import Condition, StopReason
from aipo.engines.base import Completion, EngineError, GenerationRequest
from aipo.rollout.episode import Consultation, RolloutSpec, rollout
from aipo.tasks.base import Problem


class _Script:
    """An engine that writes given ids, then ends."""

    def __init__(self, ids: Sequence[int], end_id: int) -> None:
        self._ids, self._end_id = tuple(ids), end_id

    async def generate(self, request: GenerationRequest) -> Completion:
        ids, self._ids = self._ids, ()
        if len(ids) > request.max_new_tokens:
            raise EngineError("a request does not fit rollout.max_response_tokens")
        stop = StopReason.STOP_STRING if ids else StopReason.END
        ids = ids or (self._end_id,)
        return Completion(ids, (-1.0,) * len(ids), stop)

    async def release(self, session: str) -> None:
        pass


async def rehearsed_consultation(parts: Parts, specs: Sequence[AgentSpec], problem: Problem) -> Consultation:
    """Return what came of a consultation of one of the enabled agents. Raises `EngineError`, `ValueError`."""
    consult, tokenizer = parts.sampler.consult, parts.tokenizer
    spec = specs[-1]  # of the paper's three the one that has words for every problem
    protocol = consult.protocol
    words = f"{protocol.request_open(spec.name)} {spec.rehearsal} {protocol.request_close(spec.name)}"
    script = _Script(tokenizer.encode(words, add_special_tokens=False), int(tokenizer.eos_token_id))
    attempt = RolloutSpec(
        id="rehearsal",
        problem=problem.text,
        prompt_ids=parts.sampler.prompts.ids(problem, Condition.CONSULTING),
        condition=Condition.CONSULTING,
        seed=0,
    )
    produced = await rollout(script, attempt, consult)
    if not produced.consultations:
        raise ValueError(f"{words!r} was not understood as a request; check consult.tags")
    return produced.consultations[0]
