"""Which runs a comparison consists of: tuning runs, the warm start's evaluation, every method and seed.

A run that is recorded is not planned again, whatever machine it ran on, unless another that is missing begins
with its policy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aipo.assembly.warmstart import start_settings
from aipo.comparison.jobs import Job, JobFailedError
from aipo.comparison.records import read_run
from aipo.comparison.report import RUNS
from aipo.config.comparison import ComparisonSettings, Method, common_settings, method_settings
from aipo.config.loader import diff_settings, parse_settings
from aipo.config.settings import Settings
from aipo.evaluation.records import read_records
from aipo.training.journal import EVALUATION

WARM_START = "warm start"
_WHERE = ("run.output:", "policy.model:", "run.threads:")
"""Settings that may differ between a recorded run and a planned one: where things are, not what they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run that is reported on."""

    label: str
    seed: int
    job: Job
    record: Path
    """Where its compact record is, or will be."""
    method: Method | None = None
    """None for the warm start's evaluation."""


class Plan:
    """The runs of one comparison."""

    def __init__(self, comparison: ComparisonSettings) -> None:
        self._comparison = comparison
        self._output = comparison.output
        self.focus = comparison.focus
        self.records = comparison.records or comparison.output / "records"

    def warm_start_settings(self) -> Settings:
        """Return the settings that the shared warm start is made with."""
        folder = self._output / "warmstart"
        model = start_settings(common_settings(self._comparison))
        here = [f"run.output={folder}", f"policy.model={folder / 'policy'}"]
        return common_settings(self._comparison, here, model)

    def tuning_jobs(self) -> list[tuple[Method, float, Job]]:
        """Return (method, learning rate, job) of every tuning run."""
        c = self._comparison
        result = []
        for method in c.methods:
            if not method.tune or method.learning_rate_of or len(c.learning_rates) < 2:
                continue
            for rate in c.learning_rates:
                own = [f"train.learning_rate={rate}", "evaluate.split=validation", *c.tuning_overrides]
                own += [f"train.steps={c.tuning_steps}"] if c.tuning_steps else []
                folder = self._output / "tuning" / method.name / f"{rate:g}"
                job = self._train(method, c.tuning_seed, folder, own, final_only=True)
                result.append((method, rate, job))
        return result

    def runs(self, chosen: dict[str, float]) -> list[PlannedRun]:
        """Return every run that is reported on, seed by seed; `chosen` are learning rates by title.

        Raises `JobFailedError` for a run that is recorded with other settings.
        """
        c = self._comparison
        result = []
        if c.warmstart:
            folder = self._output / "warmstart-evaluation"
            settings = common_settings(c, [*self._policy(None, 0), f"run.output={folder}"])
            finished = _evaluated(settings, 0)
            job = Job(title=WARM_START, verb="evaluate", settings=settings, finished=finished)
            record = self.records / RUNS / "warm-start.json"
            result.append(PlannedRun(label=WARM_START, seed=0, job=job, record=record))
        for seed in sorted({seed for method in c.methods for seed in method.seeds_of(c)}):
            for method in c.methods:
                if seed not in method.seeds_of(c):
                    continue
                own = [f"train.learning_rate={chosen[method.label]}"] if method.label in chosen else []
                folder = self._output / method.name / f"seed-{seed}"
                job = self._train(method, seed, folder, own)
                record = self.records / RUNS / f"{method.name}-{seed}.json"
                run = PlannedRun(label=method.label, seed=seed, job=job, record=record, method=method)
                result.append(run)
        for run in result:
            refuse_another_record(run.record, run.job.settings)
        return result

    def missing(self, runs: list[PlannedRun]) -> list[PlannedRun]:
        """Return the runs to be done: those without a record, and those whose policy one of them needs."""
        missing = [run for run in runs if not run.record.exists()]
        needed = {(run.method.starts_from, run.seed) for run in missing if run.method}
        sources = [
            run for run in runs if run.method and (run.method.name, run.seed) in needed and run not in missing
        ]
        return [*missing, *(run for run in sources if not run.job.finished())]

    def _policy(self, method: Method | None, seed: int) -> list[str]:
        if method and method.starts_from:
            return [f"policy.model={self._output / method.starts_from / f'seed-{seed}' / 'policy'}"]
        return [f"policy.model={self._output / 'warmstart' / 'policy'}"] if self._comparison.warmstart else []

    def _train(
        self, method: Method, seed: int, folder: Path, own: list[str], final_only: bool = False
    ) -> Job:
        changes = [*self._policy(method, seed), *own, f"run.seed={seed}", f"run.output={folder}"]
        settings = method_settings(self._comparison, method, changes)
        steps = settings.train.steps
        named = settings.evaluate.at_steps or ()
        if final_only or steps not in named:
            at = [] if final_only else [s for s in named if s < steps]
            settings = method_settings(
                self._comparison, method, [*changes, f"evaluate.at_steps={[*at, steps]}"]
            )
        begins_with = Path(settings.policy.model) / "config.json" if method.starts_from else None
        return Job(
            title=f"{method.name} {folder.name}",
            verb="train",
            settings=settings,
            finished=_evaluated(settings, steps),
            steps=steps,
            needs=begins_with,
        )


def _evaluated(settings: Settings, step: int) -> Callable[[], bool]:
    """Return a check that a run has all its evaluations, and its policy if it trains one."""
    path = settings.run.output / EVALUATION

    def finished() -> bool:
        if not path.exists() or (step and not (settings.run.output / "policy" / "config.json").exists()):
            return False
        modes = {r.mode for r in read_records(path) if r.step == step}
        return modes >= set(settings.evaluate.modes)

    return finished


def refuse_another_record(record: Path, settings: Settings) -> None:
    """Raise `JobFailedError` if there is a record, and it is that of a run with other settings."""
    if not record.exists():
        return
    stored = parse_settings(read_run(record).settings)
    changed = [d for d in diff_settings(stored, settings) if not d.startswith(_WHERE)]
    if changed:
        raise JobFailedError(
            f"{record} is the record of a run with other settings; remove it, go back to its settings or "
            "choose another compare.records:\n  " + "\n  ".join(changed)
        )
