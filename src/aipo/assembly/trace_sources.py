"""Where the turns of a warm start's traces come from: solutions, an expert that writes them, or the policy.

A source is asked for one turn on one problem. It returns a turn in words, with consultations where they
stand, or a whole rollout; what becomes of it, grading included, is `aipo.assembly.traces`.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

from aipo.agents.base import Agent, AgentError, AgentQuery
from aipo.agents.prompting import packaged_prompt
from aipo.agents.replies import Reading
from aipo.agents.spec import AgentSpec
from aipo.assembly.agents import build_own
from aipo.assembly.parts import Parts
from aipo.config.warmstart import TraceSettings
from aipo.consult.prompts import system_prompt
from aipo.consult.protocol import Protocol, Request, neutralise
from aipo.core.registry import Registry
from aipo.core.types import Condition, ConsultOutcome
from aipo.engines.base import Sampling
from aipo.rollout.asking import ask
from aipo.rollout.elicit import Elicit
from aipo.rollout.episode import Rollout, RolloutSpec, rollout
from aipo.tasks.base import Ask, Problem, TaskSpec
from aipo.training.eliciting import elicit_of

_PAUSE = re.compile(r"(?<=[.!?])(?=\s+\S)|(?=\n\S)")
"""Where a consultation may be put into a solution: behind a sentence or a line."""


class TraceError(ValueError):
    """No traces can be made; the message names the field, the value and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """What a source makes a turn from."""

    problem: Problem
    condition: Condition
    task: TaskSpec
    agents: Sequence[AgentSpec]
    """The enabled ones."""
    parts: Parts
    """Model, tokenizer, sampler: for sources that let the policy write."""
    spec: RolloutSpec
    """The rollout that the turn is of: its prompt, its seed."""
    rng: Random


Turn = Sequence[str | Ask]
"""The assistant's turn: text, and consultations where they stand; no two of the texts are neighbours."""
Write = Callable[[TurnRequest], Awaitable[Turn | Rollout | None]]
"""Returns the turn on a problem, None where it has none. Raises `AgentError` where whoever writes is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSource:
    """A source whose turns may be wrong, or that is made from settings."""

    make: Callable[[TraceSettings], Write]
    """Called once, before the model is loaded. Raises `ValueError`."""
    only_correct: bool = False
    """Whether a turn that grading does not call correct is left out, and another attempt takes its place."""
    fix: str = ""
    """What helps where no trace could be made."""


def is_source(found: object) -> bool:
    """Say whether something is a source: a `TraceSource`, or a `Write` of your own, taken as it is."""
    return isinstance(found, TraceSource) or callable(found)


TRACES: Registry[Any] = Registry("warmstart.source", is_source, "aipo.traces")


def source_of(name: str) -> TraceSource:
    """Return the entry of a name. Raises `RegistryError`."""
    found = TRACES[name]
    return found if isinstance(found, TraceSource) else TraceSource(make=lambda settings: found)


async def solution(request: TurnRequest) -> Turn | None:
    """Return the problem's solution; to consult, the task's own way or one enabled agent's, at a pause.

    A task that says where it would ask (`TaskSpec.consulted`) is followed. Any other solution is asked about
    at its beginning or between two sentences: which agent and where is drawn, and the request is what `aipo
    doctor` asks that agent.
    """
    problem = request.problem
    if not problem.solution:
        return None
    if request.condition is Condition.SOLO:
        return [problem.solution]
    if request.task.consulted is not None:
        return request.task.consulted(problem)
    return _asked_at_a_pause(request, problem.solution)


def _asked_at_a_pause(request: TurnRequest, text: str) -> Turn:
    agent = request.rng.choice(list(request.agents))
    pauses = [0, *(found.start() for found in _PAUSE.finditer(text))]
    at = request.rng.choice(pauses)
    return [*filter(None, [text[:at]]), Ask(agent.name, agent.rehearsal), text[at:]]


TRACES.register("solution", TraceSource(make=lambda settings: solution))


EXPERT = AgentSpec(
    name="expert",
    tag="expert",
    offer="- $open a problem $close solves it.",
    prompt=packaged_prompt("expert"),
    reader=Reading,
    canary="Answer in one line.",
    rehearsal="how is it solved?",
    colour=("#555555", "#aaaaaa"),
)
"""Whoever writes the solutions; no agent of the policy's."""


