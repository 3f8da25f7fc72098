"""The one rollout coroutine: the policy writes, pauses to consult, reads the feedback, and writes on.

The same coroutine serves training, evaluation and `aipo rollout`, with any engine and any agents. Token ids
are appended once and never encoded again, so what the engine saw is what is trained on. An agent's failure is
an outcome of its consultation, never an exception and never a reward.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import isfinite
from typing import NamedTuple

from aipo.agents.base import NOTHING_USED, AgentFailure, AgentQuery, Usage
from aipo.consult.requests import Malformed, Request
from aipo.core.seeds import seed_of
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Condition, ConsultOutcome, SoloMode, Source, StopReason
from aipo.engines.base import Completion, Engine, EngineError, GenerationRequest, Sampling
from aipo.rollout.asking import ask
from aipo.rollout.elicit import BOUNDARY_STOPS, Opening, Watch, ends_sentence
from aipo.rollout.leaks import Hide
from aipo.rollout.replies import ConsultContext as ConsultContext
from aipo.rollout.replies import Insertion, processed

NOT_FINITE = "the policy gave log-probabilities that are not finite numbers"
"""Why a rollout fails when weights or logits have become NaN or infinite."""


class AgentName(str):
    """An agent's name in a seed path. Renaming this class would change every recorded `context`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consultation:
    """One request and its outcome."""

    agent: str | None
    """None for a malformed request that names no agent."""
    request: str
    outcome: ConsultOutcome
    reply: str
    """The agent's words as the policy read them, neutralised and cut; empty unless ANSWERED."""
    reply_tokens: int
    """Tokens of the agent's words, cut to the limit, before the leak guard hid any of them."""
    detail: str
    """Why the request was malformed or failed; empty when it was answered."""
    context: str
    """Hash of everything that the agent saw: two consultations with the same hash asked the same."""
    latency_s: float
    leaked: bool = False
    """Whether the agent stated the final answer, even if the leak guard hid it."""
    usage: Usage = NOTHING_USED
    failure: AgentFailure | None = None
    """What kind of failure it was, where `outcome` is AGENT_ERROR."""
    elicited: bool = False
    """Whether the system opened the request's tag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """What one rollout produced."""

    stream: TokenStream
    response: str
    """The assistant's turn as text, end token excluded."""
    policy_text: str
    """The part of `response` that the policy wrote. Only this is graded, so that no agent can answer for the
    policy."""
    stop: StopReason
    consultations: tuple[Consultation, ...]
    consult_spans: tuple[tuple[int, int], ...]
    """Spans of token positions that a consult-stripped copy leaves out: requests, tags, notices."""
    weights_version: int | None = None
    """Of the weights that sampled, the oldest if they changed midway; None: the engine has the trainer's."""
    opened: tuple[int, ...] | None = None
    """Indices of the segments that are tags which the system wrote, to open and perhaps to close a request;
    () if it found no place to open one, None if it was not to open any."""
    segment_versions: tuple[int | None, ...] = ()
    """Of the weights that sampled each POLICY segment, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A rollout as its latest consultation left it: it can go on from there, in another process too."""

    segments: tuple[Segment, ...]
    segment_versions: tuple[int | None, ...]
    consultations: tuple[Consultation, ...]
    consult_spans: tuple[tuple[int, int], ...]


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
    """Which agent's tag the system is to open, and how; None: it opens none."""
    group: str = ""
    """Rollouts of a group begin alike, and an engine of several servers keeps them together."""
    begun: Begun | None = None
    """Where to go on, in a rollout whose tags the system does not open; None: from the prompt."""
    keep: Callable[[Begun], object] | None = None
    """Told after each consultation."""


async def rollout(engine: Engine, spec: RolloutSpec, consult: ConsultContext) -> Rollout:
    """Produce one rollout. Raises `EngineError`; nothing that an agent does is raised."""
    episode = _Episode(engine, spec, consult)
    try:
        return await episode.run()
    finally:
        await engine.release(spec.id)


class _OpenRequest(NamedTuple):
    """A request that the system opened: where its tag begins, and how long the sequence may be at its end."""

    start: int
    limit: int


