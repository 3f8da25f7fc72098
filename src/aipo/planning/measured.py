"""What a run measured that a plan needs: how often it consulted, how long rollouts and answers were.

Rates come from the run's files, sizes never: the number of rollouts in a step stays as it was asked for. Its
seconds of computing say nothing about other machines and are not read.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil, log
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from aipo.planning.workload import Spread, Workload

METRICS, TIMINGS, ROLLOUTS = "metrics.jsonl", "timings.jsonl", "rollouts.jsonl"
ASKED = ("answered", "timeout", "agent_error", "empty")
"""Outcomes of a request that an agent saw."""


def measured(folder: Path, workload: Workload) -> Workload:
    """Return the workload with a run's rates in the place of assumed ones, all its steps together.

    Latency is the mean of a consultation, queue and cache included. Raises `ValueError` for a folder that is
    no run's.
    """
    metrics = list(_records(folder / METRICS))
    if not metrics:
        raise ValueError(
            f"--like {str(folder)!r}: no {METRICS} with a step in it; name a run's folder (run.output)"
        )
    keys = sorted({key for line in metrics for key in line if "consultations/" in key})
    means = {key: fmean(float(line.get(key, 0.0)) for line in metrics) for key in keys}
    rates = {key.removeprefix("consultations/"): rate for key, rate in means.items() if rate > 0}
    most = max(workload.max_consultations, ceil(sum(rates.values())))
    asked = {line["step"]: sum(float(line.get(f"outcomes/{o}", 0.0)) for o in ASKED) for line in metrics}
    waits = {line["step"]: line["consult_s"] for line in _records(folder / TIMINGS) if "consult_s" in line}
    both = [step for step in waits if asked.get(step)]
    latency = workload.latency_s
    if both:
        latency = replace(latency, mean=sum(waits[s] for s in both) / sum(asked[s] for s in both))
    return replace(
        workload,
        consultations=rates,
        max_consultations=most,
        latency_s=latency,
        **_lengths(folder / ROLLOUTS),
    )


def spread_of(values: Sequence[int]) -> Spread:
    """Return the log-normal that has these values' mean and logarithmic deviation, cut at their largest."""
    above = [value for value in values if value > 0]
    sigma = pstdev([log(value) for value in above]) if len(above) > 1 else 0.0
    return Spread(fmean(values), sigma, max(values))


def _lengths(path: Path) -> dict[str, Any]:
    """Return what a workload can know from recorded rollouts; nothing where none were recorded."""
    prompt: list[int] = []
    policy: list[int] = []
    feedback: list[int] = []
    consulting = 0
    for record in _records(path):
        if not isinstance(record.get("segments"), list) or not record["segments"]:
            continue  # a rollout that could not be made
        sizes = [(segment["source"], len(segment["ids"])) for segment in record["segments"]]
        prompt.append(sum(size for source, size in sizes if source == "prompt"))
        policy.append(sum(size for source, size in sizes if source == "policy"))
        feedback += [size for source, size in sizes if source in ("feedback", "scaffold")]
        consulting += record.get("condition") == "consulting"
    if not policy:
        return {}
    response = spread_of(policy)
    changes = {
        "prompt_tokens": spread_of(prompt),
        # With room for feedback, as the run's own limit had.
        "response_tokens": replace(response, most=response.most + max(feedback, default=0)),
        "request_tokens": 0.0,  # part of what the policy wrote
        "solo_fraction": 1.0 - consulting / len(policy),
    }
    return changes | ({"feedback_tokens": spread_of(feedback)} if feedback else {})


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a file's records; a line that a crash tore is left out. Degenerate case: no file, none."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield record
