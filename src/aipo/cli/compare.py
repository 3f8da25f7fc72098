"""`aipo compare`: several methods from one warm start, one table, one plot."""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any

from aipo.cli.evaluations import are_evaluations, compare_evaluations
from aipo.cli.warmstart import make_warm_start
from aipo.comparison.jobs import Job, Pace, run_jobs
from aipo.comparison.plan import WARM_START, Plan, PlannedRun, refuse_another_record
from aipo.config.comparison import (
    ComparisonSettings,
    common_settings,
    comparison_recipes,
    load_comparison,
)
from aipo.config.loader import dump_settings
from aipo.console import console, duration, plain_errors
from aipo.core.passk import pass_at_k
from aipo.evaluation.comparison import Facts, Report, TuningPoint, write_facts, write_report
from aipo.evaluation.plots import boundary_plot
from aipo.evaluation.records import EvaluationRecord, at_last_step, read_records
from aipo.evaluation.runs import RunRecord, read_run, thinned, write_run
from aipo.evaluation.table import results_table
from aipo.training.journal import EVALUATION, METRICS, TIMINGS, read_lines


def compare(
    recipe: Path, overrides: Sequence[str], at_once: int, minutes: float, records: Path | None
) -> None:
    """Run what is missing of a comparison and report it; see `aipo compare --help`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the runs too, as Ctrl-C does
    pace = Pace(at_once or max(1, os.cpu_count() or 1), time.monotonic() + (60 * minutes or inf))
    with plain_errors():
        if recipes := comparison_recipes(recipe):
            for each in recipes:
                _compare(each, overrides, pace, records)
        else:
            folders = [recipe, *map(Path, overrides)]
            read = compare_evaluations if are_evaluations(folders) else _read_runs
            read(folders)


def _compare(recipe: Path, overrides: Sequence[str], pace: Pace, records: Path | None) -> None:
    comparison = load_comparison(recipe, overrides)
    pass_at = common_settings(comparison).evaluate.pass_at
    if records is None:
        records = _run(comparison, pace)
    if records is None:
        return
    report = write_report(records, comparison.output, pass_at)
    console.print(str(Report(records, pass_at[:1] + pass_at[-1:]).table()), markup=False)
    console.print(f"report: {report}\nfigures: {comparison.output}/*.svg\nrecords: {records}", markup=False)


def _read_runs(folders: list[Path]) -> None:
    """Print one table of finished runs and write one plot beside the first."""
    evaluated = [folder / EVALUATION for folder in folders]
    if missing := [str(path.parent) for path in evaluated if not path.exists()]:
        raise ValueError(
            f"{', '.join(missing)}: no {EVALUATION}; first run `aipo evaluate` with this run.output"
        )
    # Runs of one comparison share names such as seed-0: what tells them apart is the folder.
    records = [
        replace(record, method=str(folder), run=str(folder))
        for folder, path in zip(folders, evaluated, strict=True)
        for record in at_last_step(read_records(path))
    ]
    smallest = min(result.samples for record in records for result in record.results)
    console.print(str(results_table(records, sorted({1, smallest}))), markup=False)
    strata = {stratum for record in records for stratum in record.strata}
    stratum = "hard" if "hard" in strata else min(strata)
    _, png = boundary_plot(records, folders[0].parent / "boundary", stratum)
    console.print(f"plot: {png}", markup=False)


def _run(comparison: ComparisonSettings, pace: Pace) -> Path | None:
    """Run what is missing, as long as there is time; return the folder of the records, if there are any."""
    begun = time.monotonic()
    plan = Plan(comparison)
    if comparison.warmstart:
        make_warm_start(plan.warm_start_settings())
    points = _tuned(plan, pace)
    if points is None:
        console.print("time is up; the same command goes on", markup=False)
        return None
    runs = plan.runs(_chosen(comparison, points))
    planned = {run.job.title: run for run in runs}
    missing = plan.missing(runs)
    digest = _digest(comparison.output / "warmstart" / "policy") if comparison.warmstart else ""

    def note() -> int:
        """Write the facts of what is there, so that it can always be reported on; return what is left."""
        left = sum(not run.record.exists() for run in runs)
        write_facts(plan.records, _facts(comparison, runs, points, left))
        return left

    def done(job: Job) -> None:
        _record(planned[job.title], planned, digest)
        note()

    note()
    run_jobs([run.job for run in missing], pace, "comparison", done)
    left = note()
    took = duration(time.monotonic() - begun)
    rest = f"; {left} runs are left: the same command goes on" if left else ""
    console.print(f"this call took {took}{rest}", markup=False)
    return plan.records if left < len(runs) else None


def _facts(
    comparison: ComparisonSettings, runs: Sequence[PlannedRun], points: Sequence[TuningPoint], left: int
) -> Facts:
    labels = {method.name: method.label for method in comparison.methods}
    return Facts(
        name=comparison.name,
        command=" ".join(["aipo", *sys.argv[1:]]),
        baseline=labels.get(comparison.baseline, comparison.methods[0].label),
        methods=(WARM_START, *labels.values()) if comparison.warmstart else tuple(labels.values()),
        tuning=tuple(points),
        missing=left,
    )


def _tuned(plan: Plan, pace: Pace) -> list[TuningPoint] | None:
    """Return what each learning rate reached; None if there was no time to find out."""
    points, jobs = {}, plan.tuning_jobs()
    recorded = {(m.name, rate): plan.records / "tuning" / f"{m.name}-{rate:g}.json" for m, rate, _ in jobs}
    for method, rate, job in jobs:
        refuse_another_record(recorded[method.name, rate], job.settings)
        if (path := recorded[method.name, rate]).exists():
            points[method.name, rate] = _criterion(read_run(path).evaluations)
    left = {job.title: (m, rate, job) for m, rate, job in jobs if (m.name, rate) not in points}

    def done(job: Job) -> None:
        method, rate, _ = left[job.title]
        _write(recorded[method.name, rate], method.label, job, "")
        points[method.name, rate] = _criterion(read_run(recorded[method.name, rate]).evaluations)

    if not run_jobs([job for _, _, job in left.values()], pace, "choosing learning rates", done):
        return None
    return [TuningPoint(m.label, rate, points[m.name, rate]) for m, rate, _ in jobs]


def _chosen(comparison: ComparisonSettings, points: Sequence[TuningPoint]) -> dict[str, float]:
    """Return each method's learning rate by its title: its best, or that of the method it names."""
    best = {p.method: p.learning_rate for p in sorted(points, key=lambda point: point.criterion)}
    labels = {method.name: method.label for method in comparison.methods}
    for method in comparison.methods:
        if (source := labels.get(method.learning_rate_of)) in best:
            best[method.label] = best[source]
    return best


