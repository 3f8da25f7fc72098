"""`aipo evaluate`: how good a policy is alone."""

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from aipo.cli.assembly import Parts, assemble
from aipo.cli.console import console, plain_errors, print_passing
from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.evaluate.records import SCHEMA, EvaluationRecord, ProblemResult, append_record, read_records
from aipo.evaluate.solo import EvaluationPlan, first_of_each_stratum
from aipo.evaluate.solo import evaluate as run_evaluation
from aipo.evaluate.table import results_table
from aipo.tasks.base import Split
from aipo.train.events import StopRunError
from aipo.train.journal import EVALUATION, TIMINGS


def evaluate(recipe: Path, overrides: Sequence[str], checkpoint: Path | None, method: str) -> None:
    """Evaluate a policy without agents; see `aipo evaluate --help`."""
    with plain_errors():
        changes = [*overrides, *([f"policy.model={checkpoint}"] if checkpoint else [])]
        settings = load_settings(recipe, changes)
        with closing(assemble(settings, log_folder=settings.run.output)) as parts:
            n = settings.evaluate.samples_per_problem
            records = asyncio.run(evaluate_run(settings, parts, 0, n, method))
        console.print(str(results_table(records, settings.evaluate.pass_at)), markup=False)


async def evaluate_run(
    settings: Settings, parts: Parts, step: int, samples: int, method: str = ""
) -> list[EvaluationRecord]:
    """Evaluate in every mode of the settings, append the records, and return those of this step."""
    plan, path = settings.evaluate, settings.run.output / EVALUATION
    problems = first_of_each_stratum(parts.task.problems(Split(plan.split)), plan.problems)
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {r.mode: r for r in read_records(path) if r.step == step} if path.exists() else {}
    for mode in plan.modes:
        if mode in done:
            continue
        begun = time.monotonic()
        results = await run_evaluation(
            parts.sampler, problems, EvaluationPlan(mode, samples, plan.temperature, plan.seed), _report
        )
        _refuse_ungraded(settings, mode, results)
        run = settings.run.output.name
        done[mode] = EvaluationRecord(
            SCHEMA, run, method or run, settings.run.seed, step, plan.split, mode, results
        )
        append_record(path, done[mode])
        with path.with_name(TIMINGS).open("a") as timings:
            timings.write(json.dumps({"step": step, "evaluate_s": time.monotonic() - begun}) + "\n")
    return [done[mode] for mode in plan.modes]


def _refuse_ungraded(settings: Settings, mode: str, results: Sequence[ProblemResult]) -> None:
    """Record nothing of an evaluation that a broken engine or grader has spoilt; it is repeated instead."""
    share = sum(r.ungraded for r in results) / max(1, sum(r.samples for r in results))
    if share > settings.train.max_ungraded_share:
        raise StopRunError(
            f"evaluation in mode {mode!r}: {share:.0%} of the samples could not be graded, more than "
            f"train.max_ungraded_share = {settings.train.max_ungraded_share}; nothing of it was recorded. "
            "`aipo doctor` says whether engine and grader work"
        )


def _report(done: int, total: int) -> None:
    line = f"evaluated {done}/{total} problems"
    if done < total:
        print_passing(line)
    else:
        console.print(line, markup=False)
