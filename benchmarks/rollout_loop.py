"""The rollout loop alone: consultations per CPU-second with an instant engine and instant agents.

Python around a rollout must never be the bottleneck. Everything between
engine and agent is the product's own: parsing, spans, the error boundary, encoding feedback, streams. The
engine says prepared ids; the agent answers without waiting. One thread.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from random import Random

from aipo.agents.base import AgentQuery, AgentReply
from aipo.consult.codec import TagCodec
from aipo.core.types import KNOWLEDGE, Condition, StopReason
from aipo.engines.base import Completion, GenerationRequest
from aipo.rollout.episode import ConsultContext, Rollout, RolloutSpec, rollout
from consulting import LIMITS, PROTOCOL
from measure import Figure, clocked, options, report, tokenizer, words

LEAST = 2000
WRITTEN_TOKENS = 24
"""Words of the policy before each request, and before its end."""
REPEATS = 9


class Instant:
    """`aipo.engines.base.Engine` that says prepared ids: thrice words and a request, then the end."""

    def __init__(self, request: tuple[int, ...], end: int) -> None:
        rng, log_p = Random(3), (-1.0,)
        self._turns = []
        for turn in range(LIMITS.max_consultations + 1):
            last = turn == LIMITS.max_consultations
            ids = (*words(rng, WRITTEN_TOKENS), *((end,) if last else request))
            self._turns.append(
                Completion(
                    ids=ids,
                    log_probs=log_p * len(ids),
                    stop=StopReason.END if last else StopReason.STOP_STRING,
                )
            )
        self._said: dict[str, int] = {}

    async def generate(self, request: GenerationRequest) -> Completion:
        """Return the session's next turn."""
        turn = self._said.get(request.session, 0)
        self._said[request.session] = turn + 1
        return self._turns[turn]

    async def release(self, session: str) -> None:
        """Forget it."""
        del self._said[session]


class Ready:
    """An agent that answers at once."""

    name = KNOWLEDGE

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Say a few words."""
        return AgentReply(text="no consultations left, request not understood. agent unavailable.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure."""
    given = options("rollout_loop", arguments)
    number = 16 if given.quick else 400
    tokens = tokenizer()
    request = tuple(tokens.encode("<knowledge> legs of a spider </knowledge>", add_special_tokens=False))
    engine = Instant(request, tokens.eos_token_id)
    consult = ConsultContext(
        protocol=PROTOCOL,
        codec=TagCodec(tokens, PROTOCOL),
        limits=LIMITS,
        agents={KNOWLEDGE: Ready()},
        agent_timeout_s=10.0,
    )
    prompt = words(Random(4), 32)
    specs = [
        RolloutSpec(id=f"r{i}", problem="legs", prompt_ids=prompt, condition=Condition.CONSULTING, seed=i)
        for i in range(number)
    ]
    made: list[Rollout] = []

    async def every() -> None:
        made[:] = await asyncio.gather(*(rollout(engine, spec, consult) for spec in specs))

    rates = []
    for _ in range(given.repeats or (2 if given.quick else REPEATS)):
        taken = clocked(lambda: asyncio.run(every()))
        rates.append(sum(len(r.consultations) for r in made) / taken.cpu_s)
    assert all(len(r.consultations) == LIMITS.max_consultations for r in made)
    rate = statistics.median(rates)
    what = "rollout loop, instant engine and agents"
    asked = f"at least {LEAST:,}/s on one core"
    figure = Figure(what, rate, "consultations/CPU-s", "asked", LEAST, rate / LEAST, asked, rate >= LEAST)
    report("rollout_loop", [figure], {"rollouts": number, "rates": [round(r) for r in rates]}, given)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s in all")
