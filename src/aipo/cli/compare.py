"""`aipo compare`: several methods from one warm start, one table, one plot."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from aipo.cli.console import console, duration, plain_errors
from aipo.cli.jobs import Job, run_jobs
from aipo.cli.warmstart import make_warm_start
from aipo.config.comparison import ComparisonSettings, Method, load_comparison, method_settings
from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.core.passk import pass_at_k
from aipo.evaluate.comparison import (
    Facts,
    FinishedRun,
    Report,
    TuningPoint,
    write_records,
    write_report,
)
from aipo.evaluate.plots import boundary_plot
from aipo.evaluate.records import EvaluationRecord, at_last_step, read_records
from aipo.evaluate.table import results_table
from aipo.train.journal import EVALUATION, METRICS, TIMINGS, read_lines

WARM_START = "warm start"


def compare(recipe: Path, overrides: Sequence[str], at_once: int, records: Path | None) -> None:
    """Run what is missing of a comparison and report it; see `aipo compare --help`."""
    with plain_errors():
        if recipe.is_dir():
            _read_runs([recipe, *map(Path, overrides)])
            return
        comparison = load_comparison(recipe, overrides)
        pass_at = load_settings(comparison.base, comparison.overrides).evaluate.pass_at
        if records is None:
            records = _run(comparison, at_once or max(1, os.cpu_count() or 1))
        report = write_report(records, comparison.output, pass_at)
        console.print(str(Report(records, pass_at[:1] + pass_at[-1:]).table()), markup=False)
        console.print(
            f"report: {report}\nfigures: {comparison.output}/*.svg\nrecords: {records}", markup=False
        )


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


def _run(comparison: ComparisonSettings, at_once: int) -> Path:
    """Run everything that is missing; return the folder of the compact records."""
    begun = time.monotonic()
    plan = _Plan(comparison)
    if comparison.warmstart:
        make_warm_start(plan.warm_start_settings())
    tuning = plan.tuning_jobs()
    run_jobs([job for _, _, job in tuning], at_once, "choosing learning rates")
    points = [TuningPoint(method.label, rate, _criterion(job)) for method, rate, job in tuning]
    chosen = {p.method: p.learning_rate for p in sorted(points, key=lambda point: point.criterion)}
    labels = {method.name: method.label for method in comparison.methods}
    for method in comparison.methods:
        if (source := labels.get(method.learning_rate_of)) in chosen:
            chosen[method.label] = chosen[source]
    jobs = plan.jobs(chosen)
    run_jobs([job for _, _, job in jobs], at_once, "comparison")
    runs = [_finished(label, seed, job) for label, seed, job in jobs]
    facts = Facts(
        name=comparison.name,
        command=" ".join(["aipo", *sys.argv[1:]]),
        commit=_commit(),
        machine=f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}",
        versions={name: version(name) for name in ("torch", "transformers", "reasoning-gym", "aipo")},
        seeds=comparison.seeds,
        baseline=comparison.methods[0].label,
        chosen=chosen,
        tuning=tuple(points),
        wall_s=sum(run.wall_s for run in runs),
    )
    write_records(comparison.output / "records", runs, facts)
    console.print(f"this call took {duration(time.monotonic() - begun)}", markup=False)
    return comparison.output / "records"


class _Plan:
    """Which runs a comparison consists of, and where they live."""

    def __init__(self, comparison: ComparisonSettings) -> None:
        self._comparison = comparison
        self._output = comparison.output

    def warm_start_settings(self) -> Settings:
        folder = self._output / "warmstart"
        return load_settings(self._comparison.base, [*self._comparison.overrides, f"run.output={folder}"])

    def tuning_jobs(self) -> list[tuple[Method, float, Job]]:
        c = self._comparison
        result = []
        for method in c.methods:
            if not method.tune or method.learning_rate_of or len(c.learning_rates) < 2:
                continue
            for rate in c.learning_rates:
                own = [f"train.learning_rate={rate}", "evaluate.split=validation", *c.tuning_overrides]
                own += [f"train.steps={c.tuning_steps}"] if c.tuning_steps else []
                folder = self._output / "tuning" / method.name / f"{rate:g}"
                result.append(
                    (method, rate, self._train(method, c.tuning_seed, folder, own, final_only=True))
                )
        return result

    def jobs(self, chosen: dict[str, float]) -> list[tuple[str, int, Job]]:
        """Return (label, seed, job) for the warm start's evaluation and for every method and seed."""
        c = self._comparison
        result = []
        if c.warmstart:
            own = [*c.overrides, *self._policy(), f"run.output={self._output / 'warmstart-evaluation'}"]
            settings = load_settings(c.base, own)
            job = Job(WARM_START, "evaluate", settings, _evaluated(settings, 0))
            result.append((WARM_START, 0, job))
        for seed in c.seeds:
            for method in c.methods:
                own = [f"train.learning_rate={chosen[method.label]}"] if method.label in chosen else []
                folder = self._output / method.name / f"seed-{seed}"
                result.append((method.label, seed, self._train(method, seed, folder, own)))
        return result

    def _policy(self) -> list[str]:
        return [f"policy.model={self._output / 'warmstart' / 'policy'}"] if self._comparison.warmstart else []

    def _train(
        self, method: Method, seed: int, folder: Path, own: list[str], final_only: bool = False
    ) -> Job:
        changes = [*self._policy(), *own, f"run.seed={seed}", f"run.output={folder}"]
        settings = method_settings(self._comparison, method, changes)
        steps = settings.train.steps
        if final_only or steps not in settings.evaluate.at_steps:
            at = [] if final_only else [s for s in settings.evaluate.at_steps if s < steps]
            settings = method_settings(
                self._comparison, method, [*changes, f"evaluate.at_steps={[*at, steps]}"]
            )
        return Job(f"{method.name} {folder.name}", "train", settings, _evaluated(settings, steps), steps)


def _evaluated(settings: Settings, step: int) -> Callable[[], bool]:
    """Return a check that a run has all its evaluations, and its policy if it trains one."""
    path = settings.run.output / EVALUATION

    def finished() -> bool:
        if not path.exists() or (step and not (settings.run.output / "policy" / "config.json").exists()):
            return False
        modes = {r.mode for r in read_records(path) if r.step == step}
        return modes >= set(settings.evaluate.modes)

    return finished


def _criterion(job: Job) -> float:
    """Return the mean of pass@1 over strata and solo modes."""
    shares = []
    for record in at_last_step(read_records(job.folder / EVALUATION)):
        for stratum in record.strata:
            own = [r for r in record.results if r.stratum == stratum]
            shares.append(sum(pass_at_k(r.graded, r.correct, 1) for r in own) / len(own))
    return sum(shares) / len(shares)


def _finished(label: str, seed: int, job: Job) -> FinishedRun:
    evaluations: tuple[EvaluationRecord, ...] = tuple(read_records(job.folder / EVALUATION))
    times = read_lines(job.folder / TIMINGS)
    wall = sum(t.get(part, 0.0) for t in times for part in ("rollout_s", "update_s", "evaluate_s"))
    return FinishedRun(label, seed, evaluations, tuple(read_lines(job.folder / METRICS)), wall)


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
