"""Evaluations as curves: solo accuracy over training, and pass@k before and after it, with intervals.

A point is one `statistics.estimate`: one method, one step, one mode, one stratum, all its seeds.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from aipo.evaluation.records import EvaluationRecord, RecordError, read_records
from aipo.evaluation.sampling import WITH_AGENTS
from aipo.evaluation.statistics import estimate
from aipo.report.folders import RunData
from aipo.training.journal import EVALUATION

Records = Sequence[EvaluationRecord]
Panels = dict[tuple[str, str, str], dict[str, Any]]


def evaluations(runs: Sequence[RunData]) -> list[EvaluationRecord]:
    """Return every evaluation of the runs; as step 0 that of the policy each began with, if it is at hand.

    Of several of one method, seed, step, split and mode, as of more and more problems, the last one counts.
    """
    found: dict[tuple[str, int, int, str, str], EvaluationRecord] = {}
    for run in runs:
        for record in (*_before(run), *run.evaluations):
            found[record.method, record.seed, record.step, record.split, record.mode] = record
    return list(found.values())


def _before(run: RunData) -> Iterator[EvaluationRecord]:
    if run.settings is None or not run.evaluations or any(r.step == 0 for r in run.evaluations):
        return
    wanted = {(r.split, r.mode) for r in run.evaluations if r.method == run.method}
    for path in _evaluations_of_start(run):
        try:
            records = [r for r in read_records(path) if (r.split, r.mode) in wanted]
        except RecordError:
            continue  # of another version: there is no "before" then
        latest = {(r.split, r.mode): r for r in records}
        yield from (replace(r, method=run.method, seed=run.seed, step=0) for r in latest.values())
        if latest:
            return


def _evaluations_of_start(run: RunData) -> Iterator[Path]:
    """Yield where the policy that a run began with may have been evaluated."""
    assert run.settings is not None
    model = Path(run.settings.policy.model)
    for base in (Path(), *run.path.parents):
        folder = (base / model).parent
        if run.settings.policy.model and (base / model).is_dir():
            # `aipo compare` evaluates its warm start beside it.
            for name in (folder, folder.with_name(f"{folder.name}-evaluation")):
                if (name / EVALUATION).exists():
                    yield name / EVALUATION


def policy_folders(run: RunData) -> list[Path]:
    """Return where the run's tokenizer may stand: the exported policy, then the one that it began with."""
    model = run.settings.policy.model if run.settings else ""
    starts = [base / model for base in (Path(), *run.path.parents)] if model else []
    return [run.path / "policy", *(folder for folder in starts if folder.is_dir())]


def accuracy_panels(records: Records) -> list[dict[str, Any]]:
    """Return pass@1 over steps: of one method the modes of a stratum in one panel, of several one each."""
    alone = len({record.method for record in records}) == 1
    panels: Panels = {}
    for (stratum, mode, method), own in _lines(records):
        steps = sorted({record.step for record in own})
        points = [_point(step, [r for r in own if r.step == step], stratum, 1) for step in steps]
        if len(steps) > 1:
            place = ("step", stratum, "" if alone else mode)
            _add(panels, place, {"method": method, "label": mode if alone else ""}, points)
    return list(panels.values())


def boundary_panels(records: Records) -> list[dict[str, Any]]:
    """Return pass@k over k after training; of a single method also before it."""
    alone = len({record.method for record in records}) == 1
    panels: Panels = {}
    for label, pick in (("after", max), ("before", min)):
        for (stratum, mode, method), own in _lines(records):
            steps = {record.step for record in own}
            if label == "before" and not (alone and len(steps) > 1):
                continue
            at_step = [record for record in own if record.step == pick(steps)]
            most = min(r.graded for record in at_step for r in record.results if r.stratum == stratum)
            points = [_point(2**i, at_step, stratum, 2**i) for i in range(most.bit_length())]
            _add(panels, ("k", stratum, mode), {"method": method, "label": label}, points)
    return list(panels.values())


def _lines(records: Records) -> list[tuple[tuple[str, str, str], list[EvaluationRecord]]]:
    """Return the records of each stratum in the order of the data, mode and method."""
    groups: dict[tuple[str, str, str], list[EvaluationRecord]] = defaultdict(list)
    for record in records:
        for stratum in record.strata:
            groups[stratum, record.mode, record.method].append(record)
    strata = list(dict.fromkeys(stratum for stratum, _, _ in groups))

    def place(key: tuple[str, str, str]) -> tuple[int, bool, str]:
        return strata.index(key[0]), key[1] == WITH_AGENTS, key[1]

    return [(key, groups[key]) for key in sorted(groups, key=place)]


def _point(x: float, own: Records, stratum: str, k: int) -> list[float]:
    """Return x, value, low, high; nothing where these records cannot tell."""
    try:
        found = estimate(own, stratum, k)
    except ValueError:
        return []  # seeds of different problems or splits: the table says so
    if not isfinite(found.value):
        return []
    ends = [found.low, found.high] if isfinite(found.low) else []
    return [x, *(round(value, 4) for value in (found.value, *ends))]


def _add(
    panels: Panels, place: tuple[str, str, str], line: dict[str, Any], points: list[list[float]]
) -> None:
    """Add a line, if it has points, to the panel of an x, a stratum and a mode; '': of all modes."""
    if not any(points):
        return
    x, stratum, mode = place
    alone = "With agents" if mode == WITH_AGENTS else "Alone" if mode else "Alone, by mode"
    panel = {
        "title": " · ".join(filter(None, ("pass@k" if x == "k" else "Accuracy", stratum, mode))),
        "note": f"{alone}; 95 % intervals over problems, and over seeds from two on.",
        "unit": "share",
        "group": "What it can do alone",
        "legend": True,
        "x": x,
        "series": [],
    }
    panels.setdefault(place, panel)["series"].append({**line, "points": list(filter(None, points))})
