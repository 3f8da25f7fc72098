"""`aipo evaluate`: how good a policy is alone."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType

from aipo.assembly.parts import Parts, assemble
from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.console import console, plain_errors, print_passing
from aipo.evaluation.manifest import fingerprint
from aipo.evaluation.records import SCHEMA, EvaluationRecord, ProblemResult, append_record, read_records
from aipo.evaluation.solo import EvaluationPlan, first_of_each_stratum
from aipo.evaluation.solo import evaluate as run_evaluation
from aipo.evaluation.table import results_table
from aipo.tasks.base import Split
from aipo.training.events import StopRunError
from aipo.training.journal import EVALUATION, TIMINGS, NotRecordedError

NOTHING_KNOWN: Mapping[str, str | int | float] = MappingProxyType({})


def evaluate(recipe: Path, overrides: Sequence[str], checkpoint: Path | None, method: str) -> None:
    """Evaluate a policy without agents; see `aipo evaluate --help`."""
    with plain_errors():
        changes = [*overrides, *([f"policy.model={checkpoint}"] if checkpoint else [])]
        settings = load_settings(recipe, changes)
        with closing(assemble(settings, log_folder=settings.run.output)) as parts:
            n = settings.evaluate.samples_per_problem
            records = asyncio.run(evaluate_run(settings, parts, 0, n, method, _known(settings)))
        console.print(str(results_table(records, settings.evaluate.pass_at)), markup=False)


async def evaluate_run(
    settings: Settings,
    parts: Parts,
    step: int,
    samples: int,
    method: str = "",
    known: Mapping[str, str | int | float] = NOTHING_KNOWN,
) -> list[EvaluationRecord]:
    """Evaluate in every mode of the settings, append the records, and return those of this step.

    A mode that is recorded already is not sampled again, if that was this very evaluation: the same step,
    method, split, problems and samples, and what is `known` of the policy and of the sampling.
    """
    plan, path = settings.evaluate, settings.run.output / EVALUATION
    problems = first_of_each_stratum(parts.task.problems(Split(plan.split)), plan.problems)
    path.parent.mkdir(parents=True, exist_ok=True)
    run = settings.run.output.name
    asked = [(problem.id, samples) for problem in problems]
    done = {
        r.mode: r
        for r in (read_records(path) if path.exists() else ())
        if (r.step, r.method, r.split) == (step, method or run, plan.split)
        and [(result.problem, result.samples) for result in r.results] == asked
        and all(r.meta.get(name, value) == value for name, value in known.items())
    }
    for mode in plan.modes:
        if mode in done:
            continue
        begun = time.monotonic()
        results = await run_evaluation(
            parts.sampler, problems, EvaluationPlan(mode, samples, plan.temperature, plan.seed), _report
        )
        _refuse_ungraded(settings, mode, results)
        done[mode] = EvaluationRecord(
            SCHEMA, run, method or run, settings.run.seed, step, plan.split, mode, results, dict(known)
        )
        _record(path, done[mode], time.monotonic() - begun)
    return [done[mode] for mode in plan.modes]


def _known(settings: Settings) -> dict[str, str | int | float]:
    """Return what tells one evaluation into a folder from another; a run's own settings cannot change."""
    folder, plan = Path(settings.policy.model), settings.evaluate
    policy = fingerprint(folder) if folder.is_dir() else settings.policy.model
    return {"policy": policy, "temperature": plan.temperature, "seed": plan.seed}


def _record(path: Path, record: EvaluationRecord, evaluate_s: float) -> None:
    """Append a record and the time that it took. Raises `NotRecordedError`."""
    try:
        append_record(path, record)
        with path.with_name(TIMINGS).open("a") as timings:
            timings.write(json.dumps({"step": record.step, "evaluate_s": evaluate_s}) + "\n")
    except OSError as error:
        raise NotRecordedError(
            f"{str(path)!r} could not be written ({error}); make room. The same command makes this "
            "evaluation again"
        ) from error


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
