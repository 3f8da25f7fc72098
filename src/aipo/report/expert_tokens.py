"""Quality against expert tokens: what a method had reached and spent on agents and experts, step by step.

`aipo report` and `aipo compare` show the same points.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from aipo.core.types import SoloMode
from aipo.evaluation.plots import TokenPoint
from aipo.evaluation.records import EvaluationRecord, methods_of
from aipo.evaluation.statistics import estimate
from aipo.evaluation.table import MISSING, Grid, format_share

TOKEN_K = 8
"""k of quality against expert tokens, where there are as many samples."""
Spent = Mapping[tuple[str, int, int], tuple[float, float]]
"""Expert tokens, raw and distinct, by method, seed and step."""


class Run(Protocol):
    """What is read of a run: its name and its metrics."""

    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def metrics(self) -> Sequence[Mapping[str, Any]]: ...  # noqa: D102


def spent_tokens(runs: Iterable[Run]) -> Spent:
    """Return what the runs had spent at each step that says it."""
    return {
        (run.method, run.seed, row["step"]): (row["expert_tokens_raw"], row["expert_tokens_distinct"])
        for run in runs
        for row in run.metrics
        if "expert_tokens_raw" in row
    }


def token_points(
    records: Sequence[EvaluationRecord], spent: Spent, strata: Sequence[str]
) -> dict[str, list[TokenPoint]]:
    """Return the points of each stratum, by what was measured; methods that spent nothing give none.

    Solo with requests unanswered where that was evaluated, and `TOKEN_K` where there are enough samples.
    """
    found = {}
    for stratum in strata:
        own = [record for record in records if stratum in record.strata]
        modes = dict.fromkeys(record.mode for record in own)
        mode = SoloMode.UNANSWERED if SoloMode.UNANSWERED in modes else next(iter(modes))
        k = min([TOKEN_K, *(r.graded for record in own for r in record.results if r.graded)])
        found[f"{stratum}, {mode}, pass@{k}"] = _points([r for r in own if r.mode == mode], spent, stratum, k)
    return found


def _points(records: Sequence[EvaluationRecord], spent: Spent, stratum: str, k: int) -> list[TokenPoint]:
    points = []
    for method in methods_of(records):
        own = [record for record in records if record.method == method and record.step]
        for step in sorted({record.step for record in own}):
            at_step = [record for record in own if record.step == step]
            prices = [spent[key] for r in at_step if (key := (method, r.seed, step)) in spent]
            if not any(raw for raw, _ in prices):
                continue
            raw, distinct = (sum(column) / len(prices) for column in zip(*prices, strict=True))
            reached = estimate(at_step, stratum, k)
            points.append(
                TokenPoint(
                    method=method,
                    updates=step,
                    raw_tokens=raw,
                    distinct_tokens=distinct,
                    value=reached.value,
                    low=reached.low,
                    high=reached.high,
                )
            )
    return points


def token_grid(measures: Mapping[str, Sequence[TokenPoint]]) -> Grid | None:
    """Return one line for each method and step, one column for each measure of quality; None without any."""
    lines: dict[tuple[str, int], list[str]] = {}
    for column, points in enumerate(measures.values()):
        for p in points:
            spent = f"{p.raw_tokens:,.0f}", f"{p.distinct_tokens:,.0f}"
            cells = lines.setdefault((p.method, p.updates), [*spent, *[MISSING] * len(measures)])
            cells[len(spent) + column] = format_point(p)
    head = ("method", "updates", "expert tokens, raw", "distinct", *measures)
    rows = [(method, str(step), *cells) for (method, step), cells in lines.items()]
    return Grid([head, *rows]) if rows else None


def format_point(point: TokenPoint) -> str:
    """Return what a point reached, with its interval."""
    return f"{format_share(point.value)} [{format_share(point.low)}, {format_share(point.high)}]"
