"""How a step scales from one GPU to a thousand, and what it stops at.

Owns the table of sizes and the reason that stands beside each. Must not print.
Invariant: the batch is fixed, so efficiency is (time x GPUs) of the smallest size that fits over the same
here; each lost GPU-second is some row's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aipo.planning.step import Setting, Step, plan_step

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
STOP = 0.5
"""Below this efficiency more GPUs are mostly wasted."""


@dataclass(frozen=True, slots=True)
class Size:
    """One row: a planned step, or why there is none."""

    gpus: int
    step: Step | None
    problem: str = ""
    efficiency: float = 0.0
    limit: str = ""
    """Which part of the step shrinks least, in words; empty at the smallest size."""


def scaling(setting: Setting, sizes: Sequence[int] = SIZES, *, search: bool = True) -> list[Size]:
    """Plan the same batch on so many GPUs each."""
    rows: list[Size] = []
    first: Step | None = None
    for gpus in sizes:
        cluster = replace(setting.cluster, gpus=gpus)
        try:
            step = plan_step(replace(setting, cluster=cluster), search=search)
        except ValueError as error:
            rows.append(Size(gpus, None, str(error)))
            continue
        if first is None:
            first = step
            rows.append(Size(gpus, step, efficiency=1.0))
            continue
        share = first.setting.cluster.gpus / gpus
        efficiency = first.total_s * share / step.total_s
        rows.append(Size(gpus, step, "", efficiency, _limit(first, step, share)))
    return rows


def stops_at(rows: Sequence[Size]) -> Size | None:
    """Return the smallest size of less than half the efficiency; None: none is."""
    return next((row for row in rows if row.step and row.efficiency < STOP), None)


def _parts(step: Step) -> dict[str, float]:
    """Return the step's seconds by what keeps them from shrinking."""
    rows = step.rows
    tail = min(step.instant.tail_s, rows["decode"])
    return {
        "decoding at small batches": rows["decode"] - tail,
        "long tail of rollouts": tail,
        "prefill": rows["prefill"],
        "agents": rows["consult"],
        "grading": rows["grade"],
        "longest rollout of a mini-batch": step.update.imbalance_s,
        "update": rows["update"] - step.update.imbalance_s + rows["old_log_probs"],
        "all-gather": rows["gather"],
        "weight sync": rows["weight_sync"],
    }


def _limit(first: Step, step: Step, share: float) -> str:
    ideal, real = _parts(first), _parts(step)
    excess = {name: real[name] - ideal[name] * share for name in real}
    worst = max(excess, key=lambda name: excess[name])
    return f"{worst} ({excess[worst] / step.total_s:.0%} of the step)"
