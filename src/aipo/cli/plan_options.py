"""`aipo plan`'s options, and the setting that they, a recipe and a measured run make together.

An option that was not given is None, so that a run's value, a recipe's or the default stands in for it, in
this order. What cannot be is a `ValueError` that names the option. Nothing is loaded before a plan is made:
the help is quick.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from math import isfinite, log
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from aipo.planning.hardware import GPUS, Cluster
from aipo.planning.model import find_model
from aipo.planning.setting import Setting
from aipo.planning.workload import Spread, Workload

if TYPE_CHECKING:
    from aipo.config.engines import EngineSettings
    from aipo.config.settings import Settings

PlanOptions = Mapping[str, Any]
NO_PLAN_OPTIONS: PlanOptions = {}
Changes = dict[str, Any]
T = TypeVar("T")
P95 = 1.6449
"""Deviations above the median below which 95 of 100 lie."""
SIZES = "1,2,4,8,16,32,64,128,256,512,1000"
_MACHINE, _WORK, _AGENTS, _UPDATE, _SHOWN = "Machine", "Rollouts", "Agents", "Update", "Shown"


def _option(
    name: str,
    panel: str,
    help_: str,
    field: str = "",
    *,
    kind: Any = None,
    default: Any = None,
    **limits: Any,
) -> tuple[inspect.Parameter, str]:
    """Return an option as a command's parameter, and the field of `Setting` whose value it replaces.

    With a field it has that field's type, unless `kind` says another one.
    """
    kind = kind or (_type_of(field) if field else str)
    flag = name.replace("_", "-")
    both = kind is bool and field and attrgetter(field)(Setting())
    option = typer.Option(
        f"--{flag}/--no-{flag}" if both else f"--{flag}", help=help_, rich_help_panel=panel, **limits
    )
    wanted: Any = kind if default is not None else kind | None
    annotation, place = Annotated[wanted, option], inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, place, annotation=annotation, default=default), field


def _type_of(field: str) -> Any:
    found: Any = Setting
    for name in field.split("."):
        found = get_type_hints(found)[name]
    return next(iter(get_args(found)), found)


OPTIONS = (
    _option("model", _MACHINE, "qwen2.5-7b and its sisters, or a folder with a config.json."),
    _option("gpu", _MACHINE, "a100 (80 GB), h100 or h200."),
    _option("gpus", _MACHINE, "All GPUs of the policy.", kind=int, min=1),
    _option("nodes", _MACHINE, "Nodes, in place of --gpus.", kind=int, min=1),
    _option("gpus_per_node", _MACHINE, "8 if not given.", kind=int, min=1),
    _option("tensor_parallel", _MACHINE, "GPUs of a rollout replica; without, as few as fit.",
            "training.tensor_parallel", min=1),
    _option("servers", _MACHINE, "Policy servers on GPUs of their own; without, the trainer's GPUs sample.",
            "servers", min=1),
    _option("max_sequences", _MACHINE, "Rollouts that a replica decodes at the same time.",
            "max_sequences", min=1),
    _option("like", _WORK, "Run folder that rates are taken from: consultations by agent, lengths, latency.",
            kind=Path),
    _option("prompts", _WORK, "Problems of a step.", "workload.prompts_per_step", min=1),
    _option("rollouts", _WORK, "Rollouts of a problem.", "workload.rollouts_per_prompt", min=1),
    _option("solo_fraction", _WORK, "Share that may not consult.", "workload.solo_fraction", min=0, max=1),
    _option("prompt_tokens", _WORK, "Mean.", "workload.prompt_tokens.mean", min=1),
    _option("response_tokens", _WORK, "Mean of what the policy writes, requests not counted.",
            "workload.response_tokens.mean", min=1),
    _option("response_spread", _WORK, "Deviation of its logarithm; 0: all alike.",
            "workload.response_tokens.sigma", min=0),
    _option("max_response_tokens", _WORK, "Limit, feedback included.", "workload.response_tokens.most",
            kind=int, min=1),
    _option("grade_s", _WORK, "Time to grade a rollout.", "workload.grade_s", min=0),
    _option("grade_workers", _WORK, "Rollouts graded at the same time.", "workload.grade_workers", min=1),
    _option("consultations", _AGENTS,
            "Per consulting rollout: a number, or by agent: verify=0.5,knowledge=1."),
    _option("max_consultations", _AGENTS, "Per rollout.", "workload.max_consultations", min=0),
    _option("request_tokens", _AGENTS, "Mean, tags included.", "workload.request_tokens", min=0),
    _option("feedback_tokens", _AGENTS, "Mean.", "workload.feedback_tokens.mean", min=0),
    _option("agent_latency_s", _AGENTS, "Median until an agent writes its first token.", kind=float, min=0),
    _option("agent_latency_p95_s", _AGENTS, "Its tail: 95 of 100 take no longer.", kind=float, min=0),
    _option("agent_timeout_s", _AGENTS, "No latency is longer.", "workload.latency_s.most", min=0),
    _option("agent_servers", _AGENTS, "Servers of agents; 2 if not given.", "service.servers", min=1),
    _option("agent_concurrency", _AGENTS, "Requests that a server answers at the same time.",
            "service.concurrency", min=1),
    _option("agent_tokens_s", _AGENTS, "Tokens per second of a full server, all answers together.",
            "service.tokens_s", min=0),
    _option("agent_gpus", _AGENTS, "GPUs of a server, for the cost.", "service.gpus_per_server", min=0),
    _option("minibatches", _UPDATE, "Optimiser steps of a batch.", "training.minibatches", min=1),
    _option("microbatch_tokens", _UPDATE, "Tokens of a forward pass on a GPU.",
            "training.microbatch_tokens", min=1),
    _option("shard_gpus", _UPDATE, "GPUs that share one copy of weights and optimiser; without, all.",
            "training.shard_gpus", min=1),
    _option("checkpointing", _UPDATE, "Compute activations again in the backward pass.",
            "training.gradient_checkpointing"),
    _option("old_log_probs", _UPDATE, "One more forward pass for old log-probabilities.",
            "training.recompute_log_probs"),
    _option("chunked_logits", _UPDATE, "Hold logits a chunk at a time, as our own trainer does.",
            "training.chunked_logits"),
    _option("offload", _UPDATE, "Trainer's state to the host while the policy samples.", "training.offload"),
    _option("mfu", _UPDATE, "Share of peak FLOP/s that the update reaches.",
            "efficiency.update", min=0.01, max=1),
    _option("steps", _UPDATE, "Of the run, for its cost.", "steps", min=1),
    _option("sizes", _SHOWN, "Numbers of GPUs in the table of scaling; empty: no table.", default=SIZES),
    _option("seed", _SHOWN, "Of the rollouts that are simulated.", "seed", default=0, min=0),
    _option("json", _SHOWN, "Print JSON in place of tables.", kind=bool, default=False),
)  # fmt: skip


def setting_of(recipe: Path | None, overrides: Sequence[str], options: PlanOptions) -> Setting:
    """Return what is to be planned. Raises `ValueError`."""
    from aipo.config.loader import load_settings
    from aipo.config.settings import CHECKPOINTED_PARAMETERS
    from aipo.planning.measured import measured

    given = {name: value for name, value in options.items() if value is not None}
    settings = load_settings(recipe, overrides) if recipe is not None else None
    base = Setting() if settings is None else _of_recipe(settings)
    if "like" in given:
        base = replace(base, workload=measured(given["like"], base.workload))
    changes: Changes = {"cluster": _cluster(given), "workload": {}}
    if "model" in given:
        changes["model"] = find_model(given["model"])
    elif settings is not None:
        changes["model"] = find_model(settings.policy.model, "the recipe's policy.model")
    if settings is not None and settings.train.gradient_checkpointing == "auto":
        large = changes["model"].parameters >= CHECKPOINTED_PARAMETERS
        changes["training"] = {"gradient_checkpointing": large}
    if "consultations" in given:
        rates = consultations_of(given["consultations"], base.workload.consultations)
        changes["workload"]["consultations"] = rates
    for parameter, field in OPTIONS:
        if field and parameter.name in given:
            *path, name = field.split(".")
            table = changes
            for part in path:
                table = table.setdefault(part, {})
            table[name] = given[parameter.name]
    made = _changed(base, changes)
    response = made.workload.response_tokens
    if response.mean > response.most:
        raise ValueError(
            f"--response-tokens {response.mean:g} is more than --max-response-tokens {response.most:g}; "
            "lower the one or raise the other"
        )
    latency = _latency(made.workload.latency_s, given)
    return replace(made, workload=replace(made.workload, latency_s=latency))


def _changed(value: T, changes: Changes) -> T:
    """Return a dataclass with those fields changed; a table for a dataclass changes that one's fields."""
    new = {
        name: _changed(old, change) if isinstance(change, dict) and is_dataclass(old) else change
        for name, change in changes.items()
        for old in (getattr(value, name),)
    }
    return replace(value, **new)  # type: ignore[type-var]


