"""The one rollout coroutine: the policy writes, pauses to consult, reads the feedback, and writes on.

Owns the order of events inside a rollout and the error boundary around agents. Must not know which engine
samples, which agent answers or what is done with the result. Invariant: ids are appended once and never
encoded again; what the engine saw is what is trained on. An agent's failure is an outcome, never an exception
and never a reward.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from aipo.agents.base import Agent, AgentError, AgentQuery
from aipo.consult.codec import TagCodec
from aipo.consult.limits import Limits
from aipo.consult.protocol import Malformed, Protocol, Request
from aipo.core.seeds import seed_of
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import AgentName, Condition, ConsultOutcome, SoloMode, Source, StopReason
from aipo.engines.base import Engine, GenerationRequest, Sampling


@dataclass(frozen=True, slots=True)
class Consultation:
    """One request and its outcome."""

    agent: AgentName | None
    """None for a malformed request that names no agent."""
    request: str
    outcome: ConsultOutcome
    reply: str
    """The agent's words as the policy read them (neutralised, cut); empty unless ANSWERED."""
    reply_tokens: int
    detail: str
    """Why it was malformed or failed; empty when it was answered."""
    context: str
    """Fingerprint of all that the agent saw: equal ones would cost one call behind a cache."""
    latency_s: float


@dataclass(frozen=True, slots=True)
class Rollout:
    """What one rollout produced."""

    stream: TokenStream
    response: str
    """The assistant's turn as text, end token excluded."""
    policy_text: str
    """What of it the policy wrote itself: the only text that is graded, so that no agent can answer for
    it."""
    stop: StopReason
    consultations: tuple[Consultation, ...]
    dropped: tuple[tuple[int, int], ...]
    """Spans of token positions that a consult-stripped copy leaves out: requests, tags, notices."""


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """Which rollout to produce."""

    id: str
    problem: str
    prompt_ids: tuple[int, ...]
    condition: Condition
    seed: int
    solo_mode: SoloMode = SoloMode.UNANSWERED
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Desk:
    """Everything that a rollout consults through; the same for all rollouts of a run."""

    protocol: Protocol
    codec: TagCodec
    limits: Limits
    agents: Mapping[AgentName, Agent]
    agent_timeout_s: float


async def rollout(engine: Engine, spec: RolloutSpec, desk: Desk) -> Rollout:
    """Produce one rollout. Raises `EngineError`; nothing that an agent does is raised."""
    episode = _Episode(engine, spec, desk)
    try:
        return await episode.run()
    finally:
        await engine.release(spec.id)


