"""The compact record of one run of a comparison: one small JSON file, committed instead of the run's folder.

A record that is read back equals the one that was written; it is written whole or not at all.

Metrics are thinned: every step up to the tenth, then means over five steps (running totals: the last value),
with five digits.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from aipo.evaluation.records import SCHEMA, EvaluationRecord, ProblemResult, RecordError
from aipo.training.durable import write_whole

RUN_SCHEMA = 1
KEPT_METRICS = (
    "reward_solo",
    "reward_consulting",
    "consultations_per_rollout",
    "consultations",
    "leaks",
    "feedback_prob",
    "credited_feedback_prob",
    "entropy",
    "grad_norm",
    "grad_norm_policy",
    "grad_norm_feedback",
    "clip_fraction",
    "first_ratio_error",
    "teaching_groups",
    "sampled_groups",
    "expert_tokens_raw",
    "expert_tokens_distinct",
)
"""What stands before the first `/` of a name: with rewards those by stratum are kept, too."""
RUNNING_TOTALS = ("expert_tokens_raw", "expert_tokens_distinct")
_COUNTS = ("samples", "correct", "ungraded", "truncated")
EVERY_STEPS, WHOLE_STEPS = 5, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What is kept of one run."""

    method: str
    seed: int
    settings: str
    """All of them, as TOML."""
    learning_rate: float
    warmstart: str
    """Fingerprint of the policy that it began with; '' where there is none to speak of."""
    commit: str
    machine: str
    versions: dict[str, str]
    wall_s: float
    evaluations: tuple[EvaluationRecord, ...]
    metrics: tuple[dict[str, Any], ...]
    """One row for each kept step."""


def thinned(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return the kept metrics of the kept steps; a row stands for the steps after the row before it.

    >>> [row["step"] for row in thinned([{"step": s} for s in range(1, 24)])]
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 23]
    """
    bins: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        step = row["step"]
        bins.setdefault(step if step <= WHOLE_STEPS else -(-step // EVERY_STEPS) * EVERY_STEPS, []).append(
            row
        )
    return tuple({"step": rows[-1]["step"], **_summary(rows)} for rows in bins.values())


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row if name.partition("/")[0] in KEPT_METRICS)
    summary = {}
    for name in sorted(names, key=lambda name: KEPT_METRICS.index(name.partition("/")[0])):
        values = [row[name] for row in rows if name in row]
        total = name in RUNNING_TOTALS
        summary[name] = values[-1] if total else float(f"{sum(values) / len(values):.5g}")
    return summary


def write_run(path: Path, run: RunRecord) -> None:
    """Write one record, whole or not at all."""
    row = {
        "schema": RUN_SCHEMA,
        **asdict(replace(run, evaluations=(), metrics=())),
        "problems": _problems(run.evaluations),
        "evaluations": [_packed(record) for record in run.evaluations],
        "metrics": _columns(run.metrics),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(row, allow_nan=False) + "\n")


def read_run(path: Path) -> RunRecord:
    """Return the record of a file. Raises `RecordError` that names it."""
    try:
        row = json.loads(path.read_text())
        if row.pop("schema") != RUN_SCHEMA:
            raise ValueError(f"not of schema {RUN_SCHEMA}")
        problems = row.pop("problems")
        method, seed = row["method"], row["seed"]
        evaluations = tuple(_unpacked(e, problems, method, seed) for e in row.pop("evaluations"))
        return RunRecord(evaluations=evaluations, metrics=tuple(_rows(row.pop("metrics"))), **row)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordError(f"{path}: not the record of a run: {error!r}") from error


def _problems(evaluations: Iterable[EvaluationRecord]) -> dict[str, list[str]]:
    """Return the ids of each stratum, which all evaluations of a run share."""
    ids: dict[str, list[str]] = {}
    for record in evaluations:
        own = {s: [r.problem for r in record.results if r.stratum == s] for s in record.strata}
        if ids and own != ids:
            raise RecordError(f"run {record.run!r}: its evaluations are over different problems")
        ids = own
    return ids


def _packed(record: EvaluationRecord) -> dict[str, Any]:
    strata = {}
    for stratum in record.strata:
        own = [result for result in record.results if result.stratum == stratum]
        strata[stratum] = {name: _shortest([getattr(r, name) for r in own]) for name in _COUNTS}
    return {"step": record.step, "split": record.split, "mode": record.mode, "strata": strata}


def _shortest(values: list[int]) -> int | list[int]:
    """Return one value for a column of equal ones."""
    return values[0] if len(set(values)) == 1 else values


def _unpacked(row: Any, problems: Mapping[str, list[str]], method: str, seed: int) -> EvaluationRecord:
    results = []
    for stratum, counts in row["strata"].items():
        ids = problems[stratum]
        columns = [c if isinstance(c, list) else [c] * len(ids) for c in (counts[name] for name in _COUNTS)]
        results += [
            ProblemResult(problem=problem, stratum=stratum, **dict(zip(_COUNTS, numbers, strict=True)))
            for problem, *numbers in zip(ids, *columns, strict=True)
        ]
    name = f"{method}/seed-{seed}"
    return EvaluationRecord(
        schema=SCHEMA,
        run=name,
        method=method,
        seed=seed,
        step=row["step"],
        split=row["split"],
        mode=row["mode"],
        results=tuple(results),
    )


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    length = len(columns["step"]) if columns else 0
    return [{n: v[i] for n, v in columns.items() if v[i] is not None} for i in range(length)]
