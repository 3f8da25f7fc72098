"""What a warm start imitates: turns from a source, with real consultations put in by the protocol.

A source (`aipo.assembly.trace_sources`) says what is written and whom it asks; an engine that writes just
that takes the policy's place in the one rollout coroutine. So a trace is what a run would have recorded:
tags, limits, the agent's own answer, the leak guard, and the source of each token. What was made is kept as
it comes, so that a warm start that is begun again pays nobody twice.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from random import Random
from typing import Any

from aipo.agents.base import AgentError
from aipo.assembly.parts import Parts
from aipo.assembly.trace_sources import TraceError, TraceSource, Turn, TurnRequest, Write
from aipo.config.warmstart import TraceSettings
from aipo.core.seeds import seed_of
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Condition, ConsultOutcome, Source, StopReason, Verdict
from aipo.engines.base import Completion, EngineError, GenerationRequest, MemoryHolder
from aipo.rollout.episode import Rollout, RolloutSpec, rollout
from aipo.tasks.base import Ask, Problem, Split, TaskSpec

LINES_EVERY_S = 10.0
_ELSEWHERE = frozenset(
    "base_url api_key_env timeout_s concurrency retries retry_wait_s check_at_start cache cache_folder "
    "cache_megabytes".split()
)
"""Settings of agents that say where and how a reply is fetched, not what it says."""
_FIX = "a task's problems need solutions (task.solution_field)"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of one turn: a trace, or the reason why there is none."""

    lost: str = ""
    gone: bool = False
    """Whether it was lost because nobody answered; then it is made again the next time."""
    verdict: Verdict = Verdict.UNGRADED
    stream: TokenStream | None = None


class Kept:
    """The attempts so far, in a file: one JSON object a line, behind a line with the settings they are of."""

    def __init__(self, path: Path | None, settings: TraceSettings) -> None:
        """Read what is there; of other settings it is begun anew. None: nothing is kept."""
        self._path, self._known = path, {}
        head = json.dumps({"settings": _that_matter(settings)}, sort_keys=True, default=str)
        lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
        if lines[:1] == [head]:
            self._known = dict(filter(None, map(_read, lines[1:])))
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                "".join(f"{line}\n" for line in [head, *map(_line, self._known.items())]), "utf-8"
            )

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Attempt | None:
        """Return an attempt that was made before."""
        return self._known.get(key)

    def add(self, key: str, attempt: Attempt) -> None:
        """Keep one, on the disk as soon as it is made."""
        self._known[key] = attempt
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line((key, attempt)) + "\n")


