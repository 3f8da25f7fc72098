"""What a run measured that a plan needs: how often it consulted, how long rollouts and answers were.

Owns the reading of metrics.jsonl, timings.jsonl and rollouts.jsonl of a run's folder. Must not write or know
hardware: a run's seconds of computing say nothing about other machines.
Invariant: rates come from the run, sizes never: how many rollouts a step has stays as it was asked for.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from aipo.planning.workload import Spread, Workload

METRICS, TIMINGS, ROLLOUTS = "metrics.jsonl", "timings.jsonl", "rollouts.jsonl"
ASKED = ("answered", "timeout", "agent_error", "empty")
"""Outcomes of a request that an agent saw."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts of a run's recorded rollouts, one entry for each rollout or feedback."""

    prompt: tuple[int, ...]
    policy: tuple[int, ...]
    feedback: tuple[int, ...]
    consulting_share: float
    """Of rollouts that might consult."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A run's rates."""

    steps: int
    consultations: Mapping[str, float]
    """By agent, per consulting rollout."""
    latency_s: float | None
    """Mean of a consultation, queue and cache included; None: nobody was asked."""
    lengths: Lengths | None
    """None: no rollouts were recorded."""

    def apply(self, workload: Workload) -> Workload:
        """Return the workload with this run's rates in the place of assumed ones."""
        consultations = {name: rate for name, rate in self.consultations.items() if rate > 0}
        changes: dict[str, Any] = {
            "consultations": consultations,
            "max_consultations": max(workload.max_consultations, -int(-sum(consultations.values()) // 1)),
        }
        if self.latency_s is not None:
            spread = workload.latency_s
            changes["latency_s"] = replace(spread, mean=self.latency_s)
        if self.lengths is not None:
            changes |= {
                "prompt_tokens": spread_of(self.lengths.prompt),
                "response_tokens": _with_room(spread_of(self.lengths.policy), self.lengths),
                "request_tokens": 0.0,  # part of what the policy wrote
                "solo_fraction": 1.0 - self.lengths.consulting_share,
            }
            if self.lengths.feedback:
                changes["feedback_tokens"] = spread_of(self.lengths.feedback)
        return replace(workload, **changes)


def measured(folder: Path) -> Measured:
    """Return the rates of a run's folder, all its steps together. Raises `ValueError` for another folder."""
    metrics = list(_records(folder / METRICS))
    if not metrics:
        raise ValueError(
            f"--like {str(folder)!r}: no {METRICS} with a step in it; name a run's folder (run.output)"
        )
    names = {
        key.removeprefix("consultations/") for line in metrics for key in line if "consultations/" in key
    }
    rates = {
        name: fmean(float(line.get(f"consultations/{name}", 0.0)) for line in metrics)
        for name in sorted(names)
    }
    asked = {line["step"]: sum(float(line.get(f"outcomes/{o}", 0.0)) for o in ASKED) for line in metrics}
    waits = {line["step"]: line["consult_s"] for line in _records(folder / TIMINGS) if "consult_s" in line}
    both = [step for step in waits if asked.get(step)]
    latency = sum(waits[s] for s in both) / sum(asked[s] for s in both) if both else None
    return Measured(len(metrics), rates, latency, _lengths(folder / ROLLOUTS))


def spread_of(values: Sequence[int]) -> Spread:
    """Return the log-normal that has these values' mean and logarithmic deviation, cut at their largest."""
    above = [value for value in values if value > 0]
    sigma = pstdev([log(value) for value in above]) if len(above) > 1 else 0.0
    return Spread(fmean(values), sigma, max(values))


def _with_room(policy: Spread, lengths: Lengths) -> Spread:
    """Return the policy's tokens with a limit that leaves room for feedback, as the run's own limit did."""
    return replace(policy, most=policy.most + (max(lengths.feedback) if lengths.feedback else 0))


def _lengths(path: Path) -> Lengths | None:
    prompt, policy, feedback = [], [], []
    conditions: Counter[str] = Counter()
    for record in _records(path):
        if not isinstance(record.get("segments"), list) or not record["segments"]:
            continue  # a rollout that could not be made
        tokens: Counter[str] = Counter()
        for segment in record["segments"]:
            size = len(segment["ids"])
            tokens[segment["source"]] += size
            if segment["source"] in ("feedback", "scaffold"):
                feedback.append(size)
        prompt.append(tokens["prompt"])
        policy.append(tokens["policy"])
        conditions[str(record.get("condition"))] += 1
    if not policy:
        return None
    share = conditions["consulting"] / sum(conditions.values())
    return Lengths(tuple(prompt), tuple(policy), tuple(feedback), share)


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
