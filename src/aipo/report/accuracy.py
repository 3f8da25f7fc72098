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
    lines = _lines(records, _over_steps)
    if len({record.method for record in records}) > 1:
        return [_panel(mode, stratum, "step", own) for (mode, stratum), own in lines.items()]
    panels: dict[str, dict[str, Any]] = {}
    for (mode, stratum), own in lines.items():
        panel = panels.setdefault(stratum, _panel("", stratum, "step", []))
        panel["series"] += [{**line, "label": mode} for line in own]
    return list(panels.values())


def boundary_panels(records: Records) -> list[dict[str, Any]]:
    """Return pass@k over k after training; of a single method also before it."""
    methods = {record.method for record in records}
    parts = [("after", max)] + ([("before", min)] if len(methods) == 1 else [])
    panels: dict[tuple[str, str], dict[str, Any]] = {}
    for label, pick in parts:

        def over_k(own: Records, stratum: str, pick: Any = pick, label: str = label) -> list[list[float]]:
            steps = {r.step for r in own}
            if label == "before" and len(steps) < 2:
                return []
            return _over_k([r for r in own if r.step == pick(steps)], stratum)

        for (mode, stratum), lines in _lines(records, over_k).items():
            for line in lines:
                line["label"] = label
            panel = panels.setdefault((mode, stratum), _panel(mode, stratum, "k", []))
            panel["series"] += lines
    return list(panels.values())


def _lines(records: Records, points_of: Any) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the lines of each mode and stratum, in the order of the data: one per method with points."""
    groups: dict[tuple[str, str, str], list[EvaluationRecord]] = defaultdict(list)
    for record in records:
        for stratum in record.strata:
            groups[record.mode, stratum, record.method].append(record)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    strata = list(dict.fromkeys(stratum for _, stratum, _ in groups))
    in_order = sorted(groups, key=lambda key: (strata.index(key[1]), key[0] == WITH_AGENTS, key[0]))
    for mode, stratum, method in in_order:
        own = groups[mode, stratum, method]
        if points := points_of(own, stratum):
            found.setdefault((mode, stratum), []).append({"method": method, "label": "", "points": points})
    return found


def _over_steps(own: Records, stratum: str) -> list[list[float]]:
    steps = sorted({record.step for record in own})
    if len(steps) < 2:
        return []
    return list(filter(None, (_point(s, [r for r in own if r.step == s], stratum, 1) for s in steps)))


def _over_k(own: Records, stratum: str) -> list[list[float]]:
    graded = [r.graded for record in own for r in record.results if r.stratum == stratum]
    most = min(graded, default=0)
    ks = [2**i for i in range(20) if 2**i <= most]
    return list(filter(None, (_point(k, own, stratum, k) for k in ks)))


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


def _panel(mode: str, stratum: str, x: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    what = " · ".join(filter(None, ("pass@k" if x == "k" else "Accuracy", stratum, mode)))
    alone = "With agents" if mode == WITH_AGENTS else "Alone" if mode else "Alone, by mode"
    return {
        "title": what,
        "note": f"{alone}; 95 % intervals over problems, and over seeds from two on.",
        "unit": "share",
        "group": "What it can do alone",
        "legend": True,
        "x": x,
        "series": lines,
    }