def _criterion(evaluations: Sequence[EvaluationRecord]) -> float:
    """Return the mean of pass@1 over strata and solo modes; strata that are no `hard` one share its weight.

    So a task with four easy strata is not chosen for on those.
    """
    means = []
    for record in at_last_step(evaluations):
        shares = {
            stratum: _mean(
                [pass_at_k(r.graded, r.correct, 1) for r in record.results if r.stratum == stratum]
            )
            for stratum in record.strata
        }
        easy = [share for stratum, share in shares.items() if stratum != "hard"]
        means += [_mean(easy)] if easy else []
        means += [shares["hard"]] if "hard" in shares else []
    return _mean(means)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _record(run: PlannedRun, planned: dict[str, PlannedRun], warmstart: str) -> None:
    """Write a finished run's compact record, the run before it added where it went on from one."""
    before = None
    if run.method and run.method.starts_from:
        before = read_run(planned[f"{run.method.starts_from} seed-{run.seed}"].record)
    _write(run.record, run.label, run.job, warmstart, before)


def _write(path: Path, label: str, job: Job, warmstart: str, before: RunRecord | None = None) -> None:
    evaluations = tuple(read_records(job.folder / EVALUATION))
    metrics = thinned(read_lines(job.folder / METRICS))
    times = read_lines(job.folder / TIMINGS)
    wall_s = sum(t.get(part, 0.0) for t in times for part in ("rollout_s", "update_s", "evaluate_s"))
    if before is not None:
        evaluations, metrics = _after(before, evaluations, metrics)
        wall_s += before.wall_s
    write_run(
        path,
        RunRecord(
            method=label,
            seed=job.settings.run.seed,
            settings=dump_settings(job.settings),
            learning_rate=job.settings.train.learning_rate,
            warmstart=warmstart,
            commit=_commit(),
            machine=f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}",
            versions={name: version(name) for name in ("torch", "transformers", "reasoning-gym", "aipo")},
            wall_s=round(wall_s, 1),
            evaluations=evaluations,
            metrics=metrics,
        ),
    )


Evaluations = tuple[EvaluationRecord, ...]
Metrics = tuple[dict[str, Any], ...]


def _after(before: RunRecord, evaluations: Evaluations, metrics: Metrics) -> tuple[Evaluations, Metrics]:
    """Return the evaluations and metrics of a run that went on from another: steps and tokens add up."""
    last = before.metrics[-1]
    step = last["step"]
    spent = {name: last.get(name, 0.0) for name in ("expert_tokens_raw", "expert_tokens_distinct")}
    later = tuple(
        {**row, "step": row["step"] + step, **{name: row.get(name, 0.0) + n for name, n in spent.items()}}
        for row in metrics
    )
    moved = tuple(replace(record, step=record.step + step) for record in evaluations)
    return (*before.evaluations, *moved), (*before.metrics, *later)


def _digest(policy: Path) -> str:
    """Return a fingerprint of a policy's weights."""
    weights = policy / "model.safetensors"
    return sha256(weights.read_bytes()).hexdigest()[:12] if weights.exists() else ""


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            cwd=Path(__file__).parent,
            check=False,
        )
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"
