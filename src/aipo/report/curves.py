"""The learning curves of a report: which there are, and their points.

Owns the panels and how many points a line has. Must not know how they are drawn.
Invariant: a value that was not recorded is no point, and a NaN is none either; where steps are averaged, the
panel's note says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from aipo.core.types import PAPER_AGENTS, ConsultOutcome
from aipo.report.folders import RunData
from aipo.report.weights import weight

MOST_POINTS = 250
FEEDBACK, UPDATE, TIME = "Learning from feedback", "Health of the update", "Time and money"
Point = list[float]
"""x, y; with an interval also its low and high end."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a panel."""

    metric: str
    label: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart."""

    title: str
    lines: tuple[Line, ...]
    note: str = ""
    unit: str = ""
    """`share`: between 0 and 1. `s`: seconds. Empty: a number."""
    group: str = "Rollouts"
    """The heading that it stands under."""


def _lines(prefix: str, names: Sequence[str]) -> tuple[Line, ...]:
    return tuple(Line(f"{prefix}{name}", name.replace("_", " ")) for name in names)


PANELS = (
    Panel(
        "Reward",
        (Line("reward_solo", "solo"), Line("reward_consulting", "consulting")),
        "Share of graded training rollouts that are correct.",
        "share",
    ),
    Panel(
        "Reward on hard problems",
        (Line("reward_solo/hard", "solo"), Line("reward_consulting/hard", "consulting")),
        "The stratum hard of the training rollouts.",
        "share",
    ),
    Panel("Consultations per rollout", _lines("consultations/", PAPER_AGENTS), "By agent."),
    Panel(
        "How consultations ended",
        _lines("outcomes_share/", [o.value for o in ConsultOutcome]),
        "Share of a step's consultations; outcomes that never came are left out.",
        "share",
    ),
    Panel(
        "Probability of feedback under the policy",
        (Line("feedback_prob", "all feedback"), Line("credited_feedback_prob", "credited feedback")),
        "Mean over the FEEDBACK tokens of a step's first mini-batch, by the policy that sampled.",
        "share",
        group=FEEDBACK,
    ),
    Panel(
        "Weight of a feedback token",
        (Line("feedback_weight_at_mean", "W at the mean probability"),),
        "The coefficient's weight W at the mean probability of credited feedback; the mean of W "
        "over tokens is not recorded.",
        group=FEEDBACK,
    ),
    Panel(
        "Gradient norm by source",
        (Line("grad_norm_policy", "policy"), Line("grad_norm_feedback", "feedback")),
        "Of the first mini-batch, before clipping, at the steps where it was measured.",
        group=FEEDBACK,
    ),
    Panel(
        "Feedback's share of the gradient",
        (Line("grad_share_feedback", "feedback"),),
        "Its norm over the sum of both norms.",
        "share",
        group=FEEDBACK,
    ),
    Panel(
        "Clipped tokens",
        (Line("clip_fraction", "clip fraction"),),
        "Of POLICY tokens.",
        "share",
        group=UPDATE,
    ),
    Panel(
        "Entropy", (Line("entropy", "entropy"),), "Of the policy at its own tokens, in nats.", group=UPDATE
    ),
    Panel(
        "Sampler and trainer apart",
        (Line("mismatch_mean", "mean"), Line("mismatch_max", "largest")),
        "|log p by the trainer − log p by the sampler| of POLICY tokens before the update.",
        group=UPDATE,
    ),
    Panel(
        "Gradient norm",
        (Line("grad_norm", "norm"),),
        "Mean over a step's updates, before clipping.",
        group=UPDATE,
    ),
    Panel(
        "Groups that teach",
        (
            Line("zero_variance_share", "without variance"),
            Line("truncated_share", "truncated rollouts"),
            Line("ungraded_share", "ungraded rollouts"),
        ),
        "Shares of a step's groups or rollouts.",
        "share",
        group=UPDATE,
    ),
    Panel(
        "Length", (Line("response_tokens", "response tokens"),), "Mean of a step's rollouts, feedback too."
    ),
    Panel(
        "Time of a step",
        (Line("rollout_s", "rollouts"), Line("update_s", "update")),
        "Seconds by the clock.",
        "s",
        group=TIME,
    ),
    Panel("Time of an evaluation", (Line("evaluate_s", "all modes"),), "Seconds by the clock.", "s", TIME),
    Panel(
        "Waiting for agents",
        (Line("consult_s", "all rollouts together"),),
        "Sum over a step's consultations; they wait at the same time, so it may exceed the step.",
        "s",
        group=TIME,
    ),
    Panel(
        "Spent on agents",
        (Line("agent_cost", "cost of the step"),),
        "In the currency of agents.price_*, as if no reply had come from a cache.",
        group=TIME,
    ),
)


def panels(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Return the panels that some run has values for; one line for each run and metric."""
    rows = [_rows(run) for run in runs]
    result = []
    for panel in PANELS:
        parts = [panel] if len(runs) == 1 else [_single(panel, line) for line in panel.lines]
        for part in parts:
            if series := _series(part, rows):
                result.append(_panel(part, series))
    return result


