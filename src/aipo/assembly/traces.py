"""What a warm start imitates: an expert's turns, with real consultations put in by the protocol.

A source says what the expert writes and whom it asks; an engine that writes just that takes the policy's
place in the one rollout coroutine. So a trace is what a run would have recorded: tags, limits, the agent's
own answer, the leak guard, and the source of each token.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random

from aipo.agents.spec import AgentSpec
from aipo.assembly.parts import Parts
from aipo.config.warmstart import TraceSettings
from aipo.core.registry import Registry
from aipo.core.seeds import seed_of
from aipo.core.tokens import TokenStream
from aipo.core.types import Condition, ConsultOutcome, StopReason, Verdict
from aipo.engines.base import Completion, EngineError, GenerationRequest
from aipo.rollout.episode import RolloutSpec, rollout
from aipo.tasks.base import Ask, Problem, Split, TaskSpec

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
    rng: Random


Turn = Sequence[str | Ask]
"""The assistant's turn: text, and consultations where they stand; no two of the texts are neighbours."""
Source = Callable[[TurnRequest], Awaitable[Turn | None]]
"""Returns the turn on a problem, None where it has none."""

TRACES: Registry[Source] = Registry("warmstart.source", callable, "aipo.traces")


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
    agent = request.rng.choice(list(request.agents))
    pauses = [0, *(found.start() for found in _PAUSE.finditer(problem.solution))]
    at = request.rng.choice(pauses)
    asked = Ask(agent.name, agent.rehearsal)
    return [*filter(None, [problem.solution[:at]]), asked, problem.solution[at:]]


TRACES.register("solution", solution)