class _Episode:
    """A rollout in progress."""

    def __init__(self, engine: Engine, spec: RolloutSpec, consult: ConsultContext) -> None:
        self._engine, self._spec, self._context = engine, spec, consult
        self._segments = [Segment(Source.PROMPT, spec.prompt_ids)]
        self._ids = list(spec.prompt_ids)
        self._last_insertion_end = len(self._ids)
        self._consultations: list[Consultation] = []
        self._consult_spans: list[tuple[int, int]] = []
        self._versions: list[int | None] = []
        """Of the POLICY segments."""
        self._turn_ended = False
        """Whether the policy has just sampled the end of its turn."""
        self._opened_tags: list[int] = []
        """Indices of the segments that are tags which the system wrote."""
        self._watch = Watch(spec.opening, spec.problem, spec.seed) if spec.opening else None
        """Looks for the place to open a request; None once that is settled, or if none is to be opened."""
        self._open_request: _OpenRequest | None = None
        if spec.begun:
            self._go_on_from(spec.begun)

    def _go_on_from(self, begun: Begun) -> None:
        self._segments = list(begun.segments)
        self._ids = [token for segment in begun.segments for token in segment.ids]
        self._last_insertion_end = len(self._ids)
        self._versions = list(begun.segment_versions)
        self._consultations = list(begun.consultations)
        self._consult_spans = list(begun.consult_spans)

    def _begun(self) -> Begun:
        return Begun(
            segments=tuple(self._segments),
            segment_versions=tuple(self._versions),
            consultations=tuple(self._consultations),
            consult_spans=tuple(self._consult_spans),
        )

    async def run(self) -> Rollout:
        stop = await self._written()
        stream = TokenStream(tuple(self._segments))
        end = len(self._ids) - 1 if stop is StopReason.END else len(self._ids)
        own = [i for i, source in enumerate(stream.sources[:end]) if source is Source.POLICY]
        return Rollout(
            stream=stream,
            response=self._context.codec.text(self._ids[stream.prompt_length : end]),
            policy_text=self._context.codec.text([self._ids[i] for i in own]),
            stop=stop,
            consultations=tuple(self._consultations),
            consult_spans=tuple(self._consult_spans),
            weights_version=min((v for v in self._versions if v is not None), default=None),
            opened=tuple(self._opened_tags) if self._spec.opening else None,
            segment_versions=tuple(self._versions),
        )

    async def _written(self) -> StopReason:
        """Write the response to its end."""
        while self._room() > 0:
            self._open_if_due()
            stop = await self._generate()
            self._turn_ended = stop is StopReason.END
            if self._turn_ended and not self._may_ask_by_ending():
                return stop
            if stop is StopReason.LENGTH and not self._request_is_full():
                return stop
            found = self._end_request()
            if found is None and self._turn_ended:
                return stop
            if found is None:
                continue  # it paused at a sentence's end, or at a stop string that is part of other text
            if not await self._consult(found):
                break
            if self._spec.keep:
                self._spec.keep(self._begun())
        return StopReason.LENGTH

    def _may_ask_by_ending(self) -> bool:
        return self._spec.condition is Condition.CONSULTING and self._context.protocol.ends_with_turn

    def _room(self) -> int:
        """Return how many more tokens the response may have."""
        used = len(self._ids) - len(self._spec.prompt_ids)
        return self._context.limits.max_response_tokens - used

    async def _generate(self) -> StopReason:
        spec, consult = self._spec, self._context
        consulting = spec.condition is Condition.CONSULTING
        limit = self._open_request.limit - len(self._ids) if self._open_request else self._room()
        banned = not consulting and spec.solo_mode is SoloMode.BANNED
        completion = await self._engine.generate(
            GenerationRequest(
                session=spec.id,
                prefix_ids=tuple(self._ids),
                max_new_tokens=limit,
                stop=consult.protocol.stop_strings + self._pauses() if consulting else (),
                banned_sequences=consult.codec.banned_sequences() if banned else (),
                sampling=spec.sampling,
                seed=spec.seed,
                group=spec.group,
            )
        )
        if not all(map(isfinite, completion.log_probs)):
            raise EngineError(NOT_FINITE)
        for segment, version in _by_version(completion):
            self._append(segment)
            self._versions.append(version)
        # The limit may be reached exactly where a request ends; then no room is left for a reply.
        cut = completion.stop is StopReason.STOP_STRING and self._room() < 1
        return StopReason.LENGTH if cut else completion.stop

    def _append(self, segment: Segment) -> None:
        self._segments.append(segment)
        self._ids += segment.ids

    # a request that the system opens

    def _pauses(self) -> tuple[str, ...]:
        """Return the strings that the policy pauses at, so that a tag can be opened or closed there."""
        opening = self._spec.opening
        closes = self._open_request is not None and opening is not None and opening.how.system_closes
        return BOUNDARY_STOPS if self._watch or closes else ()

    def _request_is_full(self) -> bool:
        return self._open_request is not None and len(self._ids) >= self._open_request.limit

    def _open_if_due(self) -> None:
        """Open a request after the sentence where it is due, unless the policy has made one itself."""
        opening, codec = self._spec.opening, self._context.codec
        if self._watch is None or opening is None:
            return
        limits, (begin, end) = self._context.limits, codec.request_tags(opening.agent)
        # What is left for the request after its tags, a reply and one token of an answer.
        reply_room = codec.request_room(limits.max_feedback_tokens)
        request_room = self._room() - len(begin) - len(end) - reply_room - 1
        if self._consultations or limits.max_consultations < 1 or request_room < 1:
            self._watch = None
            return
        response = codec.text(self._ids[len(self._spec.prompt_ids) :])
        log_probs = [p for segment in self._segments[1:] for p in segment.log_probs]
        has_tag = any(tag in response for tag in self._context.protocol.control_strings)
        if has_tag or not self._watch.opens(response, log_probs):
            return
        self._watch = None
        limit = len(self._ids) + len(begin) + min(request_room, opening.how.max_request_tokens)
        self._open_request = _OpenRequest(len(self._ids), limit)
        self._append_tag(begin)

    def _append_tag(self, ids: tuple[int, ...]) -> None:
        assert self._spec.opening is not None
        self._opened_tags.append(len(self._segments))
        self._append(Segment(self._spec.opening.how.source, ids))

    def _end_request(self) -> Request | Malformed | None:
        """Return the request that has just ended; close one that the system opened, if it is to."""
        found, opened = self._parse(), self._open_request
        opening = self._spec.opening
        if found is not None or opened is None or opening is None:
            return found
        begin, end = self._context.codec.request_tags(opening.agent)
        written = self._context.codec.text(self._ids[opened.start + len(begin) :])
        if opening.how.system_closes and (self._request_is_full() or ends_sentence(written)):
            self._append_tag(end)
            return self._parse()
        if self._request_is_full():
            before = self._context.codec.text(self._ids[self._last_insertion_end : opened.start])
            return Malformed(f"not closed within {opening.how.max_request_tokens} tokens", len(before))
        return None

    def _parse(self) -> Request | Malformed | None:
        return self._context.protocol.parse(self._context.codec.text(self._ids[self._last_insertion_end :]))

    # consultations

    async def _consult(self, found: Request | Malformed) -> bool:
        """Answer one request and insert what the policy reads; return False where not even a notice fits."""
        request_at = self._last_insertion_end + self._context.codec.token_at(
            self._ids[self._last_insertion_end :], found.start
        )
        opened, self._open_request = self._open_request, None
        if opened:  # the request begins with its tag, even if the policy wrote another tag inside it
            request_at = min(request_at, opened.start)
        self._consult_spans.append((request_at, len(self._ids)))
        consultation, insertion = await self._ask_or_refuse(found)
        consultation = replace(consultation, elicited=True) if opened else consultation
        insertion = insertion or self._notice(consultation)
        (begin, end), start, inserted = insertion.words, len(self._ids), len(insertion)
        around_words = [(start, start + begin), (start + end, start + inserted)]
        self._consultations.append(consultation)
        if inserted > self._room():
            return False
        for segment in insertion.segments:
            self._append(segment)
        self._consult_spans += around_words
        self._last_insertion_end = len(self._ids)
        return True

    def _notice(self, consultation: Consultation) -> Insertion:
        """Return what the policy reads where no agent's words come."""
        ids = self._context.codec.notice(
            consultation.outcome, consultation.agent, turn_ended=self._turn_ended
        )
        return Insertion((Segment(Source.SCAFFOLD, ids),), (0, 0))

    async def _ask_or_refuse(self, found: Request | Malformed) -> tuple[Consultation, Insertion | None]:
        """Return the consultation, and what to insert if the agent answered."""
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

    async def _ask(self, request: Request) -> tuple[Consultation, Insertion | None]:
        spec = self._spec
        whole = self._context.codec.text(self._ids[len(spec.prompt_ids) :])
        latest = self._context.codec.text(self._ids[self._last_insertion_end :])
        before = whole[: len(whole) - len(latest) + request.start]
        seed = seed_of(spec.seed, "consultation", len(self._consultations))
        query = AgentQuery(problem=spec.problem, rollout=before, request=request.text, seed=seed)
        begun = time.monotonic()
        answer = await ask(self._context.agents[request.agent], query, self._context.agent_timeout_s)
        latency_s = time.monotonic() - begun
        said = processed(answer, self._context, spec.hide_answer, request.agent, self._turn_ended)
        consultation = Consultation(
            agent=request.agent,
            request=request.text,
            outcome=said.outcome,
            reply=said.reply,
            reply_tokens=said.written_tokens,
            detail=said.detail,
            context=f"{seed_of(AgentName(request.agent), query.problem, query.rollout, query.request):016x}",
            latency_s=latency_s,
            leaked=said.leaked,
            usage=answer.usage,
            failure=answer.failure,
        )
        return consultation, said.insertion

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


def _by_version(completion: Completion) -> Iterator[tuple[Segment, int | None]]:
    """Yield what was sampled, cut where the weights changed, with their versions."""
    if not completion.versions:
        yield Segment(Source.POLICY, completion.ids, completion.log_probs), completion.weights_version
        return
    start = 0
    for version, run in groupby(completion.versions):
        end = start + len(list(run))
        yield Segment(Source.POLICY, completion.ids[start:end], completion.log_probs[start:end]), version
        start = end