class _Episode:
    """The state of a rollout under way."""

    def __init__(self, engine: Engine, spec: RolloutSpec, desk: Desk) -> None:
        self._engine, self._spec, self._desk = engine, spec, desk
        self._segments = [Segment(Source.PROMPT, spec.prompt_ids)]
        self._ids = list(spec.prompt_ids)
        self._since_insertion = len(self._ids)
        self._consultations: list[Consultation] = []
        self._dropped: list[tuple[int, int]] = []

    async def run(self) -> Rollout:
        while True:
            stop = await self._generate()
            if stop is not StopReason.STOP_STRING:
                break
            found = self._desk.protocol.parse(self._desk.codec.text(self._ids[self._since_insertion :]))
            if found is None:
                continue  # the stop string stood in other text
            if not await self._consult(found) or self._room() < 1:
                stop = StopReason.LENGTH
                break
        ends = stop is StopReason.END
        stream = TokenStream(tuple(self._segments))
        last = len(self._ids) - ends
        own = [i for i, source in enumerate(stream.sources[:last]) if source is Source.POLICY]
        return Rollout(
            stream,
            self._desk.codec.text(self._ids[stream.prompt_length : last]),
            self._desk.codec.text([self._ids[i] for i in own]),
            stop,
            tuple(self._consultations),
            tuple(self._dropped),
        )

    def _room(self) -> int:
        """Tokens that the response may still grow by."""
        used = len(self._ids) - len(self._spec.prompt_ids)
        return self._desk.limits.max_response_tokens - used

    async def _generate(self) -> StopReason:
        spec, desk = self._spec, self._desk
        consulting = spec.condition is Condition.CONSULTING
        banned = not consulting and spec.solo_mode is SoloMode.BANNED
        completion = await self._engine.generate(
            GenerationRequest(
                session=spec.id,
                prefix_ids=tuple(self._ids),
                max_new_tokens=self._room(),
                stop=desk.protocol.stop_strings if consulting else (),
                banned_sequences=desk.codec.banned_sequences() if banned else (),
                sampling=spec.sampling,
                seed=spec.seed,
            )
        )
        self._append(Segment(Source.POLICY, completion.ids, completion.log_probs))
        # The limit may be reached just as a request is completed: no reply could be read any more.
        cut = completion.stop is StopReason.STOP_STRING and self._room() < 1
        return StopReason.LENGTH if cut else completion.stop

    def _append(self, segment: Segment) -> None:
        self._segments.append(segment)
        self._ids += segment.ids

    async def _consult(self, found: Request | Malformed) -> bool:
        """Settle one request; False when not even a notice fits."""
        request_at = self._since_insertion + self._desk.codec.token_at(
            self._ids[self._since_insertion :], found.start
        )
        self._dropped.append((request_at, len(self._ids)))
        consultation, words = await self._settle(found)
        if consultation.outcome is ConsultOutcome.ANSWERED:
            block = self._desk.codec.feedback(words, self._desk.limits.max_feedback_tokens)
            inserted, source = block.ids, Source.FEEDBACK
            begin, end = (len(self._ids) + edge for edge in block.content)
            spans = [(len(self._ids), begin), (end, len(self._ids) + len(inserted))]
        else:
            inserted, source = self._desk.codec.notice(consultation.outcome), Source.SCAFFOLD
            spans = [(len(self._ids), len(self._ids) + len(inserted))]
        self._consultations.append(consultation)
        if len(inserted) > self._room():
            return False
        self._append(Segment(source, inserted))
        self._dropped += spans
        self._since_insertion = len(self._ids)
        return True

    async def _settle(self, found: Request | Malformed) -> tuple[Consultation, str]:
        """Return what came of a request, and the agent's words if there are any."""
        if isinstance(found, Malformed):
            return self._without_reply(None, "", ConsultOutcome.MALFORMED, found.reason), ""
        limits = self._desk.limits
        spent = sum(c.outcome is not ConsultOutcome.REFUSED_LIMIT for c in self._consultations)
        if spent >= limits.max_consultations:
            refused = "limit of consultations"
        elif self._room() <= self._desk.codec.request_room(limits.max_feedback_tokens):
            refused = "limit of tokens"
        else:
            return await self._ask(found)
        return self._without_reply(found.agent, found.text, ConsultOutcome.REFUSED_LIMIT, refused), ""

    async def _ask(self, request: Request) -> tuple[Consultation, str]:
        spec = self._spec
        whole = self._desk.codec.text(self._ids[len(spec.prompt_ids) :])
        latest = self._desk.codec.text(self._ids[self._since_insertion :])
        before = whole[: len(whole) - len(latest) + request.start]
        seed = seed_of(spec.seed, "consultation", len(self._consultations))
        query = AgentQuery(spec.problem, before, request.text, seed)
        begun = time.monotonic()
        outcome, words, detail = await _answer(
            self._desk.agents[request.agent], query, self._desk.agent_timeout_s
        )
        block = self._desk.codec.feedback(words, self._desk.limits.max_feedback_tokens)
        begin, end = block.content
        if outcome is ConsultOutcome.ANSWERED and begin == end:
            outcome, detail = ConsultOutcome.EMPTY, "nothing of the reply can be said in this vocabulary"
        answered = outcome is ConsultOutcome.ANSWERED
        consultation = Consultation(
            request.agent,
            request.text,
            outcome,
            self._desk.codec.text(block.ids[begin:end]) if answered else "",
            end - begin if answered else 0,
            detail,
            f"{seed_of(request.agent, query.problem, query.rollout, query.request):016x}",
            time.monotonic() - begun,
        )
        return consultation, words

    def _without_reply(
        self, agent: AgentName | None, request: str, outcome: ConsultOutcome, detail: str
    ) -> Consultation:
        return Consultation(agent, request, outcome, "", 0, detail, "", 0.0)


async def _answer(agent: Agent, query: AgentQuery, timeout_s: float) -> tuple[ConsultOutcome, str, str]:
    """The error boundary: whatever an agent does becomes (outcome, words, detail), within its deadline."""
    try:
        async with asyncio.timeout(timeout_s):
            words = (await agent.answer(query)).text
            blank = not words.strip()
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # the run itself is ending
        return ConsultOutcome.AGENT_ERROR, "", repr(error)  # a task inside the agent was cancelled
    except TimeoutError:
        return ConsultOutcome.TIMEOUT, "", f"no answer within {timeout_s} s"
    except AgentError as error:
        return ConsultOutcome.AGENT_ERROR, "", str(error)
    except Exception as error:  # a bug in an agent is data too, not a crash of the run
        return ConsultOutcome.AGENT_ERROR, "", repr(error)
    if blank:
        return ConsultOutcome.EMPTY, "", "empty reply"
    return ConsultOutcome.ANSWERED, words, ""