def _panel(panel: Panel, series: list[dict[str, Any]]) -> dict[str, Any]:
    averaged = any(s.pop("averaged") for s in series)
    note = panel.note + (" Means over neighbouring steps." if averaged else "")
    about = {"title": panel.title, "note": note, "unit": panel.unit, "group": panel.group}
    return {**about, "legend": len(panel.lines) > 1, "x": "step", "series": series}


def _single(panel: Panel, line: Line) -> Panel:
    """Return a panel of one metric, on which runs are compared."""
    if len(panel.lines) == 1:
        return panel
    return replace(panel, title=f"{panel.title}: {line.label}", lines=(line,))


def _series(panel: Panel, rows: Sequence[Sequence[dict[str, float]]]) -> list[dict[str, Any]]:
    series = []
    for run, steps in enumerate(rows):
        for line in panel.lines:
            points = _points(steps, line.metric)
            # A line that never leaves 0 says nothing beside others.
            if not points or (len(panel.lines) > 2 and not any(y for _, y in points)):
                continue
            thin = _thinned(points)
            series.append(
                {"run": run, "label": line.label, "points": thin, "averaged": len(thin) < len(points)}
            )
    return series


def _points(rows: Sequence[dict[str, float]], metric: str) -> list[Point]:
    return [[row["step"], row[metric]] for row in rows if _number(row.get(metric))]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most `most` points, each the mean of its neighbours, at the last one's step.

    >>> _thinned([[1, 0.0], [2, 1.0], [3, 5.0]], most=2)
    [[2, 0.5], [3, 5.0]]
    """
    width = -(-len(points) // most)
    bins = [points[i : i + width] for i in range(0, len(points), width)]
    return [[part[-1][0], _round(sum(y for _, y in part) / len(part))] for part in bins]


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def _rows(run: RunData) -> list[dict[str, float]]:
    """Return a run's metrics and times step by step, with what derives from them."""
    times: dict[int, dict[str, float]] = {}
    for row in run.timings:
        own = times.setdefault(row["step"], {})
        for name in ("rollout_s", "update_s", "consult_s", "evaluate_s"):
            if _number(row.get(name)):
                own[name] = own.get(name, 0.0) + row[name]
    rows = []
    for metrics in run.metrics:
        row = {**metrics, **times.pop(metrics["step"], {})}
        row.update(_derived(row, run))
        if not row.get("agent_cost"):
            row.pop("agent_cost", None)
        rows.append(row)
    return rows


def _derived(row: dict[str, Any], run: RunData) -> dict[str, float]:
    derived: dict[str, float] = {}
    counts = {o: row.get(f"outcomes/{o}", 0.0) for o in ConsultOutcome}
    if total := sum(counts.values()):
        derived |= {f"outcomes_share/{outcome}": count / total for outcome, count in counts.items()}
    norms = row.get("grad_norm_policy"), row.get("grad_norm_feedback")
    if norms[0] is not None and norms[1] is not None and norms[0] + norms[1] > 0:
        derived["grad_share_feedback"] = norms[1] / (norms[0] + norms[1])
    if run.settings and _number(row.get("credited_feedback_prob")):
        derived["feedback_weight_at_mean"] = weight(row["credited_feedback_prob"], run.settings, row["step"])
    return derived