class Script:
    """An engine that writes given pieces of ids: all but the last end with a stop string."""

    def __init__(self, *pieces: Sequence[int]) -> None:
        self._pieces = [tuple(piece) for piece in pieces]

    async def generate(self, request: GenerationRequest) -> Completion:
        """Write the next piece. Raises `EngineError` where it does not fit, or none is left."""
        if not self._pieces or len(self._pieces[0]) > request.max_new_tokens:
            raise EngineError("it does not fit rollout.max_response_tokens")
        ids = self._pieces.pop(0)
        stop = StopReason.STOP_STRING if self._pieces else StopReason.END
        return Completion(ids=ids, log_probs=(0.0,) * len(ids), stop=stop)

    async def release(self, session: str) -> None:
        """Forget nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """Traces to learn from, and others to measure on."""

    learnt: tuple[TokenStream, ...]
    held_out: tuple[TokenStream, ...]
    notes: tuple[str, ...]
    """What was left out, and how grading sees the rest."""


async def make_traces(settings: TraceSettings, task: TaskSpec, parts: Parts) -> Traces:
    """Return the traces of a warm start. Raises `TraceError` where a kind of them has none."""
    w = settings.warmstart
    solo, held_solo = round(w.examples * w.solo_fraction), round(w.held_out * w.solo_fraction)
    maker = _Maker(settings, task, parts)
    kinds = (
        (Condition.SOLO, solo, held_solo, w.solo_strata),
        (Condition.CONSULTING, w.examples - solo, w.held_out - held_solo, w.consulting_strata),
    )
    learnt: list[TokenStream] = []
    held_out: list[TokenStream] = []
    for condition, wanted, held, strata in kinds:
        if wanted:
            problems = maker.problems(condition, strata)
            held = min(held, len(problems) // 4)  # of few problems, most are to be learnt
            held_out += await maker.traces(condition, problems[:held], held)
            learnt += await maker.traces(condition, problems[held:], wanted)
    return Traces(learnt=tuple(learnt), held_out=tuple(held_out), notes=maker.notes())


class _Maker:
    def __init__(self, settings: TraceSettings, task: TaskSpec, parts: Parts) -> None:
        self._settings, self._task, self._parts = settings, task, parts
        self._source, self._seed = TRACES[settings.warmstart.source], settings.run.seed
        self._lost: Counter[str] = Counter()
        self._verdicts: Counter[Verdict] = Counter()

    def problems(self, condition: Condition, strata: Sequence[str]) -> list[Problem]:
        """Return the training problems of some strata in an order drawn by the run's seed."""
        if condition is Condition.CONSULTING and not self._settings.agents.enabled:
            raise TraceError(
                "agents.enabled = []: a trace that consults needs an agent; enable one, or set "
                "warmstart.solo_fraction = 1"
            )
        everything = self._parts.task.problems(Split.TRAIN)
        found = [problem for problem in everything if not strata or problem.stratum in strata]
        if not found:
            known = sorted({problem.stratum for problem in everything})
            raise TraceError(
                f"warmstart.{condition.value}_strata = {list(strata)}: the task has no such training "
                f"problems; its strata are {', '.join(known)}"
            )
        Random(seed_of(self._seed, "warmstart", condition.value)).shuffle(found)
        return found

    async def traces(
        self, condition: Condition, problems: Sequence[Problem], wanted: int
    ) -> list[TokenStream]:
        """Return so many traces, of all problems before any comes again. Raises `TraceError` for none."""
        places = [(problems[i % len(problems)], i) for i in range(wanted)]
        made = await asyncio.gather(*(self._trace(condition, *place) for place in places))
        found = [stream for stream in made if stream is not None]
        if places and not found:
            why = ", ".join(self._lost)
            raise TraceError(
                f"warmstart.source = {self._settings.warmstart.source!r}: not one {condition.value} trace "
                f"could be made ({why}); a task's problems need solutions (task.solution_field), agents must "
                "answer, and a trace must fit rollout.max_response_tokens"
            )
        return found

    async def _trace(self, condition: Condition, problem: Problem, index: int) -> TokenStream | None:
        seed = seed_of(self._seed, "warmstart", condition.value, problem.id, index)
        turn = await self._source(
            TurnRequest(
                problem=problem,
                condition=condition,
                task=self._task,
                agents=self._settings.agents.specs(),
                parts=self._parts,
                rng=Random(seed),
            )
        )
        if turn is None:
            self._lost["no solution"] += 1
            return None
        sampler = self._parts.sampler
        spec = RolloutSpec(
            id=f"{problem.id}#{index}",
            problem=problem.text,
            prompt_ids=sampler.prompts.ids(problem, condition),
            condition=condition,
            seed=seed,
            hide_answer=lambda text: sampler.task.without_answer(problem, text),
        )
        try:
            made = await rollout(Script(*self._pieces(turn)), spec, sampler.consult)
        except EngineError as error:
            self._lost[str(error)] += 1
            return None
        failed = [c for c in made.consultations if c.outcome is not ConsultOutcome.ANSWERED]
        asked = sum(isinstance(piece, Ask) for piece in turn)
        if failed or len(made.consultations) != asked:
            self._lost[f"{failed[0].agent}: {failed[0].outcome.value}" if failed else "not asked"] += 1
            return None
        self._verdicts[(await sampler.task.grade(problem, made.policy_text)).verdict] += 1
        return made.stream

    def _pieces(self, turn: Turn) -> list[list[int]]:
        """Return what the policy writes between two consultations, as ids; the end token is the last one."""
        protocol, tokenizer = self._parts.sampler.consult.protocol, self._parts.tokenizer
        texts = [""]
        for piece in turn:
            if isinstance(piece, str):
                texts[-1] += piece
            else:
                request = f"{protocol.request_open(piece.agent)}{piece.request}"
                texts[-1] += request + protocol.request_close(piece.agent)
                texts.append("")
        pieces = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        pieces[-1].append(int(tokenizer.eos_token_id))
        return pieces

    def notes(self) -> tuple[str, ...]:
        """Return what was left out and why, and what grading says of the rest."""
        graded = self._verdicts.total()
        lines = [f"left out: {count} x {why}" for why, count in self._lost.most_common()]
        right = self._verdicts[Verdict.CORRECT]
        if right < graded:
            lines.append(
                f"grading calls {right} of {graded} traces correct; a policy that imitates them learns no "
                "better form"
            )
        return tuple(lines)
