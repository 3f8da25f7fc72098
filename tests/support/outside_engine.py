"""An engine from outside the package: it samples in this process, and counts the tokens of each rollout."""

from collections import Counter

from aipo.assembly.engines import EngineRequest, EngineSpec
from aipo.engines.base import Completion, GenerationRequest
from aipo.engines.transformers import TransformersEngine

SAMPLED: Counter[str] = Counter()
"""Tokens that were sampled, by rollout."""


class CountingEngine:
    """Samples as the engine of the package does."""

    def __init__(self, request: EngineRequest) -> None:
        slots, capacity = request.settings.rollout.slots, request.capacity
        self._engine = TransformersEngine(request.model, request.tokenizer, slots=slots, capacity=capacity)

    async def generate(self, request: GenerationRequest) -> Completion:
        """Sample a continuation: ids, and the log-probability of each under the weights that sampled it."""
        completion = await self._engine.generate(request)
        SAMPLED[request.session] += len(completion.ids)
        return completion

    async def release(self, session: str) -> None:
        """Forget a rollout that has ended."""
        await self._engine.release(session)


COUNTING = EngineSpec(make=CountingEngine, in_process=True)
"""`engine.name = "support.outside_engine:COUNTING"`."""
