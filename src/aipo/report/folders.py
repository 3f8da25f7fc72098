"""Run folders as a report reads them: which ones are meant, what they are called, what stands in them.

Nothing is written into a run's folder. Two runs of one report never have the same method and seed, so nothing
is averaged by accident.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aipo.config.loader import SettingsError, parse_settings
from aipo.config.settings import Settings
from aipo.evaluation.records import EvaluationRecord, read_records
from aipo.training.journal import AGENTS, EVALUATION, METRICS, SETTINGS, TIMINGS, RunFolderError, read_lines

_SEED_FOLDER = re.compile(r"seed-\d+")
NOT_COMPARED = ("tuning", "checkpoints", "policy")
"""Folders of a comparison whose runs are no results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """One run's files, but for its rollouts, which are read line by line."""

    path: Path
    method: str
    """What tables and legends call it; runs of one method differ in their seed only."""
    seed: int
    settings: Settings | None
    """None: written by a version whose fields are gone; `problem` says which."""
    problem: str
    metrics: tuple[dict[str, Any], ...]
    timings: tuple[dict[str, Any], ...]
    evaluations: tuple[EvaluationRecord, ...]
    agents: tuple[dict[str, Any], ...]

    @property
    def title(self) -> str:
        """Method and seed, which name a run uniquely."""
        return f"{self.method}, seed {self.seed}"


def read_runs(paths: Sequence[Path]) -> list[RunData]:
    """Return the runs in `paths`: run folders, or folders of a comparison with runs below them.

    Raises `RunFolderError` for a path without a run, `RecordError` for evaluations that cannot be read.
    """
    folders = list(dict.fromkeys(folder.resolve() for path in paths for folder in _folders(path)))
    runs = [_read(folder) for folder in folders]
    return _told_apart(runs)


def _folders(path: Path) -> list[Path]:
    if _is_run(path):
        return [path]
    below = sorted(p.parent for depth in ("*", "*/*") for p in path.glob(f"{depth}/{SETTINGS}"))
    runs = [p for p in below if _is_run(p) and not set(p.relative_to(path).parts) & set(NOT_COMPARED)]
    if not runs:
        raise RunFolderError(
            f"{path}: no run here (no {SETTINGS} with {METRICS} or {EVALUATION}), nor one or two folders "
            "below; give the run.output of `aipo train`, or a comparison's folder"
        )
    return runs


def _is_run(path: Path) -> bool:
    return (path / SETTINGS).exists() and any((path / name).exists() for name in (METRICS, EVALUATION))


def _read(folder: Path) -> RunData:
    settings, problem = None, ""
    try:
        settings = parse_settings((folder / SETTINGS).read_text())
    except SettingsError as error:
        problem = f"{SETTINGS} was written by another version of aipo: {error}"
    evaluation = folder / EVALUATION
    agents = folder / AGENTS
    records = tuple(read_records(evaluation)) if evaluation.exists() else ()
    seed = settings.run.seed if settings else next((r.seed for r in records), 0)
    method = folder.parent.name if _SEED_FOLDER.fullmatch(folder.name) else folder.name
    metrics = tuple(read_lines(folder / METRICS))
    return RunData(
        path=folder,
        method=method,
        seed=seed,
        settings=settings,
        problem=problem,
        metrics=metrics,
        timings=tuple(read_lines(folder / TIMINGS)),
        evaluations=tuple(_named(record, method, seed, trained=bool(metrics)) for record in records),
        agents=tuple(json.loads(agents.read_text())) if agents.exists() else (),
    )


def _named(record: EvaluationRecord, method: str, seed: int, *, trained: bool) -> EvaluationRecord:
    """Return the record under the run's name; another policy's, evaluated into the folder, keeps its own."""
    if record.method in (record.run, method) or not trained:
        return replace(record, method=method, seed=seed)
    return replace(record, method=f"{method} · {record.method}", seed=seed)


def _told_apart(runs: list[RunData]) -> list[RunData]:
    """Return the runs with more of their path in the name where method and seed do not tell them apart."""
    depth = 1
    while True:
        counts = Counter((run.method, run.seed) for run in runs)
        twice = [run for run in runs if counts[run.method, run.seed] > 1]
        if not twice:
            return runs
        depth += 1
        # Path by path a name grows until it is unique; resolved paths differ, so it ends.
        runs = [_renamed(run, _path_name(run.path, depth)) if run in twice else run for run in runs]


def _path_name(path: Path, depth: int) -> str:
    parts = path.parts[:-1] if _SEED_FOLDER.fullmatch(path.name) and depth < len(path.parts) else path.parts
    return "/".join(parts[-depth:])


def _renamed(run: RunData, method: str) -> RunData:
    evaluations = tuple(
        replace(record, method=method + record.method.removeprefix(run.method)) for record in run.evaluations
    )
    return replace(run, method=method, evaluations=evaluations)
