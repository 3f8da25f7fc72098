"""`aipo plan`: what a step would cost on GPUs, before any is rented.

What is printed and what `--json` says come from the same object, which `planning/` computes.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from aipo.cli.console import console, plain_errors
from aipo.cli.plan_options import PlanOptions, setting_of, sizes_of
from aipo.planning.step import Size, Step, plan_step, scaling, stops_at
from aipo.training.events import duration

PARTS = {
    "decode": "decode, long tail included",
    "prefill": "prefill of prompts and feedback",
    "consult": "waiting for agents that decoding does not hide",
    "grade": "grading after the last rollout",
    "old_log_probs": "old log-probabilities (forward)",
    "update": "update (forward, backward, optimiser)",
    "gather": "all-gather that computing does not hide",
    "weight_sync": "weights to the engine",
}
_MEMORY = {
    "weights": "weights, float32 (shard)",
    "gradients": "gradients, float32 (shard)",
    "optimiser": "optimiser, float32 (shard)",
    "gathered": "gathered layers, bfloat16",
    "activations": "activations of a micro-batch",
    "logits": "logits of a micro-batch",
    "reserved": "reserved",
}


def plan(recipe: Path | None, overrides: Sequence[str], options: PlanOptions) -> None:
    """Plan and print."""
    with plain_errors():
        setting = setting_of(recipe, overrides, options)
        sizes = sizes_of(options["sizes"])
        step = plan_step(setting)
        rows = scaling(setting, sizes) if sizes else []
    if options["json"]:
        print(json.dumps(record(step, rows), indent=1))
        return
    console.print(headline(step))
    console.print(time_table(step))
    console.print(memory_table(step))
    console.print(agents_text(step))
    if rows:
        console.print(scaling_table(rows))
        console.print(stop_text(rows))
    console.print("Formulas and assumptions: docs/planning.md. Nothing here was measured on a GPU.")


def record(step: Step, rows: Sequence[Size]) -> dict[str, Any]:
    """Return the plan as plain values; seconds, bytes, GPU-hours."""
    return {
        "setting": asdict(step.setting),
        "parameters": step.setting.model.parameters,
        "replicas": step.replicas,
        "tensor_parallel": step.tensor_parallel,
        "step_s": step.total_s,
        "time_s": step.rows,
        "memory_bytes": step.memory.as_dict(),
        "agents": asdict(step.agents),
        "rollouts": {k: v for k, v in asdict(step.phase).items() if k != "ends_s"},
        "update": asdict(step.update),
        "gpu_hours_per_step": step.gpu_hours,
        "gpu_hours_per_run": step.gpu_hours * step.setting.steps,
        "scaling": [
            {
                "gpus": row.gpus,
                "step_s": row.step.total_s,
                "time_s": row.step.rows,
                "efficiency": row.efficiency,
                "gpu_hours_per_step": row.step.gpu_hours,
                "servers_needed": row.step.agents.servers_needed,
                "servers_useful": row.step.agents.servers_useful,
                "limit": row.limit,
            }
            if row.step
            else {"gpus": row.gpus, "problem": row.problem}
            for row in rows
        ],
    }


def headline(step: Step) -> str:
    """Return what is planned, in a line."""
    s, w = step.setting, step.setting.workload
    machine = f"{s.cluster.gpus} x {s.cluster.gpu.name}, nodes: {s.cluster.nodes}"
    layout = f"{step.replicas} rollout replicas of {step.tensor_parallel} GPU"
    if s.servers:
        layout = f"{s.servers} policy servers of {step.tensor_parallel} GPU beside them"
    return (
        f"{s.model.name}, {_count(s.model.parameters)} parameters; {machine}; {layout}; "
        f"{w.prompts_per_step} x {w.rollouts_per_prompt} rollouts a step, "
        f"{step.trained_tokens / 1e6:.1f} M tokens"
    )


def _count(number: float) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e8 else f"{number / 1e6:.2f} M"


def time_table(step: Step) -> Table:
    """Return where the time of a step goes."""
    table = Table("where the time goes", "seconds", "share")
    for name, seconds in step.rows.items():
        table.add_row(PARTS[name], f"{seconds:.1f}", f"{seconds / step.total_s:.1%}")
    table.add_section()
    table.add_row("a step", f"{step.total_s:.1f}", duration(step.total_s))
    steps = step.setting.steps
    table.add_row(f"GPU-hours a step, {step.gpus} GPUs, agents' included", f"{step.gpu_hours:.1f}", "")
    table.add_row(
        f"GPU-hours of {steps} steps", f"{step.gpu_hours * steps:.0f}", duration(step.total_s * steps)
    )
    return table


def memory_table(step: Step) -> Table:
    """Return what a GPU holds."""
    m, parts = step.memory, step.memory.as_dict()
    table = Table("memory of a GPU", "GB")
    for name, words in _MEMORY.items():
        table.add_row(words, f"{parts[name] / 1e9:.1f}")
    table.add_section()
    table.add_row("while updating", f"{m.update / 1e9:.1f}")
    table.add_section()
    table.add_row("trainer's state that stays while sampling", f"{m.rollout_resident / 1e9:.1f}")
    table.add_row("engine's weights, bfloat16", f"{m.rollout_weights / 1e9:.1f}")
    room = m.rollout_cache / step.setting.model.kv_bytes_per_token * step.tensor_parallel
    table.add_row(f"key-value cache ({room / 1e3:.0f} k tokens a replica)", f"{m.rollout_cache / 1e9:.1f}")
    table.add_section()
    table.add_row("usable", f"{m.usable / 1e9:.1f}")
    return table


def agents_text(step: Step) -> str:
    """Return what the agents' servers do to the step, in sentences."""
    a, phase, service = step.agents, step.phase, step.setting.service
    if not phase.consultations:
        return "agents: nobody is consulted"
    text = (
        f"agents: {phase.consultations} consultations a step, "
        f"{phase.waited_s / phase.consultations:.1f} s each, of which "
        f"{phase.queued_s / phase.consultations:.1f} s in the queue of {service.servers} servers with "
        f"{service.concurrency} seats each; {a.seats_asked:.0f} seats are asked for on average. Replicas "
        f"decode others for {phase.hidden_s:.0f} s while some wait; {a.exposed_s:.1f} s are exposed."
    )
    if a.servers_needed is not None:
        return (
            f"{text}\nServers that keep the policy busy (exposed below 5 % of decoding): {a.servers_needed}"
        )
    return (
        f"{text}\nNo number of servers brings exposed time below 5 % of decoding: their own latency "
        f"costs {a.exposed_unlimited_s:.1f} s without any queue. Beyond {a.servers_useful} servers hardly "
        "anything is won"
    )


def scaling_table(rows: Sequence[Size]) -> Table:
    """Return the same batch on more and more GPUs."""
    parts = ("decode", "consult", "update")
    table = Table("GPUs", "step s", *parts, "other", "efficiency", "agent servers", "what shrinks least")
    for row in rows:
        if row.step is None:
            table.add_row(str(row.gpus), "does not fit", *[""] * 6, row.problem.split(": ", 1)[-1])
            continue
        shown = [row.step.rows[name] for name in parts]
        agents = row.step.agents
        needed, useful = agents.servers_needed, agents.servers_useful
        servers = f"{useful} (latency stays)" if needed is None else str(needed)
        seconds = (f"{each:.1f}" for each in (row.step.total_s, *shown, row.step.total_s - sum(shown)))
        table.add_row(str(row.gpus), *seconds, f"{row.efficiency:.0%}", servers, row.limit)
    return table


def stop_text(rows: Sequence[Size]) -> str:
    """Return where the fixed batch stops scaling, and why."""
    stop = stops_at(rows)
    if stop is None:
        return "Efficiency stays above 50 % at every size shown."
    return f"Efficiency falls below 50 % at {stop.gpus} GPUs; what shrinks least there: {stop.limit}."