class Expert:
    """Has a model write the turns: told what the policy is told, it writes what the policy is to write."""

    def __init__(self, settings: TraceSettings) -> None:
        """Ask it once. Raises `ValueError` where it is not set up, `TraceError` where it does not answer."""
        own = settings.warmstart.expert
        self._timeout_s = own.timeout_s
        made = build_own(settings, own, "warmstart.expert", EXPERT, timeout_s=own.timeout_s, cache=True)
        self._agent: Agent = made.agent
        # Who waits for a free place must not use up the deadline of a request.
        self._free = asyncio.Semaphore(made.fields.concurrency)
        self._overrides = {
            Condition.SOLO: settings.consult.solo_prompt,
            Condition.CONSULTING: settings.consult.consulting_prompt,
        }
        if settings.agents.check_at_start:
            query = AgentQuery(problem="What is 3 + 4?", rollout="", request=EXPERT.canary, seed=0)
            answer = asyncio.run(ask(self._agent, query, self._timeout_s))
            if answer.outcome is not ConsultOutcome.ANSWERED:
                raise TraceError(
                    f"warmstart.expert does not answer ({answer.detail}); start its server, or correct "
                    "warmstart.expert.base_url, .model or .api_key_env"
                )

    async def __call__(self, request: TurnRequest) -> Turn | None:
        """Return what it wrote; consultations are where it wrote requests, else at a pause."""
        consult = request.parts.sampler.consult
        told = system_prompt(request.condition, consult.protocol, self._overrides[request.condition])
        query = AgentQuery(problem=request.problem.text, rollout="", request=told, seed=request.spec.seed)
        async with self._free:
            answer = await ask(self._agent, query, self._timeout_s)
        if answer.reply is None:
            raise AgentError(f"expert: {answer.detail}")
        inert = partial(neutralise, forbidden=consult.codec.forbidden)
        text = answer.reply.text.strip()
        assert isinstance(consult.protocol, Protocol)  # a warm start refuses tool calls
        turn = requests_in(text, consult.protocol) if request.condition is Condition.CONSULTING else [text]
        pieces = [
            inert(piece) if isinstance(piece, str) else Ask(piece.agent, inert(piece.request))
            for piece in turn
        ]
        if request.condition is Condition.CONSULTING and len(pieces) == 1:
            return _asked_at_a_pause(request, inert(text))
        return pieces


def requests_in(text: str, protocol: Protocol) -> list[str | Ask]:
    """Return a turn with the requests in it as consultations, without the replies that it makes up.

    What stands behind the first malformed request is text. The last piece is always text, perhaps ''.
    """
    invented = re.compile(
        rf"\s*{re.escape(protocol.feedback_open)}.*?{re.escape(protocol.feedback_close)}", re.S
    )
    turn: list[str | Ask] = []
    while isinstance(found := protocol.parse(text), Request):
        close = protocol.request_close(found.agent)
        if before := text[: found.start]:
            turn.append(before)
        turn.append(Ask(found.agent, found.text))
        text = invented.sub("", text[text.index(close, found.start) + len(close) :], count=1)
    return [*turn, text]


TRACES.register(
    "expert",
    TraceSource(
        make=Expert,
        only_correct=True,
        fix="an expert must solve the task's problems: name a stronger model in warmstart.expert, raise "
        "warmstart.tries, or choose other strata",
    ),
)


async def _elicited(how: Elicit, temperature: float, request: TurnRequest) -> Turn | Rollout | None:
    consulting = request.condition is Condition.CONSULTING
    spec = replace(
        request.spec,
        sampling=Sampling(temperature=temperature, exact_log_probs=False),
        opening=how.chosen(request.spec.seed, request.spec.seed) if consulting else None,
    )
    return await rollout(request.parts.sampler.engine, spec, request.parts.sampler.consult)


def _make_elicited(settings: TraceSettings) -> Write:
    """Return what samples the policy, each of its consulting rollouts with one elicited consultation."""
    elicit = settings.consult.elicit.model_copy(update={"share": 1.0})
    consult = settings.consult.model_copy(update={"elicit": elicit})
    how = elicit_of(settings.model_copy(update={"consult": consult}))
    assert how is not None
    return partial(_elicited, how, settings.rollout.temperature)


TRACES.register(
    "elicited",
    TraceSource(
        make=_make_elicited,
        only_correct=True,
        fix="the policy must solve some problems, with help and (for solo traces) without: raise "
        "warmstart.tries, choose strata in which it does (warmstart.solo_strata, .consulting_strata), set "
        "warmstart.solo_fraction = 0 for no solo traces, or take another warmstart.source",
    ),
)
