"""Sampling for an evaluation: what is missing of a plan, batch by batch, each recorded before the next.

A benchmark of a checkpoint and a recipe's task are sampled alike. In the solo modes no agent is reachable,
and a rollout that consulted is an error. A sample that is recorded is not made again. Every sample counts:
truncated ones, and prompts that do not fit the policy's context, as wrong; UNGRADED ones leave the
denominator.

A batch is a stretch of the plan, so that samples.jsonl grows in the plan's order whatever the concurrency. A
killed evaluation that goes on ends with the same bytes. (A seed path decides every draw. The batch that a
crash tore is smaller when it goes on, and a matrix product may round otherwise in another batch size; draws
within 1e-7 of a boundary could then differ.)
"""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from aipo.core.seeds import seed_of
from aipo.core.types import Condition, SoloMode, Source, Verdict
from aipo.engines.base import Sampling
from aipo.evaluation.manifest import EvaluationError
from aipo.evaluation.samples import TOO_LONG, Key, Sample, SampleFile
from aipo.rollout.episode import ConsultContext, RolloutSpec
from aipo.rollout.group import MemberRollout, Sampler
from aipo.tasks.base import Grade, Problem
from aipo.training.events import Reporter, StopRunError
from aipo.training.journal import NotRecordedError

WITH_AGENTS = "agents"
"""The mode in which the policy may consult; the others are `SoloMode`s."""
NO_LIMIT = 1 << 30
LINES_EVERY_S = 30.0
"""A line that stays; those between replace one another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingPlan:
    """How each of some problems is sampled, and under which names the samples are recorded."""

    mode: str
    """A `SoloMode`, or `WITH_AGENTS`."""
    samples: int
    """Of each problem."""
    sampling: Sampling
    seed_path: tuple[str | int, ...]
    """A problem's id and a sample's index follow; `core.seeds.seed_of` makes the sampler's seed of it."""
    max_response_tokens: int
    benchmark: str
    condition: str
    questions: str = ""
    policy: str = ""

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.benchmark}, {self.condition}"

    def key(self, problem: Problem, index: int) -> Key:
        """Return what a sample is recorded as."""
        return self.policy, self.questions, self.condition, self.benchmark, problem.id, index