def _of_recipe(settings: "Settings") -> Setting:
    rollout, consult, train, base = settings.rollout, settings.consult, settings.train, Workload()
    enabled = list(settings.agents.names)
    workload = {
        "prompts_per_step": train.prompts_per_step,
        "rollouts_per_prompt": max(1, rollout.rollouts_per_prompt),
        "solo_fraction": rollout.solo_fraction if enabled else 1.0,
        "prompt_tokens": _within(base.prompt_tokens, rollout.max_prompt_tokens),
        "response_tokens": _within(base.response_tokens, rollout.max_response_tokens),
        "feedback_tokens": _within(base.feedback_tokens, consult.max_feedback_tokens),
        "consultations": {name: min(0.5, consult.max_consultations / len(enabled)) for name in enabled},
        "max_consultations": consult.max_consultations,
        "latency_s": {"most": settings.agents.timeout_s},
        "grade_workers": settings.task.grade_workers,
    }
    training = {
        "minibatches": train.minibatches_per_step,
        "microbatch_tokens": train.microbatch_tokens,
    }
    if train.gradient_checkpointing != "auto":
        training["gradient_checkpointing"] = train.gradient_checkpointing
    changes = {
        "workload": workload,
        "training": training,
        "max_sequences": rollout.slots,
        "servers": _servers(settings.engine),
        "steps": train.steps,
    }
    return _changed(Setting(), changes)


