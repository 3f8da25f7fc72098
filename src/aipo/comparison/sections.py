"""What a comparison's report says beside results: what feedback did, and how the numbers came about."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from aipo.comparison.records import RunRecord
from aipo.evaluation.table import MISSING, Grid

FEEDBACK_STEPS = (1, 10, 20, 30, 50)
"""Updates at which the probability of feedback is shown."""


def internals(runs: Sequence[RunRecord]) -> str:
    """Return one line for each method that had feedback to learn from; means over seeds.

    The probability of FEEDBACK tokens is that under the policy which sampled the rollouts. Gradient norms are
    means over the run, of the first mini-batch's POLICY part and FEEDBACK part, before clipping.
    """
    steps = (f"p(feedback) at {step}" for step in FEEDBACK_STEPS)
    head = ("method", "consultations per rollout, first", "last", *steps, "gradient norm, POLICY", "FEEDBACK")
    lines = []
    for method in dict.fromkeys(run.method for run in runs):
        rows = [row for run in runs if run.method == method for row in run.metrics]
        if not any("feedback_prob" in row for row in rows):
            continue
        last = max(row["step"] for row in rows)
        asked = [_at(rows, "consultations_per_rollout", step) for step in (1, last)]
        probabilities = [_at(rows, "feedback_prob", step) for step in FEEDBACK_STEPS]
        norms = [_mean(row.get(f"grad_norm_{source}") for row in rows) for source in ("policy", "feedback")]
        lines.append((method, *map(_number, (*asked, *probabilities, *norms))))
    return Grid([head, *lines]).markdown() if lines else ""


def _at(rows: Iterable[Mapping[str, Any]], name: str, step: int) -> float | None:
    return _mean(row.get(name) for row in rows if row["step"] == step)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and isfinite(value)]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.3f}"


def how(facts: Mapping[str, Any], runs: Sequence[RunRecord]) -> str:
    """Return how the numbers came about: command, commits, machine, learning rates, time."""
    trained = [run for run in runs if run.metrics]
    warm_starts = len({run.warmstart for run in runs if run.warmstart})
    seeds = sorted({run.seed for run in trained})
    lines = [
        "## How these numbers came about\n",
        f"- command: `{facts['command']}`",
        f"- commits: {_counted(run.commit for run in runs)}",
        f"- machine: {_counted(run.machine for run in runs)}",
        f"- versions: {_counted(', '.join(f'{n} {v}' for n, v in r.versions.items()) for r in runs)}",
        f"- training seeds: {', '.join(map(str, seeds))}; warm starts: {warm_starts}, shared by all methods",
        f"- wall time: {sum(run.wall_s for run in runs) / 60:.0f} minutes of one process in all, evaluations "
        f"included, without tuning; a run takes {_span([run.wall_s for run in trained])} s",
    ]
    if facts["missing"]:
        lines.append(f"- **incomplete**: {facts['missing']} planned runs are not there yet")
    rates = {run.method: run.learning_rate for run in trained}
    tuning = [
        (t["method"], f"{t['learning_rate']:g}", f"{t['criterion']:.3f}", chosen)
        for t in facts["tuning"]
        for chosen in ["chosen" if rates.get(t["method"]) == t["learning_rate"] else ""]
    ]
    if tuning:
        lines += [
            "- learning rates were chosen on the validation split, with a seed that is not reported, by the "
            "mean of pass@1 over strata and solo modes:\n",
            Grid([("method", "learning rate", "criterion", ""), *tuning]).markdown().rstrip("\n"),
        ]
    return "\n".join(lines) + "\n"


def _counted(values: Iterable[str]) -> str:
    """Return what occurs, with the number of runs where it is not all of them."""
    counts = Counter(values)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{value} ({count} runs)" for value, count in counts.most_common())


def _span(values: Sequence[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f}" if values else MISSING