class TraceMaker:
    """Makes the traces of a warm start; `say` takes how far it is."""

    def __init__(
        self,
        settings: TraceSettings,
        task: TaskSpec,
        parts: Parts,
        source: tuple[TraceSource, Write],
        kept: Kept,
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._task, self._parts = settings, task, parts
        (self._source, self._write), self._kept, self._say = source, kept, say
        self._seed = settings.run.seed
        self._in_flight = asyncio.Semaphore(settings.rollout.slots)
        self._lost: Counter[str] = Counter()
        self._verdicts: Counter[Verdict] = Counter()
        self._fewer: list[str] = []
        self._made_any: set[Condition] = set()

    async def make(self) -> Traces:
        """Return all of them. Raises `TraceError` where a kind of them has none."""
        w = self._settings.warmstart
        solo, held_solo = round(w.examples * w.solo_fraction), round(w.held_out * w.solo_fraction)
        kinds = (
            (Condition.SOLO, solo, held_solo, w.solo_strata),
            (Condition.CONSULTING, w.examples - solo, w.held_out - held_solo, w.consulting_strata),
        )
        learnt: list[TokenStream] = []
        held_out: list[TokenStream] = []
        for condition, wanted, held, strata in kinds:
            if wanted:
                problems = self._problems(condition, strata)
                held = min(held, len(problems) // 4)  # of few problems, most are to be learnt
                learnt += await self._traces(condition, problems[held:], wanted)
                held_out += await self._traces(condition, problems[:held], held)
        if isinstance(engine := self._parts.policy_engine.engine, MemoryHolder):
            engine.free()
        return Traces(learnt=tuple(learnt), held_out=tuple(held_out), notes=self._notes())

    def _problems(self, condition: Condition, strata: Sequence[str]) -> list[Problem]:
        """Return the training problems of some strata in an order drawn by the run's seed."""
        if condition is Condition.CONSULTING and not self._settings.agents.enabled:
            raise TraceError(
                "agents.enabled = []: a trace that consults needs an agent; enable one, or set "
                "warmstart.solo_fraction = 1"
            )
        everything = self._parts.problems(Split.TRAIN)
        found = [problem for problem in everything if not strata or problem.stratum in strata]
        if not found:
            known = sorted({problem.stratum for problem in everything})
            raise TraceError(
                f"warmstart.{condition.value}_strata = {list(strata)}: the task has no such training "
                f"problems; its strata are {', '.join(known)}"
            )
        Random(seed_of(self._seed, "warmstart", condition.value)).shuffle(found)
        return found

    async def _traces(
        self, condition: Condition, problems: Sequence[Problem], wanted: int
    ) -> list[TokenStream]:
        """Return so many traces, of all problems before any comes again.

        Raises `TraceError` where none could be made, the first time; of the held-out ones there may be none.
        """
        most = wanted * (self._settings.warmstart.tries if self._source.only_correct else 1)
        found: list[TokenStream] = []
        tried, said = 0, time.monotonic()
        while len(found) < wanted and tried < most:
            expected = ceil((wanted - len(found)) * max(tried, 1) / max(len(found), 1))
            at_once = min(expected if tried else wanted, most - tried, self._settings.rollout.slots)
            places = [(problems[i % len(problems)], i) for i in range(tried, tried + at_once)]
            attempts = await asyncio.gather(*(self._attempt(condition, *place) for place in places))
            tried += at_once
            if all(attempt.gone for attempt in attempts):
                raise TraceError(self._nobody_there(attempts))
            found += [attempt.stream for attempt in attempts if attempt.stream is not None]
            if time.monotonic() - said > LINES_EVERY_S:
                said = time.monotonic()
                self._say(f"{min(len(found), wanted)} of {wanted} {condition} traces, {tried} attempts")
        if wanted and not found and condition not in self._made_any:
            raise TraceError(self._none(condition))
        self._made_any.add(condition)
        if len(found) < wanted and self._source.only_correct:
            self._fewer.append(f"{len(found)} {condition} traces instead of {wanted}, of {tried} attempts")
        return found[:wanted]

    def _none(self, condition: Condition) -> str:
        why = ", ".join(f"{count} x {why}" for why, count in self._lost.most_common())
        return (
            f"warmstart.source = {self._settings.warmstart.source!r}: not one {condition.value} trace "
            f"could be made ({why}); {self._source.fix or _FIX}; agents must answer, and a trace must fit "
            "rollout.max_response_tokens"
        )

    def _nobody_there(self, attempts: Sequence[Attempt]) -> str:
        """Say that whoever writes or is asked is gone, and that nothing is lost."""
        return (
            f"warmstart.source = {self._settings.warmstart.source!r}: none of {len(attempts)} attempts was "
            f"answered ({attempts[-1].lost}); {len(self._kept)} attempts of before are kept, and the same "
            "command goes on with them when the server answers again"
        )

    async def _attempt(self, condition: Condition, problem: Problem, index: int) -> Attempt:
        key = f"{condition.value} {problem.id}#{index}"
        attempt = self._kept.get(key)
        if attempt is None:
            async with self._in_flight:
                attempt = await self._made(condition, problem, index)
            if not attempt.gone:
                self._kept.add(key, attempt)
        if attempt.lost:
            self._lost[attempt.lost] += 1
        else:
            self._verdicts[attempt.verdict] += 1
        return attempt

    async def _made(self, condition: Condition, problem: Problem, index: int) -> Attempt:
        seed = seed_of(self._seed, "warmstart", condition.value, problem.id, index)
        sampler = self._parts.sampler
        spec = RolloutSpec(
            id=f"{problem.id}#{index}",
            problem=problem.text,
            prompt_ids=sampler.prompts.ids(problem, condition),
            condition=condition,
            seed=seed,
            hide_answer=lambda text: sampler.task.without_answer(problem, text),
        )
        request = TurnRequest(
            problem=problem,
            condition=condition,
            task=self._task,
            agents=self._settings.agents.specs(),
            parts=self._parts,
            spec=spec,
            rng=Random(seed),
        )
        try:
            turn = await self._write(request)
            if turn is None:
                return Attempt(lost="no solution")
            asked = condition is Condition.CONSULTING
            if not isinstance(turn, Rollout):
                asked = any(isinstance(piece, Ask) for piece in turn)
                turn = await rollout(Script(*self._pieces(turn)), spec, sampler.consult)
        except EngineError as error:
            return Attempt(lost=str(error))
        except AgentError as error:
            return Attempt(lost=str(error), gone=True)
        return await self._judged(problem, turn, asked)

    async def _judged(self, problem: Problem, made: Rollout, asked: bool) -> Attempt:
        failed = [c for c in made.consultations if c.outcome is not ConsultOutcome.ANSWERED]
        if failed:
            gone = failed[0].outcome in (ConsultOutcome.AGENT_ERROR, ConsultOutcome.TIMEOUT)
            return Attempt(lost=f"{failed[0].agent}: {failed[0].outcome.value}", gone=gone)
        if asked and not made.consultations:
            return Attempt(lost="not asked")
        if made.stop is not StopReason.END:
            return Attempt(lost="longer than rollout.max_response_tokens")
        condition = Condition.CONSULTING if asked else Condition.SOLO
        verdict = (await self._parts.sampler.grade(problem, made, condition)).verdict
        if self._source.only_correct and verdict is not Verdict.CORRECT:
            return Attempt(lost=verdict.value)
        return Attempt(verdict=verdict, stream=_own(made))

    def _pieces(self, turn: Turn) -> list[list[int]]:
        """Return what the policy writes between two consultations, as ids; the end token is the last one."""
        protocol, tokenizer = self._parts.sampler.consult.protocol, self._parts.tokenizer
        texts = [""]
        for piece in turn:
            if isinstance(piece, str):
                texts[-1] += piece
            else:
                texts[-1] += protocol.written(piece.agent, piece.request)
                texts.append("")
        pieces = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        pieces[-1].append(int(tokenizer.eos_token_id))
        return pieces

    def _notes(self) -> tuple[str, ...]:
        """Return what was left out and why, and what grading says of the rest."""
        graded = self._verdicts.total()
        lines = [*self._fewer, *(f"left out: {count} x {why}" for why, count in self._lost.most_common())]
        right = self._verdicts[Verdict.CORRECT]
        if right < graded:
            lines.append(
                f"grading calls {right} of {graded} traces correct; a policy that imitates them learns no "
                "better form"
            )
        return tuple(lines)


def _own(made: Rollout) -> TokenStream:
    """Return a rollout in which the tags that the system opened are the policy's own: it is to write them."""
    segments = list(made.stream.segments)
    for index in made.opened or ():
        ids = segments[index].ids
        segments[index] = Segment(Source.POLICY, ids, (0.0,) * len(ids))
    return TokenStream(tuple(segments))


def _that_matter(settings: TraceSettings) -> Mapping[str, Any]:
    """Return the settings that a trace depends on; where servers stand is none of them."""
    dumped = settings.model_dump(mode="json", include={"run", "task", "consult", "agents", "rollout"})
    dumped["run"] = {"seed": settings.run.seed}
    w = settings.warmstart
    expert = w.expert.model_dump(mode="json")
    whole = {**dumped, "warmstart": {"model": w.model, "source": w.source, "expert": expert}}
    return {name: _without(table, _ELSEWHERE) for name, table in whole.items()}


def _without(table: Any, names: frozenset[str]) -> Any:
    if not isinstance(table, dict):
        return table
    return {name: _without(value, names) for name, value in table.items() if name not in names}


def _line(item: tuple[str, Attempt]) -> str:
    key, attempt = item
    record: dict[str, Any] = {"trace": key, "lost": attempt.lost, "verdict": attempt.verdict.value}
    if attempt.stream is not None:
        record["segments"] = [[segment.source.name, segment.ids] for segment in attempt.stream.segments]
    return json.dumps(record)


def _read(line: str) -> tuple[str, Attempt] | None:
    """Return a line's attempt; None for a line that a crash has cut."""
    try:
        record = json.loads(line)
        segments = []
        for name, ids in record.get("segments", ()):
            source = Source[name]
            log_probs = (0.0,) * len(ids) if source is Source.POLICY else ()
            segments.append(Segment(source, tuple(ids), log_probs))
        stream = TokenStream(tuple(segments)) if segments else None
        return record["trace"], Attempt(
            lost=record["lost"], verdict=Verdict(record["verdict"]), stream=stream
        )
    except (ValueError, KeyError, TypeError):
        return None