def _servers(engine: "EngineSettings") -> int | None:
    """Return how many policy servers a recipe names; None where it samples in the trainer's process."""
    from aipo.assembly.engines import ENGINES

    if engine.name == type(engine)().name or ENGINES[engine.name].in_process:
        return None
    return engine.servers if engine.start else len(engine.urls)


def _within(spread: Spread, most: int) -> Spread:
    """Return the assumed spread below a recipe's limit: half of it where the usual mean is above that."""
    return Spread(min(spread.mean, most / 2), spread.sigma, most)


def _cluster(given: PlanOptions) -> Cluster:
    name = given.get("gpu", "h100").lower().removesuffix("-80g")
    if name not in GPUS:
        raise ValueError(f"--gpu {given['gpu']!r} is none of {', '.join(GPUS)}")
    nodes, per_node = given.get("nodes"), given.get("gpus_per_node", 8)
    gpus = given.get("gpus", nodes * per_node if nodes else 8)
    if nodes and gpus != nodes * per_node:
        raise ValueError(
            f"--gpus {gpus} and --nodes {nodes} contradict each other at {per_node} GPUs a node "
            "(--gpus-per-node); leave one out"
        )
    return Cluster(GPUS[name], gpus, per_node)


def _latency(spread: Spread, given: PlanOptions) -> Spread:
    median, late = given.get("agent_latency_s"), given.get("agent_latency_p95_s")
    if median is None and late is None:
        return spread
    if median is None:
        raise ValueError(f"--agent-latency-p95-s {late:g} needs --agent-latency-s, the median")
    if late is None:
        return Spread.around(median, spread.sigma, spread.most)
    if not 0 < median <= late:
        raise ValueError(
            f"--agent-latency-p95-s {late:g} is not above --agent-latency-s {median:g}, the median (above 0)"
        )
    return Spread.around(median, log(late / median) / P95, spread.most)


def sizes_of(text: str) -> tuple[int, ...]:
    """Return the numbers of `--sizes`.

    >>> sizes_of("8, 64")
    (8, 64)
    >>> sizes_of("8,many")
    Traceback (most recent call last):
    ...
    ValueError: --sizes 'many': numbers of GPUs with commas between are needed, for example 8,64,512
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not part.isdecimal() or not int(part):
            raise ValueError(
                f"--sizes {part!r}: numbers of GPUs with commas between are needed, for example 8,64,512"
            )
    return tuple(sorted(set(map(int, parts))))


def consultations_of(text: str, known: Mapping[str, float]) -> dict[str, float]:
    """Return the rates of `--consultations`; a plain number is shared equally by the known agents.

    >>> consultations_of("1.5", {"verify": 1, "knowledge": 1, "reasoning": 1})
    {'verify': 0.5, 'knowledge': 0.5, 'reasoning': 0.5}
    >>> consultations_of("verify=1", {})
    {'verify': 1.0}
    >>> consultations_of("v=1,v=2", {})
    Traceback (most recent call last):
    ...
    ValueError: --consultations 'v=1,v=2': a number, or one for each agent as in verify=0.5,knowledge=1
    """
    try:
        if "=" in text:
            pairs = [(name.strip(), float(rate)) for name, rate in (p.split("=") for p in text.split(","))]
        else:
            names = list(known) or ["agent"]
            pairs = [(name, float(text) / len(names)) for name in names]
        rates = dict(pairs)
        if len(rates) == len(pairs) and all(map(isfinite, rates.values())):
            return rates
    except ValueError:
        pass
    raise ValueError(
        f"--consultations {text!r}: a number, or one for each agent as in verify=0.5,knowledge=1"
    )
