"""The learning curves of a report: which there are, and their points.

A value that was not recorded is no point, and a NaN is none either; where steps are averaged, the
panel's note says so.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

from aipo.report.folders import RunData
from aipo.report.weights import weight

MOST_POINTS = 250
SHARE, SECONDS, BY_THE_CLOCK = "share", "s", "Seconds by the clock."
TIMES = ("rollout_s", "update_s", "consult_s", "evaluate_s")
REWARDS = {"reward_solo": "solo", "reward_consulting": "consulting"}
Point = list[float]
"""x, y; with an interval also its low and high end."""


class Panel(NamedTuple):
    """One chart."""

    title: str
    lines: Mapping[str, str]
    """What each metric is called; `name/*` stands for every metric that begins with `name/`."""
    note: str = ""
    unit: str = ""


PANELS: Mapping[str, Sequence[Panel]] = {
    "Rollouts": (
        Panel("Reward", REWARDS, "Share of graded training rollouts that are correct.", SHARE),
        Panel(
            "Reward of your own",
            {"graded_reward_solo": "solo", "graded_reward_consulting": "consulting", "graded_reward/*": ""},
            "Mean over graded training rollouts of task.reward, and of each of its functions.",
        ),
        Panel("Consultations per rollout", {"consultations/*": ""}, "By agent."),
        Panel(
            "Asked by itself, and elicited",
            {
                "own_consulting_share": "asks by itself",
                "elicited_share": "the system opened a request",
                "elicit_share": "in which it was to",
            },
            "Shares of the consulting rollouts; the first is of those in which the system was not to.",
            SHARE,
        ),
        Panel(
            "How consultations ended",
            {"outcomes_share/*": ""},
            "Share of a step's consultations; outcomes that never came are left out.",
            SHARE,
        ),
        Panel("Length", {"response_tokens": "response tokens"}, "Mean of a step's rollouts, feedback too."),
    ),
    "Learning from feedback": (
        Panel(
            "Probability of feedback under the policy",
            {"feedback_prob": "all feedback", "credited_feedback_prob": "credited feedback"},
            "Mean over the FEEDBACK tokens of a step's first mini-batch, by the policy that sampled.",
            SHARE,
        ),
        Panel(
            "Weight of a feedback token",
            {"feedback_weight_at_mean": "W at the mean probability"},
            "The coefficient's weight W at the mean probability of credited feedback; the mean of W "
            "over tokens is not recorded.",
        ),
        Panel(
            "Gradient norm by source",
            {"grad_norm_policy": "policy", "grad_norm_feedback": "feedback"},
            "Of the first mini-batch, before clipping, at the steps where it was measured.",
        ),
        Panel(
            "Feedback's share of the gradient",
            {"grad_share_feedback": "feedback"},
            "Its norm over the sum of both norms.",
            SHARE,
        ),
    ),
    "Health of the update": (
        Panel("Clipped tokens", {"clip_fraction": "clip fraction"}, "Of POLICY tokens.", SHARE),
        Panel("Entropy", {"entropy": "entropy"}, "Of the policy at its own tokens, in nats."),
        Panel(
            "Distance from the start",
            {"kl_reference": "KL"},
            "KL(policy ‖ starting policy) at the policy's own tokens, in nats, with algorithm.kl_weight.",
        ),
        Panel(
            "Sampler and trainer apart",
            {"mismatch_mean": "mean", "mismatch_max": "largest"},
            "|log p by the trainer − log p by the sampler| of POLICY tokens before the update.",
        ),
        Panel("Gradient norm", {"grad_norm": "norm"}, "Mean over a step's updates, before clipping."),
        Panel(
            "Groups that teach",
            {
                "zero_variance_share": "without variance",
                "truncated_share": "truncated rollouts",
                "ungraded_share": "ungraded rollouts",
            },
            "Shares of a step's groups or rollouts.",
            SHARE,
        ),
    ),
    "Time and money": (
        Panel("Time of a step", {"rollout_s": "rollouts", "update_s": "update"}, BY_THE_CLOCK, SECONDS),
        Panel("Time of an evaluation", {"evaluate_s": "all modes"}, BY_THE_CLOCK, SECONDS),
        Panel(
            "Waiting for agents",
            {"consult_s": "all rollouts together"},
            "Sum over a step's consultations; they wait at the same time, so it may exceed the step.",
            SECONDS,
        ),
        Panel(
            "Spent on agents",
            {"agent_cost": "cost of the step", "judge_cost": "of its judgements"},
            "In the currency of agents.price_*, as if no reply had come from a cache.",
        ),
    ),
}


def panels(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Return the panels that some run has values for; one line for each run and metric."""
    rows = [_rows(run) for run in runs]
    known = list(dict.fromkeys(name for steps in rows for row in steps for name in row))
    result = []
    for group, planned in PANELS.items():
        for panel in _expanded(planned, known):
            for part in [panel] if len(runs) == 1 else _singles(panel):
                if series := _series(part, rows):
                    result.append(_panel(part, group, series))
    return result


