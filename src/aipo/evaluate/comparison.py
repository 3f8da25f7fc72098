"""The compact records of a comparison, and the report that is generated from nothing else.

Owns what is kept of many runs (a few MB) and how it becomes one table, figures and words. Must not run
anything. Invariant: every number of the report comes from the records; the same records give the same report.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from aipo.evaluate.plots import TokenPoint, boundary_plot, expert_token_plot, training_plot
from aipo.evaluate.records import (
    EvaluationRecord,
    append_record,
    at_last_step,
    methods_of,
    read_records,
)
from aipo.evaluate.statistics import estimate, paired_difference
from aipo.evaluate.table import Table, format_estimate, format_share, results_table

EVALUATIONS, METRICS, FACTS = "evaluations.jsonl", "metrics.jsonl", "facts.json"
KEPT_METRICS = (
    "reward_solo",
    "reward_solo/hard",
    "reward_consulting",
    "reward_consulting/hard",
    "consultations_per_rollout",
    "consultations/verify",
    "consultations/knowledge",
    "consultations/reasoning",
    "feedback_prob",
    "credited_feedback_prob",
    "entropy",
    "grad_norm",
    "clip_fraction",
    "first_ratio_error",
    "expert_tokens_raw",
    "expert_tokens_distinct",
)
TRAINING_PANELS = (
    "reward_solo/hard",
    "reward_consulting/hard",
    "feedback_prob",
    "consultations/verify",
    "consultations/knowledge",
    "consultations/reasoning",
)
HARD, EASY = "hard", "easy"
TOKEN_K = 8
"""k of the figure of quality against expert tokens."""


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """One run of a comparison, to be kept."""

    method: str
    seed: int
    evaluations: tuple[EvaluationRecord, ...]
    metrics: tuple[dict[str, Any], ...]
    wall_s: float


@dataclass(frozen=True, slots=True)
class TuningPoint:
    """One learning rate of one method, and what it reached on the validation split."""

    method: str
    learning_rate: float
    criterion: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What a reader must know of how the numbers came about."""

    name: str
    command: str
    commit: str
    machine: str
    versions: dict[str, str]
    seeds: tuple[int, ...]
    baseline: str
    """The method that the others are compared with, pair by pair."""
    chosen: dict[str, float]
    """Learning rate of each method."""
    tuning: tuple[TuningPoint, ...]
    wall_s: float
    runs: tuple[dict[str, Any], ...] = ()


