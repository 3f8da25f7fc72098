"""Evaluation during a training run: at which steps, of how many problems, and the best policy so far.

The test split is looked at only where a recipe says so, and no policy is ever chosen on it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from aipo.assembly.evaluation import evaluate_run
from aipo.assembly.parts import Parts
from aipo.config.settings import Settings
from aipo.core.types import SoloMode
from aipo.evaluation.records import EvaluationRecord, read_records
from aipo.evaluation.sampling import first_of_each_stratum
from aipo.tasks.base import Split
from aipo.training.durable import sync_tree, write_whole
from aipo.training.events import Reporter
from aipo.training.journal import EVALUATION
from aipo.training.model import save_policy

SHARE = Fraction(1, 10)
"""Of the rollouts that a run samples, about as many again are sampled for evaluations by default."""
BEST, BEST_FILE = "best", "best.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When a run evaluates, and what."""

    settings: Settings
    """The run's, with the split and the number of problems of these evaluations."""
    steps: frozenset[int]
    samples: int
    last_samples: int
    """At the last step."""
    line: str
    """What that costs, or why there is none."""

    async def evaluate(self, parts: Parts, step: int, reporter: Reporter) -> None:
        """Evaluate if that is due after `step`, and keep the policy if none before was better."""
        if step not in self.steps:
            return
        last = step == self.settings.train.steps
        samples = self.last_samples if last else self.samples
        await evaluate_run(self.settings, parts, step, samples, reporter=reporter)
        if self.settings.train.keep_best and Split(self.settings.evaluate.split) is Split.VALIDATION:
            self._keep_best(parts, step)

    def best_line(self) -> str:
        """Return which policy did best on validation problems, and where it is; "": none was evaluated."""
        if (best := self._best()) is None:
            return ""
        step, accuracy = best
        folder = self.settings.run.output / BEST / "policy"
        where = ", the policy that it began with"
        if step:
            where = f", {folder}" if folder.exists() else ""
        return f"best on validation problems: step {step}, {accuracy:.1%} correct{where}"

    def _best(self) -> tuple[int, float] | None:
        """Return the step of the best evaluation, the first of equals, and its accuracy."""
        path = self.settings.run.output / EVALUATION
        scores = accuracies(read_records(path), self.settings) if path.exists() else {}
        if not scores:
            return None
        step = max(scores, key=lambda step: (scores[step], -step))
        return step, scores[step]

    def _keep_best(self, parts: Parts, step: int) -> None:
        """Copy the policy where it is the best; the one that the run began with is there already."""
        best, folder = self._best(), self.settings.run.output / BEST
        if best is None or best[0] != step or step == 0:
            return
        save_policy(parts.model, parts.tokenizer, folder / "policy")
        sync_tree(folder)
        write_whole(folder / BEST_FILE, json.dumps({"step": step, "accuracy": best[1]}) + "\n")


def schedule(settings: Settings, parts: Parts) -> Schedule:
    """Return when a run evaluates: at `evaluate.at_steps`, or else before it, now and then, and at its end.

    Raises `ValueError` for steps that never come, and where named steps have no problems.
    """
    plan, steps = settings.evaluate, settings.train.steps
    if plan.at_steps is not None:
        if late := [step for step in plan.at_steps if step > steps]:
            raise ValueError(f"evaluate.at_steps = {late} is beyond train.steps = {steps}; lower it")
        if plan.at_steps:
            parts.problems(Split(plan.split))  # refused now rather than hours later
        named, line = frozenset(plan.at_steps), "" if plan.at_steps else "no evaluation during training"
        samples = plan.curve_samples_per_problem, plan.samples_per_problem
        return Schedule(
            settings=settings, steps=named, samples=samples[0], last_samples=samples[1], line=line
        )
    try:
        problems = parts.problems(Split.VALIDATION)
        why = "" if problems else "there are no validation problems"
    except ValueError as error:
        problems, why = (), str(error)
    if why:
        line = f"no evaluation during training: {why}"
        return Schedule(settings=settings, steps=frozenset(), samples=1, last_samples=1, line=line)
    each = max(1, plan.curve_problems // len({problem.stratum for problem in problems}))
    chosen = len(first_of_each_stratum(problems, each))
    rollouts, per_step = chosen * len(plan.modes), _rollouts_per_step(settings)
    every = plan.every_steps or max(1, ceil(rollouts / (SHARE * per_step)))
    at = frozenset({*range(0, steps, every), steps})
    changed = plan.model_copy(update={"split": str(Split.VALIDATION), "problems": each})
    share = len(at) * rollouts / (steps * per_step)
    line = (
        f"evaluation: {chosen} validation problems, {', '.join(plan.modes)}, before training, every {every} "
        f"steps and at the end: {len(at)} times {rollouts} rollouts, beside {per_step} of each step "
        f"({share:.0%} more); evaluate.every_steps, evaluate.curve_problems; evaluate.at_steps = [] for none"
    )
    return Schedule(
        settings=settings.model_copy(update={"evaluate": changed}),
        steps=at,
        samples=1,
        last_samples=1,
        line=line,
    )


def accuracies(records: Iterable[EvaluationRecord], settings: Settings) -> dict[int, float]:
    """Return by step the share of correct answers on the validation problems, over the solo modes alike."""
    by_step: dict[int, list[float]] = {}
    for record in records:
        if (record.method, record.split) == (settings.run.output.name, Split.VALIDATION):
            graded = sum(result.graded for result in record.results)
            if record.mode in list(SoloMode) and graded:
                correct = sum(result.correct for result in record.results)
                by_step.setdefault(record.step, []).append(correct / graded)
    return {step: sum(shares) / len(shares) for step, shares in by_step.items()}


def _rollouts_per_step(settings: Settings) -> int:
    return max(1, settings.train.prompts_per_step * settings.rollout.rollouts_per_prompt)
