"""The tables of a comparison's report besides the results: differences, internals, tokens, provenance.

Every number comes from the records that are given.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from aipo.comparison.records import RunRecord
from aipo.core.types import SoloMode
from aipo.evaluation.plots import TokenPoint
from aipo.evaluation.records import EvaluationRecord, methods_of
from aipo.evaluation.statistics import estimate, paired_with
from aipo.evaluation.table import BAR, MISSING, format_share

TOKEN_K = 8
"""k of quality against expert tokens, where there are as many samples."""
FEEDBACK_STEPS = (1, 10, 20, 30, 50)
"""Updates at which the probability of feedback is shown."""


def differences(records: Sequence[EvaluationRecord], baseline: str, stratum: str, k: int) -> str:
    """Return paired differences to the baseline, for every method, over the seeds that both have."""
    base = [r for r in records if r.method == baseline]
    modes = list(dict.fromkeys(r.mode for r in base))
    lines = [
        f"Paired differences to {baseline}, {stratum} problems, pass@{k} (95 % interval; sign-flip p over "
        "problems, not corrected for the number of lines):\n",
        "| method | seeds |" + "".join(f" {mode} |" for mode in modes),
        "|---|--:|" + "---|" * len(modes),
    ]
    for method in methods_of(records):
        own = [r for r in records if r.method == method]
        shared = {r.seed for r in own} & {r.seed for r in base}
        if method == baseline or not shared:
            continue
        found = [paired_with(own, base, stratum, mode, k) for mode in modes]
        cells = [
            f" {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}], p = {d.p_value:.2g} |" if d else f" {MISSING} |"
            for d in found
        ]
        lines.append(f"| {cell(method)} | {len(shared)} |" + "".join(cells))
    return "\n".join(lines) + "\n" if len(lines) > 3 else ""


def internals(runs: Sequence[RunRecord]) -> str:
    """Return one line for each method that had feedback to learn from; means over seeds.

    The probability of FEEDBACK tokens is that under the policy which sampled the rollouts. Gradient norms are
    means over the run, of the first mini-batch's POLICY part and FEEDBACK part, before clipping.
    """
    lines = []
    for method in dict.fromkeys(run.method for run in runs):
        rows = [row for run in runs if run.method == method for row in run.metrics]
        if not any("feedback_prob" in row for row in rows):
            continue
        last = max(row["step"] for row in rows)
        asked = [_at(rows, "consultations_per_rollout", step) for step in (1, last)]
        probabilities = [_at(rows, "feedback_prob", step) for step in FEEDBACK_STEPS]
        norms = [_mean(row.get(f"grad_norm_{source}") for row in rows) for source in ("policy", "feedback")]
        cells = [_number(value) for value in (*asked, *probabilities, *norms)]
        lines.append(f"| {cell(method)} | " + " | ".join(cells) + " |")
    if not lines:
        return ""
    steps = "".join(f" p(feedback) at {step} |" for step in FEEDBACK_STEPS)
    head = (
        f"| method | consultations per rollout, first | last |{steps} gradient norm, POLICY | FEEDBACK |\n"
        + "|---|"
        + "--:|" * (4 + len(FEEDBACK_STEPS))
    )
    return "\n".join([head, *lines]) + "\n"


def cell(text: str) -> str:
    """Return a name as a cell of a Markdown table shows it."""
    return text.replace("|", BAR)


def _at(rows: Iterable[Mapping[str, Any]], name: str, step: int) -> float | None:
    return _mean(row.get(name) for row in rows if row["step"] == step)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and isfinite(value)]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.3f}"


def token_measure(runs: Sequence[RunRecord], stratum: str) -> tuple[str, int]:
    """Return the mode and the k in which quality is set against expert tokens.

    Solo with requests unanswered where that was evaluated, and `TOKEN_K` where there are enough samples.
    """
    records = [record for run in runs for record in run.evaluations if stratum in record.strata]
    modes = [record.mode for record in records]
    mode = SoloMode.UNANSWERED if SoloMode.UNANSWERED in modes else modes[0]
    return mode, min(TOKEN_K, *(r.samples for record in records for r in record.results))


def token_points(runs: Sequence[RunRecord], stratum: str) -> list[TokenPoint]:
    """Return what each method had reached, and spent on agents and experts, at each evaluated step.

    Methods that spent nothing give none.
    """
    spent = {(run.method, run.seed, row["step"]): row for run in runs for row in run.metrics}
    mode, k = token_measure(runs, stratum)
    evaluations = [r for run in runs for r in run.evaluations if stratum in r.strata and r.mode == mode]
    points = []
    for method in methods_of(evaluations):
        own = [r for r in evaluations if r.method == method and r.step]
        for step in sorted({r.step for r in own}):
            records = [r for r in own if r.step == step]
            prices = [spent[method, r.seed, step] for r in records if (method, r.seed, step) in spent]
            raw = [price["expert_tokens_raw"] for price in prices if "expert_tokens_raw" in price]
            if not raw or not max(raw):
                continue
            distinct = [price["expert_tokens_distinct"] for price in prices]
            reached = estimate(records, stratum, k)
            means = sum(raw) / len(raw), sum(distinct) / len(distinct)
            points.append(TokenPoint(method, step, *means, reached.value, reached.low, reached.high))
    return points


def token_table(measures: Mapping[str, Sequence[TokenPoint]]) -> str:
    """Return one line for each method and step, one column for each measure of quality; '' without any."""
    lines: dict[tuple[str, int], list[str]] = {}
    for column, points in enumerate(measures.values()):
        for p in points:
            spent = f"{p.raw_tokens:,.0f}", f"{p.distinct_tokens:,.0f}"
            cells = lines.setdefault((p.method, p.updates), [*spent, *[MISSING] * len(measures)])
            cells[len(spent) + column] = format_point(p)
    if not lines:
        return ""
    head = [
        f"| method | updates | expert tokens, raw | distinct | {' | '.join(map(cell, measures))} |",
        "|---|--:|--:|--:|" + "---|" * len(measures),
    ]
    rows = [f"| {cell(method)} | {step} | {' | '.join(cells)} |" for (method, step), cells in lines.items()]
    return "\n".join([*head, *rows]) + "\n"


def format_point(point: TokenPoint) -> str:
    """Return what a point reached, with its interval."""
    return f"{format_share(point.value)} [{format_share(point.low)}, {format_share(point.high)}]"


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
        f"| {cell(t['method'])} | {t['learning_rate']:g} | {t['criterion']:.3f} |"
        + (" chosen |" if rates.get(t["method"]) == t["learning_rate"] else " |")
        for t in facts["tuning"]
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


def _counted(values: Iterable[str]) -> str:
    """Return what occurs, with the number of runs where it is not all of them."""
    counts = Counter(values)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{value} ({count} runs)" for value, count in counts.most_common())


def _span(values: Sequence[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f}" if values else MISSING
