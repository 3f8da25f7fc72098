"""The one rollout coroutine: the policy writes, pauses to consult, reads the feedback, and writes on.

The same coroutine serves training, evaluation and `aipo rollout`, with any engine and any agents. Token ids
are appended once and never encoded again, so what the engine saw is what is trained on. An agent's failure is
an outcome of its consultation, never an exception and never a reward.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite

from aipo.agents.base import NOTHING_USED, Agent, AgentFailure, AgentQuery, Usage
from aipo.consult.codec import FeedbackBlock, TagCodec
from aipo.consult.limits import Limits
from aipo.consult.protocol import Malformed, Protocol, Request
from aipo.core.seeds import seed_of
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Condition, ConsultOutcome, LeakPolicy, SoloMode, Source, StopReason
from aipo.engines.base import Engine, EngineError, GenerationRequest, Sampling
from aipo.rollout.asking import Answer, ask
from aipo.rollout.elicit import BOUNDARY_STOPS, Opening, Watch, ends_sentence
from aipo.rollout.leaks import Hide, guarded

NOT_FINITE = "the policy gave log-probabilities that are not finite numbers"
"""Why a rollout fails when weights or logits have become NaN or infinite."""


class AgentName(str):
    """An agent's name in a seed path: the name of this type is in every recorded `Consultation.context`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consultation:
    """One request and its outcome."""

    agent: str | None
    """None for a malformed request that names no agent."""
    request: str
    outcome: ConsultOutcome
    reply: str
    """The agent's words as the policy read them (neutralised, cut); empty unless ANSWERED."""
    reply_tokens: int
    """Tokens of the agent's words, cut to the limit, before the leak guard hid any of them."""
    detail: str
    """Why it was malformed or failed; empty when it was answered."""
    context: str
    """Fingerprint of everything that the agent saw; a cache would answer equal ones with one call."""
    latency_s: float
    leaked: bool = False
    """Whether the agent stated the final answer, even if the leak guard hid it."""
    usage: Usage = NOTHING_USED
    failure: AgentFailure | None = None
    """The kind of AGENT_ERROR."""
    elicited: bool = False
    """Whether the system opened the request's tag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """What one rollout produced."""

    stream: TokenStream
    response: str
    """The assistant's turn as text, end token excluded."""
    policy_text: str
    """The part of it that the policy wrote. Only this is graded, so that no agent can answer for the
    policy."""
    stop: StopReason
    consultations: tuple[Consultation, ...]
    consult_spans: tuple[tuple[int, int], ...]
    """Spans of token positions that a consult-stripped copy leaves out: requests, tags, notices."""
    weights_version: int | None = None
    """Version of the weights that sampled it, the oldest where they changed midway; None: in process."""
    opened: tuple[int, ...] | None = None
    """Segments that are tags of a request that the system opened, and perhaps closed; () where it was to and
    did not, None where it was not to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSpec:
    """Which rollout to produce."""

    id: str
    problem: str
    prompt_ids: tuple[int, ...]
    condition: Condition
    seed: int
    solo_mode: SoloMode = SoloMode.UNANSWERED
    sampling: Sampling = field(default_factory=Sampling)
    hide_answer: Hide | None = None
    """How the leak guard finds and hides this problem's answer; None: there is no guard."""
    opening: Opening | None = None
    """Whose tag the system is to open in it; None: nobody's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsultContext:
    """Protocol, limits and agents: what a consultation needs, the same for all rollouts of a run."""

    protocol: Protocol
    codec: TagCodec
    limits: Limits
    agents: Mapping[str, Agent]
    agent_timeout_s: float
    leak_policy: LeakPolicy = LeakPolicy.ALLOW


async def rollout(engine: Engine, spec: RolloutSpec, consult: ConsultContext) -> Rollout:
    """Produce one rollout. Raises `EngineError`; nothing that an agent does is raised."""
    episode = _Episode(engine, spec, consult)
    try:
        return await episode.run()
    finally:
        await engine.release(spec.id)


class _Episode:
    """A rollout in progress."""

    def __init__(self, engine: Engine, spec: RolloutSpec, consult: ConsultContext) -> None:
        self._engine, self._spec, self._context = engine, spec, consult
        self._segments = [Segment(Source.PROMPT, spec.prompt_ids)]
        self._ids = list(spec.prompt_ids)
        self._last_insertion_end = len(self._ids)
        self._consultations: list[Consultation] = []
        self._consult_spans: list[tuple[int, int]] = []
        self._versions: set[int] = set()
        self._elicited: list[int] = []
        """Segments with tags of the request that the system opened."""
        self._watch = Watch(spec.opening, spec.problem, spec.seed) if spec.opening else None
        """Looks for the place to open a request; None: it is found, or there is none."""
        self._opened: tuple[int, int] | None = None
        """Of a request that the system opened and that has not ended: where its tag begins, and how long the
        sequence may be when it ends."""

    async def run(self) -> Rollout:
        while True:
            self._open_if_due()
            stop = await self._generate()
            if stop is StopReason.END or (stop is StopReason.LENGTH and not self._request_is_full()):
                break
            found = self._found()
            if found is None:
                continue  # what it stopped at was part of other text
            if not await self._consult(found) or self._room() < 1:
                stop = StopReason.LENGTH
                break
        ends = stop is StopReason.END
        stream = TokenStream(tuple(self._segments))
        last = len(self._ids) - ends
        own = [i for i, source in enumerate(stream.sources[:last]) if source is Source.POLICY]
        return Rollout(
            stream=stream,
            response=self._context.codec.text(self._ids[stream.prompt_length : last]),
            policy_text=self._context.codec.text([self._ids[i] for i in own]),
            stop=stop,
            consultations=tuple(self._consultations),
            consult_spans=tuple(self._consult_spans),
            weights_version=min(self._versions, default=None),
            opened=tuple(self._elicited) if self._spec.opening else None,
        )

    def _room(self) -> int:
        """Return how many tokens the response may still grow by."""
        used = len(self._ids) - len(self._spec.prompt_ids)
        return self._context.limits.max_response_tokens - used

    async def _generate(self) -> StopReason:
        spec, consult = self._spec, self._context
        consulting = spec.condition is Condition.CONSULTING
        banned = not consulting and spec.solo_mode is SoloMode.BANNED
        completion = await self._engine.generate(
            GenerationRequest(
                session=spec.id,
                prefix_ids=tuple(self._ids),
                max_new_tokens=self._opened[1] - len(self._ids) if self._opened else self._room(),
                stop=consult.protocol.stop_strings + self._pauses() if consulting else (),
                banned_sequences=consult.codec.banned_sequences() if banned else (),
                sampling=spec.sampling,
                seed=spec.seed,
            )
        )
        if not all(map(isfinite, completion.log_probs)):
            raise EngineError(NOT_FINITE)
        self._append(Segment(Source.POLICY, completion.ids, completion.log_probs))
        if completion.weights_version is not None:
            self._versions.add(completion.weights_version)
        # The limit may be reached exactly where a request ends; there is no room left to read a reply.
        cut = completion.stop is StopReason.STOP_STRING and self._room() < 1
        return StopReason.LENGTH if cut else completion.stop

    def _append(self, segment: Segment) -> None:
        self._segments.append(segment)
        self._ids += segment.ids

    # a request that the system opens

    def _pauses(self) -> tuple[str, ...]:
        """Return what the policy pauses at, so that a tag can be opened or closed just there."""
        opening = self._spec.opening
        closes = self._opened is not None and opening is not None and opening.how.system_closes
        return BOUNDARY_STOPS if self._watch or closes else ()

    def _request_is_full(self) -> bool:
        return self._opened is not None and len(self._ids) >= self._opened[1]

    def _open_if_due(self) -> None:
        """Open the request's tag behind the sentence where it is due, unless the policy asked by itself."""
        opening, codec = self._spec.opening, self._context.codec
        if self._watch is None or opening is None:
            return
        limits, (begin, end) = self._context.limits, codec.request_tags(opening.agent)
        # Room for the request's first token, for its end, for a reply, and for a token of an answer.
        request_room = (
            self._room() - len(begin) - len(end) - codec.request_room(limits.max_feedback_tokens) - 1
        )
        if self._consultations or limits.max_consultations < 1 or request_room < 1:
            self._watch = None
            return
        response = codec.text(self._ids[len(self._spec.prompt_ids) :])
        log_probs = [p for segment in self._segments[1:] for p in segment.log_probs]
        inside = any(tag in response for tag in self._context.protocol.control_strings)
        if inside or not self._watch.opens(response, log_probs):
            return
        self._watch = None
        full = len(self._ids) + len(begin) + min(request_room, opening.how.max_request_tokens)
        self._opened = len(self._ids), full
        self._append_tag(begin)

    def _append_tag(self, ids: tuple[int, ...]) -> None:
        assert self._spec.opening is not None
        self._elicited.append(len(self._segments))
        self._append(Segment(self._spec.opening.how.source, ids))

    def _found(self) -> Request | Malformed | None:
        """Return the request that has just ended; the system ends one that it opened where it is due."""
        found = self._parsed()
        opening = self._spec.opening
        if found is not None or self._opened is None or opening is None:
            return found
        begin, end = self._context.codec.request_tags(opening.agent)
        written = self._context.codec.text(self._ids[self._opened[0] + len(begin) :])
        if opening.how.system_closes and (self._request_is_full() or ends_sentence(written)):
            self._append_tag(end)
            return self._parsed()
        if self._request_is_full():
            before = self._context.codec.text(self._ids[self._last_insertion_end : self._opened[0]])
            return Malformed(f"not closed within {opening.how.max_request_tokens} tokens", len(before))
        return None

    def _parsed(self) -> Request | Malformed | None:
        return self._context.protocol.parse(self._context.codec.text(self._ids[self._last_insertion_end :]))

    # consultations

    async def _consult(self, found: Request | Malformed) -> bool:
        """Answer one request and insert what the policy reads; return False where not even a notice fits."""
        request_at = self._last_insertion_end + self._context.codec.token_at(
            self._ids[self._last_insertion_end :], found.start
        )
        opened, self._opened = self._opened, None
        if opened:  # its tag goes with the request, whichever tag the policy wrote behind it
            request_at = min(request_at, opened[0])
        self._consult_spans.append((request_at, len(self._ids)))
        consultation, insertion = await self._settle(found)
        consultation = replace(consultation, elicited=True) if opened else consultation
        begin = end = 0
        if insertion is not None:
            segment, (begin, end) = insertion
        else:
            segment = Segment(Source.SCAFFOLD, self._context.codec.notice(consultation.outcome))
        start, inserted = len(self._ids), len(segment.ids)
        around_words = [(start, start + begin), (start + end, start + inserted)]
        self._consultations.append(consultation)
        if inserted > self._room():
            return False
        self._append(segment)
        self._consult_spans += around_words
        self._last_insertion_end = len(self._ids)
        return True

    async def _settle(self, found: Request | Malformed) -> tuple[Consultation, "_Insertion | None"]:
        """Return the consultation, and the agent's words as a segment if there are any."""
        if isinstance(found, Malformed):
            return self._without_reply(None, "", ConsultOutcome.MALFORMED, found.reason), None
        limits = self._context.limits
        used = sum(c.outcome is not ConsultOutcome.REFUSED_LIMIT for c in self._consultations)
        if used >= limits.max_consultations:
            refused = "limit of consultations"
        elif self._room() <= self._context.codec.request_room(limits.max_feedback_tokens):
            refused = "limit of tokens"
        else:
            return await self._ask(found)
        return self._without_reply(found.agent, found.text, ConsultOutcome.REFUSED_LIMIT, refused), None

    async def _ask(self, request: Request) -> tuple[Consultation, "_Insertion | None"]:
        spec = self._spec
        whole = self._context.codec.text(self._ids[len(spec.prompt_ids) :])
        latest = self._context.codec.text(self._ids[self._last_insertion_end :])
        before = whole[: len(whole) - len(latest) + request.start]
        seed = seed_of(spec.seed, "consultation", len(self._consultations))
        query = AgentQuery(problem=spec.problem, rollout=before, request=request.text, seed=seed)
        begun = time.monotonic()
        answer = await ask(self._context.agents[request.agent], query, self._context.agent_timeout_s)
        latency_s = time.monotonic() - begun
        processed = _process_reply(answer, self._context, spec.hide_answer)
        consultation = Consultation(
            agent=request.agent,
            request=request.text,
            outcome=processed.outcome,
            reply=processed.reply,
            reply_tokens=processed.written_tokens,
            detail=processed.detail,
            context=f"{seed_of(AgentName(request.agent), query.problem, query.rollout, query.request):016x}",
            latency_s=latency_s,
            leaked=processed.leaked,
            usage=answer.usage,
            failure=answer.failure,
        )
        return consultation, processed.insertion

    def _without_reply(
        self, agent: str | None, request: str, outcome: ConsultOutcome, detail: str
    ) -> Consultation:
        return Consultation(
            agent=agent,
            request=request,
            outcome=outcome,
            reply="",
            reply_tokens=0,
            detail=detail,
            context="",
            latency_s=0.0,
        )