def write_records(folder: Path, runs: Sequence[FinishedRun], facts: Facts) -> None:
    """Write a comparison's compact records, replacing older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EVALUATIONS).unlink(missing_ok=True)
    for run in runs:
        for record in run.evaluations:
            append_record(folder / EVALUATIONS, replace(record, method=run.method, seed=run.seed))
    with (folder / METRICS).open("w") as file:
        for run in runs:
            for row in run.metrics:
                kept = {name: _rounded(row[name]) for name in KEPT_METRICS if name in row}
                line = {"method": run.method, "seed": run.seed, "step": row["step"], **kept}
                file.write(json.dumps(line) + "\n")
    spent = tuple({"method": r.method, "seed": r.seed, "wall_s": round(r.wall_s, 1)} for r in runs)
    (folder / FACTS).write_text(json.dumps(asdict(replace(facts, runs=spent)), indent=1) + "\n")


def write_report(records: Path, output: Path, pass_at: Sequence[int]) -> Path:
    """Generate `results.md`, `results.csv` and the figures from compact records; return the Markdown file."""
    report = Report(records, pass_at)
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.csv").write_text(report.table().csv())
    parts = [f"# {report.facts['name']}\n", report.table().markdown(), *report.figures(output)]
    parts += [part for part in (report.differences(), report.token_table(), report.how()) if part]
    path = output / "results.md"
    path.write_text("\n".join(parts))
    return path


class Report:
    """The parts of a report, each generated from compact records; a page may put words around them."""

    def __init__(self, records: Path, pass_at: Sequence[int]) -> None:
        """Read the records. Raises `RecordError` or `OSError` if they cannot be read."""
        self._evaluations = read_records(records / EVALUATIONS)
        self._rows = [json.loads(line) for line in (records / METRICS).read_text().splitlines()]
        self.facts: dict[str, Any] = json.loads((records / FACTS).read_text())
        self._final = at_last_step(self._evaluations)
        self._pass_at = pass_at
        self._bounded = _has(self._final, HARD)
        self._points = _token_points(self._evaluations, self._rows) if self._bounded else []

    def table(self) -> Table:
        """Return the results table."""
        pass_at = {HARD: self._pass_at, EASY: self._pass_at[:1]} if self._bounded else self._pass_at
        return results_table(self._final, pass_at)

    def cell(self, method: str, mode: str, k: int, stratum: str = HARD) -> str:
        """Return one estimate as it stands in the table. Raises `ValueError` for what was not measured."""
        own = [r for r in self._final if r.method == method and r.mode == mode]
        if not own:
            raise ValueError(
                f"no evaluation of {method!r} in mode {mode!r}; there are {methods_of(self._final)}"
            )
        return format_estimate(estimate(own, stratum, k))

    def figures(self, output: Path) -> list[str]:
        """Write the figures and return the Markdown that shows them."""
        shown = []
        if self._bounded:
            boundary_plot(self._final, output / "boundary")
            shown.append("![pass@k of hard problems](boundary.svg)\n")
        series = {m: [r for r in self._rows if r["method"] == m] for m in methods_of(self._final)}
        if series := {method: rows for method, rows in series.items() if rows}:
            panels = tuple(p for p in TRAINING_PANELS if any(p in row for row in self._rows))
            training_plot(series, output / "training", panels)
            shown.append("![training curves](training.svg)\n")
        if self._points:
            expert_token_plot(self._points, output / "expert_tokens", f"hard, unanswered, pass@{TOKEN_K}")
            shown.append("![quality against expert tokens](expert_tokens.svg)\n")
        return shown

    def differences(self) -> str:
        """Return the paired differences to the baseline."""
        return _differences(self._final, self.facts["baseline"]) if self._bounded else ""

    def token_table(self) -> str:
        """Return quality against expert tokens, one line for each method and evaluated step."""
        return _token_table(self._points) if self._points else ""

    def how(self) -> str:
        """Return how the numbers came about: command, commit, machine, learning rates, time."""
        return _how(self.facts)


def _has(records: Iterable[EvaluationRecord], stratum: str) -> bool:
    return any(stratum in record.strata for record in records)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _differences(records: Sequence[EvaluationRecord], baseline: str) -> str:
    """Return paired differences to the baseline on hard problems, for every method with the same seeds."""
    base = [r for r in records if r.method == baseline]
    modes = list(dict.fromkeys(r.mode for r in base))
    lines = [
        f"Paired differences to {baseline}, hard problems, pass@1 (95 % interval; sign-flip p over "
        "problems):\n",
        "| method |" + "".join(f" {mode} |" for mode in modes),
        "|---|" + "---|" * len(modes),
    ]
    for method in methods_of(records):
        own = [r for r in records if r.method == method]
        if method == baseline or {r.seed for r in own} != {r.seed for r in base}:
            continue
        cells = []
        for mode in modes:
            pair = ([r for r in own if r.mode == mode], [r for r in base if r.mode == mode])
            d = paired_difference(*pair, HARD, 1)
            cells.append(f" {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}], p = {d.p_value:.2g} |")
        lines.append(f"| {method} |" + "".join(cells))
    return "\n".join(lines) + "\n"


def _token_points(
    evaluations: Sequence[EvaluationRecord], rows: Sequence[dict[str, Any]]
) -> list[TokenPoint]:
    """Return what each method had reached, and spent on agents and experts, at each evaluated step."""
    spent = {(row["method"], row["seed"], row["step"]): row for row in rows}
    points = []
    for method in methods_of(evaluations):
        own = [r for r in evaluations if r.method == method and r.mode == "unanswered" and r.step]
        for step in sorted({r.step for r in own}):
            records = [r for r in own if r.step == step]
            prices = [spent[method, r.seed, step] for r in records if (method, r.seed, step) in spent]
            raw = [price["expert_tokens_raw"] for price in prices]
            if not raw or not max(raw):
                continue
            distinct = [price["expert_tokens_distinct"] for price in prices]
            cell = estimate(records, HARD, TOKEN_K)
            means = sum(raw) / len(raw), sum(distinct) / len(distinct)
            points.append(TokenPoint(method, step, *means, cell.value, cell.low, cell.high))
    return points


def _token_table(points: Sequence[TokenPoint]) -> str:
    lines = [
        f"| method | updates | expert tokens, raw | distinct | hard, unanswered, pass@{TOKEN_K} |",
        "|---|--:|--:|--:|---|",
    ]
    lines += [
        f"| {p.method} | {p.updates} | {p.raw_tokens:,.0f} | {p.distinct_tokens:,.0f} | "
        f"{format_share(p.value)} [{format_share(p.low)}, {format_share(p.high)}] |"
        for p in points
    ]
    return "\n".join(lines) + "\n"


def _how(facts: dict[str, Any]) -> str:
    """Return how the numbers came about: command, commit, machine, learning rates, time."""
    tuning = [
        f"| {t['method']} | {t['learning_rate']:g} | {t['criterion']:.3f} |"
        + (" chosen |" if facts["chosen"].get(t["method"]) == t["learning_rate"] else " |")
        for t in facts["tuning"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        "## How these numbers came about\n",
        f"- command: `{facts['command']}`",
        f"- commit: `{facts['commit']}`; machine: {facts['machine']}; {versions}",
        f"- training seeds: {', '.join(map(str, facts['seeds']))}; one warm start, shared by all",
        f"- wall time: {facts['wall_s'] / 60:.0f} minutes in all; of each run, its evaluations included: "
        + ", ".join(f"{r['method']} ({r['seed']}) {r['wall_s']:.0f} s" for r in facts["runs"]),
    ]
    if tuning:
        lines += [
            "- learning rates were chosen on the validation split, with a seed that is not reported, by the "
            "mean of pass@1 over strata and solo modes:\n",
            "| method | learning rate | criterion | |",
            "|---|--:|--:|---|",
            *tuning,
        ]
    return "\n".join(lines) + "\n"
