"""Running a comparison: the warm start, learning rates chosen on validation, every method and seed, records.

Start reading at `compare`. A run that is recorded is not run again; whatever is there can be reported on.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from platform import machine, release, system
from subprocess import run as run_command

from aipo.assembly.parts import build_task
from aipo.assembly.warmstart import make_warm_start
from aipo.comparison.jobs import Job, Pace, run_jobs
from aipo.comparison.plan import WARM_START, Plan, PlannedRun, refuse_another_record
from aipo.comparison.records import RunRecord, read_run, thinned, write_run
from aipo.comparison.report import Facts, Report, TuningPoint, write_facts
from aipo.config.comparison import ComparisonSettings, common_settings, load_comparison
from aipo.config.loader import dump_settings
from aipo.core.passk import pass_at_k
from aipo.evaluation.records import EvaluationRecord, at_last_step, read_records
from aipo.tasks.base import Split
from aipo.training.events import Reporter, duration
from aipo.training.journal import EVALUATION, METRICS, TIMINGS, read_lines


def compare(
    comparison: ComparisonSettings | Path | str,
    overrides: Sequence[str] = (),
    *,
    pace: Pace | None = None,
    records: Path | None = None,
    command: str = "aipo.compare",
    reporter: Reporter | None = None,
) -> Report | None:
    """Run what is missing of a comparison, write its report into `compare.output` and return it.

    `comparison` is a recipe's file or loaded settings. With `records`, a folder of compact records, nothing
    is run. `command` is what the report says that it was made with. Progress goes to `reporter`, without one
    to the logger `aipo`. Returns None where the time of `pace` was up before the first run was finished.
    Raises `SettingsError` for the recipe, `JobFailedError` for a run that failed or that was begun with other
    settings.
    """
    if not isinstance(comparison, ComparisonSettings):
        comparison = load_comparison(Path(comparison), overrides)
    if records is None:
        records = _run(comparison, pace or Pace(os.cpu_count() or 1), command, reporter or Reporter())
    if records is None:
        return None
    report = Report(records, common_settings(comparison).evaluate.pass_at, comparison.focus)
    report.write(comparison.output)
    return report


def _run(comparison: ComparisonSettings, pace: Pace, command: str, reporter: Reporter) -> Path | None:
    """Run what is missing, as long as there is time; return the folder of the records, if there are any."""
    begun = time.monotonic()
    plan = Plan(comparison)
    _refuse_unknown_focus(comparison)
    if comparison.warmstart:
        make_warm_start(plan.warm_start_settings(), reporter)
    points = _tuned(plan, pace, reporter)
    if points is None:
        reporter.note("time is up; the same command continues")
        return None
    runs = plan.runs(_chosen(comparison, points))
    planned = {run.job.title: run for run in runs}
    missing = plan.missing(runs)
    digest = _digest(comparison.output / "warmstart" / "policy") if comparison.warmstart else ""
    labels = {method.name: method.label for method in comparison.methods}

    def note() -> int:
        """Write the facts of what is there, so that it can always be reported on; return what is left."""
        left = sum(not run.record.exists() for run in runs)
        facts = Facts(
            name=comparison.name,
            command=command,
            baseline=labels.get(comparison.baseline, comparison.methods[0].label),
            methods=((WARM_START,) if comparison.warmstart else ()) + tuple(labels.values()),
            tuning=tuple(points),
            missing=left,
            focus=comparison.focus,
        )
        write_facts(plan.records, facts)
        return left

    def done(job: Job) -> None:
        _record(planned[job.title], planned, digest)
        note()

    note()
    run_jobs([run.job for run in missing], pace, "comparison", done, reporter)
    left = note()
    took = duration(time.monotonic() - begun)
    rest = f"; {left} runs are left: the same command continues" if left else ""
    reporter.note(f"this call took {took}{rest}")
    return plan.records if left < len(runs) else None


def _refuse_unknown_focus(comparison: ComparisonSettings) -> None:
    settings = common_settings(comparison)
    if not comparison.focus:
        return
    problems = build_task(settings.task, settings.sandbox).problems(Split(settings.evaluate.split))
    strata = sorted({problem.stratum for problem in problems})
    if unknown := [stratum for stratum in comparison.focus if stratum not in strata]:
        raise ValueError(
            f"compare.focus = {list(comparison.focus)}: no {settings.evaluate.split} problem has the stratum "
            f"{', '.join(unknown)}; choose from {', '.join(strata)}"
        )


def _tuned(plan: Plan, pace: Pace, reporter: Reporter) -> list[TuningPoint] | None:
    """Return what each learning rate reached; None if there was no time to find out."""
    points, jobs = {}, plan.tuning_jobs()
    recorded = {(m.name, rate): plan.records / "tuning" / f"{m.name}-{rate:g}.json" for m, rate, _ in jobs}
    for method, rate, job in jobs:
        refuse_another_record(recorded[method.name, rate], job.settings)
        if (path := recorded[method.name, rate]).exists():
            points[method.name, rate] = criterion(read_run(path).evaluations, plan.focus)
    left = {job.title: (m, rate, job) for m, rate, job in jobs if (m.name, rate) not in points}

    def done(job: Job) -> None:
        method, rate, _ = left[job.title]
        _write(recorded[method.name, rate], method.label, job, "")
        points[method.name, rate] = criterion(read_run(recorded[method.name, rate]).evaluations, plan.focus)

    jobs_left = [job for _, _, job in left.values()]
    if not run_jobs(jobs_left, pace, "choosing learning rates", done, reporter):
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


def criterion(evaluations: Sequence[EvaluationRecord], focus: Sequence[str]) -> float:
    """Return the mean of pass@1 over strata and modes; the focus and the other strata each weigh half."""
    means = []
    for record in at_last_step(evaluations):
        shares: tuple[list[float], list[float]] = [], []
        for stratum in record.strata:
            passed = [pass_at_k(r.graded, r.correct, 1) for r in record.results if r.stratum == stratum]
            shares[stratum in focus].append(_mean(passed))
        means += [_mean(part) for part in shares if part]
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
    times = read_lines(job.folder / TIMINGS)
    wall_s = sum(t.get(part, 0.0) for t in times for part in ("rollout_s", "update_s", "evaluate_s"))
    record = RunRecord(
        method=label,
        seed=job.settings.run.seed,
        settings=dump_settings(job.settings),
        learning_rate=job.settings.train.learning_rate,
        warmstart=warmstart,
        commit=_commit(),
        machine=f"{os.cpu_count()} cores, {machine()}, {system()} {release()}",
        versions={name: version(name) for name in ("torch", "transformers", "reasoning-gym", "aipo")},
        wall_s=round(wall_s, 1),
        evaluations=tuple(read_records(job.folder / EVALUATION)),
        metrics=thinned(read_lines(job.folder / METRICS)),
    )
    write_run(path, _after(before, record) if before else record)


def _after(before: RunRecord, run: RunRecord) -> RunRecord:
    """Return a run that went on from another as one: steps, tokens and seconds add up."""
    last = before.metrics[-1]
    step = last["step"]
    spent = {name: last.get(name, 0.0) for name in ("expert_tokens_raw", "expert_tokens_distinct")}
    later = tuple(
        {**row, "step": row["step"] + step, **{name: row.get(name, 0.0) + n for name, n in spent.items()}}
        for row in run.metrics
    )
    moved = tuple(replace(record, step=record.step + step) for record in run.evaluations)
    return replace(
        run,
        wall_s=round(run.wall_s + before.wall_s, 1),
        evaluations=(*before.evaluations, *moved),
        metrics=(*before.metrics, *later),
    )


def _digest(policy: Path) -> str:
    """Return a fingerprint of a policy's weights."""
    weights = policy / "model.safetensors"
    return sha256(weights.read_bytes()).hexdigest()[:12] if weights.exists() else ""


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = run_command(
            command, capture_output=True, text=True, timeout=10, cwd=Path(__file__).parent, check=False
        )
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"