_Insertion = tuple[Segment, tuple[int, int]]
"""The inserted segment, and the span of the agent's own words in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ProcessedReply:
    """An answer after the leak guard, neutralising and cutting."""

    outcome: ConsultOutcome
    detail: str
    written_tokens: int = 0
    leaked: bool = False
    reply: str = ""
    insertion: _Insertion | None = None


def _process_reply(answer: Answer, consult: ConsultContext, hide: Hide | None) -> _ProcessedReply:
    """Pass an answer through the leak guard, neutralise it and cut it."""
    if answer.reply is None:
        return _ProcessedReply(outcome=answer.outcome, detail=answer.detail)
    text = answer.reply.text
    guard = guarded(text, hide, consult.leak_policy)
    written = consult.codec.feedback(text, consult.limits.max_feedback_tokens)
    block = (
        written
        if guard.text == text
        else consult.codec.feedback(guard.text, consult.limits.max_feedback_tokens)
    )
    tokens = written.content[1] - written.content[0]
    begin, end = block.content
    if begin == end:
        why = (
            "it states the answer" if guard.leaked else "nothing of the reply can be said in this vocabulary"
        )
        return _ProcessedReply(
            outcome=ConsultOutcome.EMPTY, detail=why, written_tokens=tokens, leaked=guard.leaked
        )
    log_q = _log_q(block, answer.reply.log_probs) if block is written else ()
    insertion = Segment(Source.FEEDBACK, block.ids, log_q), block.content
    return _ProcessedReply(
        outcome=answer.outcome,
        detail="",
        written_tokens=tokens,
        leaked=guard.leaked,
        reply=consult.codec.text(block.ids[begin:end]),
        insertion=insertion,
    )


def _log_q(block: FeedbackBlock, reported: tuple[float, ...]) -> tuple[float, ...]:
    """Return the agent's log-probability of each token of a block; 0 at the tags, which the system wrote.

    Degenerate case: () where the agent reports none, or fewer than the policy reads.
    """
    begin, end = block.content
    if not reported or len(reported) < end - begin:
        return ()
    return (0.0,) * begin + reported[: end - begin] + (0.0,) * (len(block.ids) - end)
