"""Evaluation: every problem, n samples, in one mode, into one record.

Owns the loop over problems. Must not know training. Invariant: in the solo modes the solo prompt is used and
no agent is reachable; every sample counts, truncated ones as wrong, UNGRADED ones apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aipo.core.types import SoloMode, StopReason, Verdict
from aipo.engines.base import Sampling
from aipo.evaluation.records import ProblemResult
from aipo.rollout.group import Group, GroupShape, Sampler
from aipo.tasks.base import Problem

WITH_AGENTS = "agents"
"""The mode in which the policy may consult; the others are `SoloMode`s."""

PROBLEMS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What to sample."""

    mode: str
    samples_per_problem: int
    temperature: float
    seed: int

    def shape(self) -> GroupShape:
        """Return the group that one problem's samples form."""
        sampling = Sampling(temperature=self.temperature, exact_log_probs=False)
        if self.mode == WITH_AGENTS:
            return GroupShape(self.samples_per_problem, 0, sampling=sampling)
        return GroupShape(0, self.samples_per_problem, solo_mode=SoloMode(self.mode), sampling=sampling)


def first_of_each_stratum(problems: Sequence[Problem], number: int) -> list[Problem]:
    """Return the first `number` problems of each stratum, in the order of the data."""
    kept: dict[str, list[Problem]] = {}
    for problem in problems:
        kept.setdefault(problem.stratum, []).append(problem)
    return [problem for stratum in sorted(kept) for problem in kept[stratum][:number]]


async def evaluate(
    sampler: Sampler,
    problems: Sequence[Problem],
    plan: EvaluationPlan,
    report: Callable[[int, int], None],
) -> tuple[ProblemResult, ...]:
    """Return the results in the order of `problems`; `report` is told (done, all) after each batch of
    problems."""
    results: list[ProblemResult] = []
    for start in range(0, len(problems), PROBLEMS_AT_ONCE):
        batch = problems[start : start + PROBLEMS_AT_ONCE]
        groups = await sampler.groups(batch, plan.shape(), (plan.seed, "evaluate", plan.mode))
        results += [_result(group) for group in groups]
        report(len(results), len(problems))
    return tuple(results)


def _result(group: Group) -> ProblemResult:
    verdicts = [member.grade.verdict for member in group.members]
    return ProblemResult(
        problem=group.problem.id,
        stratum=group.problem.stratum,
        samples=len(verdicts),
        correct=verdicts.count(Verdict.CORRECT),
        ungraded=verdicts.count(Verdict.UNGRADED),
        truncated=sum(m.rollout is not None and m.rollout.stop is StopReason.LENGTH for m in group.members),
    )