def first_of_each_stratum(problems: Sequence[Problem], number: int) -> list[Problem]:
    """Return the first `number` problems of each stratum, in the order of the data."""
    kept: dict[str, list[Problem]] = {}
    for problem in problems:
        kept.setdefault(problem.stratum, []).append(problem)
    return [problem for stratum in sorted(kept) for problem in kept[stratum][:number]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """Samples the problems of one task."""

    sampler: Sampler
    batch: int
    """Samples at the same time."""
    context: int = NO_LIMIT
    """Tokens of prompt and response that the policy can take."""
    max_ungraded_share: float
    ungraded_option: str
    """The setting or option that the share is."""
    mended: str
    """What to do where too many samples had no verdict, once the cause is mended."""
    reporter: Reporter

    async def run(
        self,
        problems: Sequence[Problem],
        plan: SamplingPlan,
        log: SampleFile | None = None,
        recorded: Mapping[Key, Sample] = MappingProxyType({}),
    ) -> list[Sample]:
        """Make the samples that are not `recorded`, append them to `log`, and return all in the plan's order.

        Raises `StopRunError` where more samples than allowed could not be graded.
        """
        places = [(problem, index) for problem in problems for index in range(plan.samples)]
        keys = [plan.key(*place) for place in places]
        found = {key: recorded[key] for key in keys if key in recorded}
        left = [place for place, key in zip(places, keys, strict=True) if key not in found]
        self._refuse_ungraded(plan, found.values(), len(places))
        said = time.monotonic()
        for start in range(0, len(left), self.batch):
            batch = left[start : start + self.batch]
            new = await asyncio.gather(*(self._sample(plan, *place) for place in batch))
            if log is not None:
                _append(log, new)
            found |= {sample.key: sample for sample in new}
            due = len(found) == len(places) or time.monotonic() - said > LINES_EVERY_S
            said = time.monotonic() if due else said
            say = self.reporter.note if due else self.reporter.passing
            say(f"{plan.title}: {len(found)}/{len(places)} samples")
            self._refuse_ungraded(plan, found.values(), len(places))
        return [found[key] for key in keys]

    async def _sample(self, plan: SamplingPlan, problem: Problem, index: int) -> Sample:
        solo = plan.mode != WITH_AGENTS
        consult = _alone(self.sampler.consult) if solo else self.sampler.consult
        condition = Condition.SOLO if solo else Condition.CONSULTING
        prompt_ids = self.sampler.prompts.ids(problem, condition)
        path = (*plan.seed_path, problem.id, index)
        room = min(plan.max_response_tokens, self.context - len(prompt_ids))
        if room < (least_room(consult) if consult.agents else 1):
            unasked = MemberRollout(
                id="", condition=condition, rollout=None, grade=Grade(Verdict.INCORRECT, TOO_LONG)
            )
            return self._recorded(plan, problem, prompt_ids, path, unasked)
        spec = RolloutSpec(
            id=f"{problem.id}#{index}",
            problem=problem.text,
            prompt_ids=prompt_ids,
            condition=condition,
            seed=seed_of(*path),
            solo_mode=SoloMode(plan.mode) if solo else SoloMode.UNANSWERED,
            sampling=plan.sampling,
            hide_answer=partial(self.sampler.task.without_answer, problem),
        )
        limited = replace(consult, limits=replace(consult.limits, max_response_tokens=room))
        member = await replace(self.sampler, consult=limited).member(spec, problem)
        return self._recorded(plan, problem, prompt_ids, path, member)

    def _recorded(
        self,
        plan: SamplingPlan,
        problem: Problem,
        prompt_ids: tuple[int, ...],
        path: tuple[str | int, ...],
        member: MemberRollout,
    ) -> Sample:
        made, unknown = member.rollout, self.sampler.prompts.tokenizer.unk_token_id
        consultations = made.consultations if made else ()
        asked = consultations or (made and Source.FEEDBACK in made.stream.sources)
        if asked and member.condition is Condition.SOLO:
            raise EvaluationError(f"{problem.id}: a solo rollout consulted; this is a defect of aipo")
        return Sample(
            condition=plan.condition,
            benchmark=plan.benchmark,
            problem=problem.id,
            stratum=problem.stratum,
            index=int(path[-1]),
            seed_path=path,
            questions=plan.questions,
            policy=plan.policy,
            prompt_tokens=len(prompt_ids),
            unknown_tokens=0 if unknown is None else prompt_ids.count(unknown),
            response=made.response if made else "",
            response_tokens=len(made.stream.ids) - len(prompt_ids) if made else 0,
            agent_tokens=sum(each.reply_tokens for each in consultations),
            consultations=len(consultations),
            stop=made.stop.value if made else "",
            verdict=member.grade.verdict.value,
            reason=member.grade.reason,
            reward=member.grade.reward,
        )

    def _refuse_ungraded(self, plan: SamplingPlan, found: Collection[Sample], planned: int) -> None:
        """Stop where too many samples have no verdict: a number from the rest would not be the policy's."""
        failed = [sample.reason for sample in found if not sample.graded]
        if len(failed) / max(1, planned) <= self.max_ungraded_share:
            return
        reason = max(sorted(set(failed)), key=failed.count)
        raise StopRunError(
            f"{plan.title}: {len(failed)} of {len(found)} samples could not be graded, more than "
            f"{self.ungraded_option} {self.max_ungraded_share:g} of {planned}; the commonest reason: "
            f"{reason:.200}. Mend it (`aipo doctor` says whether engine and grader work), then {self.mended}"
        )


def _append(log: SampleFile, new: Sequence[Sample]) -> None:
    try:
        log.append(new)
    except OSError as error:
        raise NotRecordedError(
            f"{str(log.path)!r} could not be written ({error}); make room. The same command goes on"
        ) from error


def least_room(consult: ConsultContext) -> int:
    """Return the tokens that one whole consultation, and an answer, take at least."""
    return consult.codec.request_room(consult.limits.max_feedback_tokens) + 3


def _alone(consult: ConsultContext) -> ConsultContext:
    """Return a context in which no agent exists."""
    return replace(consult, agents={}, limits=replace(consult.limits, max_consultations=0))