def _expanded(planned: Iterable[Panel], known: Sequence[str]) -> Iterator[Panel]:
    """Yield the panels with every metric named; rewards also stratum by stratum, where there are several."""
    for panel in planned:
        lines: dict[str, str] = {}
        for name, label in panel.lines.items():
            prefix, every, _ = name.partition("*")
            found = [metric for metric in known if metric.startswith(prefix)] if every else [name]
            lines |= {metric: label or metric.removeprefix(prefix).replace("_", " ") for metric in found}
        yield panel._replace(lines=lines)
        if panel.lines is REWARDS:
            strata = dict.fromkeys(m.partition("/")[2] for m in known if m.partition("/")[0] in REWARDS)
            for stratum in [s for s in strata if s] if len(strata) > 2 else []:
                own = {f"{name}/{stratum}": label for name, label in REWARDS.items()}
                yield Panel(
                    f"Reward on {stratum} problems", own, "Of the training rollouts of this stratum.", SHARE
                )


def _singles(panel: Panel) -> list[Panel]:
    """Return a panel for each metric, on which runs are compared."""
    if len(panel.lines) == 1:
        return [panel]
    return [
        panel._replace(title=f"{panel.title}: {label}", lines={m: label}) for m, label in panel.lines.items()
    ]


def _panel(panel: Panel, group: str, series: list[dict[str, Any]]) -> dict[str, Any]:
    averaged = any(s.pop("averaged") for s in series)
    note = panel.note + (" Means over neighbouring steps." if averaged else "")
    about = {"title": panel.title, "note": note, "unit": panel.unit, "group": group}
    return {**about, "legend": len(panel.lines) > 1, "x": "step", "series": series}


def _series(panel: Panel, rows: Sequence[Sequence[dict[str, float]]]) -> list[dict[str, Any]]:
    series = []
    for run, steps in enumerate(rows):
        for metric, label in panel.lines.items():
            points = [[row["step"], row[metric]] for row in steps if _number(row.get(metric))]
            # A line that never leaves 0 says nothing beside others.
            if not points or (len(panel.lines) > 2 and not any(y for _, y in points)):
                continue
            thin = _thinned(points)
            series.append({"run": run, "label": label, "points": thin, "averaged": len(thin) < len(points)})
    return series


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most `most` points, each the mean of its neighbours, at the last one's step.

    >>> _thinned([[1, 0.0], [2, 1.0], [3, 5.0]], most=2)
    [[2, 0.5], [3, 5.0]]
    """
    width = -(-len(points) // most)
    bins = [points[i : i + width] for i in range(0, len(points), width)]
    return [[part[-1][0], float(f"{sum(y for _, y in part) / len(part):.5g}")] for part in bins]


def _rows(run: RunData) -> list[dict[str, float]]:
    """Return a run's metrics and times step by step, with what derives from them."""
    times: dict[int, dict[str, float]] = {}
    for row in run.timings:
        own = times.setdefault(row["step"], {})
        for name in TIMES:
            if _number(row.get(name)):
                own[name] = own.get(name, 0.0) + row[name]
    rows = []
    for metrics in run.metrics:
        row = {**metrics, **times.get(metrics["step"], {}), **_derived(metrics, run)}
        rows.append({name: value for name, value in row.items() if not name.endswith("_cost") or value})
    return rows


def _derived(row: dict[str, Any], run: RunData) -> dict[str, float]:
    counts = {name: count for name, count in row.items() if name.startswith("outcomes/")}
    total = sum(counts.values())
    derived = {f"outcomes_share/{name.partition('/')[2]}": n / total for name, n in counts.items() if total}
    policy, feedback = row.get("grad_norm_policy"), row.get("grad_norm_feedback")
    if policy is not None and feedback is not None and policy + feedback > 0:
        derived["grad_share_feedback"] = feedback / (policy + feedback)
    if run.settings and _number(row.get("credited_feedback_prob")):
        derived["feedback_weight_at_mean"] = weight(row["credited_feedback_prob"], run.settings, row["step"])
    return derived
