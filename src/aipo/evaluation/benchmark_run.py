"""Sampling benchmarks: what is missing of an evaluation, batch by batch, each on the disk before the next.

Owns the order of samples, their seed paths and what becomes of a prompt that does not fit. Must not know
settings, files of questions or statistics. Invariant: in the condition `solo` no agent exists, and a rollout
that consulted is an error; a sample that is on the disk is not made again.

A batch is a stretch of the plan, so that samples.jsonl grows in the plan's order whatever the concurrency,
and a killed evaluation that goes on ends with the same bytes. (A seed path decides every draw. The batch that
a crash tore is smaller when it goes on, and a matrix product may round otherwise in another batch size; draws
within 1e-7 of a boundary could then differ.)
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from aipo.consult.limits import Limits
from aipo.core.seeds import seed_of
from aipo.core.types import Condition, SoloMode, Source, Verdict
from aipo.engines.base import Engine, EngineError, Sampling
from aipo.evaluation.manifest import EvaluationError, Manifest, Questions
from aipo.evaluation.samples import TOO_LONG, Sample, SampleFile
from aipo.grading import Grade
from aipo.rollout.episode import ConsultContext, Rollout, RolloutSpec, rollout
from aipo.rollout.group import Prompts
from aipo.tasks.base import Problem, Task
from aipo.training.events import StopRunError

SOLO, AGENTS = "solo", "agents"


@dataclass(frozen=True, slots=True)
class Entry:
    """A benchmark that is ready to be asked."""

    questions: Questions
    task: Task
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A problem as one condition asks it."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    unknown_tokens: int
    room: int
    """Tokens that the response may have; below `least`, the problem is not asked."""


@dataclass(frozen=True, slots=True)
class Evaluator:
    """What samples, for both conditions: the consult of `solo` has no agents."""

    engine: Engine
    consults: Mapping[str, ConsultContext]
    prompts: Mapping[str, Prompts]
    sampling: Sampling
    solo_mode: SoloMode
    context: int
    """Tokens of prompt and response that the policy can take."""
    batch: int
    max_ungraded_share: float
    retry_ungraded: bool = False
    """Make UNGRADED samples of earlier calls once more."""
    report: Callable[[str, int, int], None] = field(default=lambda what, done, total: None)

    def __post_init__(self) -> None:
        if self.consults[SOLO].agents or self.consults[SOLO].limits.max_consultations:
            raise ValueError("a solo evaluation has no agents and no consultations")

    async def run(self, entries: Sequence[Entry], manifest: Manifest, samples: SampleFile) -> None:
        """Make every sample that is missing.

        Raises:
            StopRunError: more samples than allowed could not be graded.
        """
        read = samples.read()
        done = {key: sample for key, sample in read.items() if sample.graded or not self.retry_ungraded}
        for condition in manifest.conditions:
            for entry in entries:
                asked = [self.asked(entry, problem, condition) for problem in entry.problems]
                plan = [(a, index) for a in asked for index in range(entry.questions.samples)]
                what = f"{entry.questions.title}, {condition}"
                keys = [(condition, entry.questions.name, a.problem.id, index) for a, index in plan]
                left = [place for place, key in zip(plan, keys, strict=True) if key not in done]
                found = [done[key] for key in keys if key in done]
                refuse_ungraded(found, self.max_ungraded_share, what)
                for batch in _batches(left, self.batch):
                    new = await asyncio.gather(
                        *(self._sample(entry, a, index, condition, manifest) for a, index in batch)
                    )
                    samples.append(new)
                    found += new
                    self.report(what, len(found), len(plan))
                    refuse_ungraded(found, self.max_ungraded_share, what)

    def asked(self, entry: Entry, problem: Problem, condition: str) -> Asked:
        """Return a problem's prompt and the room that is left for its response."""
        prompts = self.prompts[condition]
        ids = prompts.ids(problem, Condition.SOLO if condition == SOLO else Condition.CONSULTING)
        unknown = prompts.tokenizer.unk_token_id
        room = min(entry.questions.max_response_tokens, self.context - len(ids))
        return Asked(problem, ids, 0 if unknown is None else ids.count(unknown), room)

    def least(self, condition: str) -> int:
        """Return the smallest room with which a problem is asked: one token, or one whole consultation."""
        if condition == SOLO:
            return 1
        consult = self.consults[condition]
        return consult.codec.request_room(consult.limits.max_feedback_tokens) + 3

    async def _sample(
        self, entry: Entry, asked: Asked, index: int, condition: str, manifest: Manifest
    ) -> Sample:
        problem, questions = asked.problem, entry.questions
        path = (manifest.seed, "benchmarks", questions.name, condition, problem.id, index)
        produced, grade = None, Grade(Verdict.INCORRECT, TOO_LONG)
        if asked.room >= self.least(condition):
            produced, grade = await self._produced(entry.task, asked, condition, path)
        feedback = produced.stream.sources.count(Source.FEEDBACK) if produced else 0
        if condition == SOLO and produced and (produced.consultations or feedback):
            raise EvaluationError(f"{problem.id}: a solo rollout consulted; this is a defect of aipo")
        return Sample(
            condition=condition,
            benchmark=questions.name,
            problem=problem.id,
            stratum=problem.stratum,
            index=index,
            seed_path=path,
            questions=questions.digest,
            policy=manifest.policy,
            prompt_tokens=len(asked.prompt_ids),
            unknown_tokens=asked.unknown_tokens,
            response=produced.response if produced else "",
            response_tokens=len(produced.stream.ids) - len(asked.prompt_ids) if produced else 0,
            agent_tokens=sum(c.reply_tokens for c in produced.consultations) if produced else 0,
            consultations=len(produced.consultations) if produced else 0,
            stop=produced.stop.value if produced else "",
            verdict=grade.verdict.value,
            reason=grade.reason,
        )

    async def _produced(
        self, task: Task, asked: Asked, condition: str, path: tuple[str | int, ...]
    ) -> tuple[Rollout | None, Grade]:
        """Sample and grade one response; an engine's failure is UNGRADED."""
        consult = self.consults[condition]
        limits = Limits(consult.limits.max_consultations, consult.limits.max_feedback_tokens, asked.room)
        spec = RolloutSpec(
            id="/".join(map(str, path)),
            problem=asked.problem.text,
            prompt_ids=asked.prompt_ids,
            condition=Condition.SOLO if condition == SOLO else Condition.CONSULTING,
            seed=seed_of(*path),
            solo_mode=self.solo_mode,
            sampling=self.sampling,
            hide_answer=partial(task.without_answer, asked.problem),
        )
        try:
            produced = await rollout(self.engine, spec, replace(consult, limits=limits))
        except EngineError as error:
            return None, Grade(Verdict.UNGRADED, f"engine: {error}")
        return produced, await task.grade(asked.problem, produced.policy_text)


def refuse_ungraded(samples: Sequence[Sample], max_share: float, what: str) -> None:
    """Stop where too many samples have no verdict: a number from the rest would not be the policy's.

    Raises:
        StopRunError: with the commonest reason.
    """
    failed = [sample.reason for sample in samples if not sample.graded]
    if not samples or len(failed) / len(samples) <= max_share:
        return
    reason = max(sorted(set(failed)), key=failed.count)
    raise StopRunError(
        f"{what}: {len(failed)} of {len(samples)} samples could not be graded, more than "
        f"--max-ungraded-share {max_share:g}; the commonest reason: {reason:.200}. Mend it, then give the "
        "same command with --retry-ungraded"
    )


def _batches(places: Sequence[tuple[Asked, int]], size: int) -> Iterator[Sequence[tuple[Asked, int]]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]
