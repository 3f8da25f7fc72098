"""From the command line to a planning setting: defaults, then the recipe, then a measured run, then options.

Owns that order. Must not plan or print. Invariant: what an option says holds, whatever recipe or run say;
what cannot be is a `ValueError` that names the option.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite, log
from pathlib import Path
from typing import Any

from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.planning.agents import AgentService
from aipo.planning.hardware import GPUS, Cluster, Efficiency
from aipo.planning.measured import measured
from aipo.planning.memory import Training
from aipo.planning.model import find_model
from aipo.planning.options import PlanOptions
from aipo.planning.step import Setting
from aipo.planning.workload import Spread, Workload

P95 = 1.6449
"""Deviations above the median below which 95 of 100 lie."""


def setting_of(recipe: Path | None, overrides: Sequence[str], options: PlanOptions) -> Setting:
    """Return what is to be planned. Raises `ValueError`."""
    settings = load_settings(recipe, overrides) if recipe is not None else None
    base = Setting() if settings is None else _of_recipe(settings)
    workload = base.workload
    if options.like is not None:
        workload = measured(options.like).apply(workload)
    model = base.model
    if options.model is not None:
        model = find_model(options.model)
    elif settings is not None:
        model = find_model(settings.policy.model, "the recipe's policy.model")
    return replace(
        base,
        model=model,
        cluster=_cluster(options),
        workload=_workload(workload, options),
        service=_given(
            AgentService(),
            servers=options.agent_servers,
            concurrency=options.agent_concurrency,
            tokens_s=options.agent_tokens_s,
            gpus_per_server=options.agent_gpus,
        ),
        training=_given(
            base.training,
            minibatches=options.minibatches,
            microbatch_tokens=options.microbatch_tokens,
            gradient_checkpointing=options.checkpointing,
            recompute_log_probs=options.old_log_probs,
            chunked_logits=options.chunked_logits,
            offload=options.offload,
            shard_gpus=options.shard_gpus,
            tensor_parallel=options.tensor_parallel,
        ),
        efficiency=_given(Efficiency(), update=options.mfu),
        max_sequences=options.max_sequences or base.max_sequences,
        steps=options.steps or base.steps,
        seed=options.seed,
    )


def sizes_of(text: str) -> tuple[int, ...]:
    """Return the numbers of `--sizes`.

    >>> sizes_of("8, 64")
    (8, 64)
    >>> sizes_of("8,many")
    Traceback (most recent call last):
    ...
    ValueError: --sizes 'many': numbers of GPUs with commas between are needed, for example 8,64,512
    """
    sizes = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if not part.isdecimal() or not int(part):
            raise ValueError(
                f"--sizes {part!r}: numbers of GPUs with commas between are needed, for example 8,64,512"
            )
        sizes.append(int(part))
    return tuple(sorted(set(sizes)))


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
        if "=" not in text:
            names = list(known) or ["agent"]
            pairs = [(name, float(text) / len(names)) for name in names]
        else:
            parts = [part.split("=") for part in text.split(",")]
            pairs = [(name.strip(), float(rate)) for name, rate in parts]
        rates = dict(pairs)
        if len(rates) < len(pairs) or not all(map(isfinite, rates.values())):
            raise ValueError("an agent is named twice, or a rate is no number")
        return rates
    except ValueError:
        raise ValueError(
            f"--consultations {text!r}: a number, or one for each agent as in verify=0.5,knowledge=1"
        ) from None


def _given(value: Any, **changes: Any) -> Any:
    """Return a dataclass with those fields changed that were given."""
    return replace(value, **{name: change for name, change in changes.items() if change is not None})


def _of_recipe(settings: Settings) -> Setting:
    rollout, consult, train, base = settings.rollout, settings.consult, settings.train, Workload()
    enabled = [str(agent) for agent in settings.agents.enabled]
    workload = replace(
        base,
        prompts_per_step=train.prompts_per_step,
        rollouts_per_prompt=max(1, rollout.rollouts_per_prompt),
        solo_fraction=rollout.solo_fraction if enabled else 1.0,
        prompt_tokens=_within(base.prompt_tokens, rollout.max_prompt_tokens),
        response_tokens=_within(base.response_tokens, rollout.max_response_tokens),
        feedback_tokens=_within(base.feedback_tokens, consult.max_feedback_tokens),
        consultations={name: min(0.5, consult.max_consultations / len(enabled)) for name in enabled},
        max_consultations=consult.max_consultations,
        latency_s=replace(base.latency_s, most=settings.agents.timeout_s),
        grade_workers=settings.task.grade_workers,
    )
    training = Training(
        minibatches=train.minibatches_per_step,
        microbatch_tokens=train.microbatch_tokens,
        gradient_checkpointing=train.gradient_checkpointing,
    )
    return Setting(workload=workload, training=training, max_sequences=rollout.slots, steps=train.steps)


def _within(spread: Spread, most: int) -> Spread:
    """Return the assumed spread below a recipe's limit: half of it where the usual mean is above that."""
    return Spread(min(spread.mean, most / 2), spread.sigma, most)


def _cluster(options: PlanOptions) -> Cluster:
    name = (options.gpu or "h100").lower().removesuffix("-80g")
    if name not in GPUS:
        raise ValueError(f"--gpu {options.gpu!r} is none of {', '.join(GPUS)}")
    per_node = options.gpus_per_node or 8
    gpus = options.gpus or (options.nodes * per_node if options.nodes else 8)
    if options.nodes and gpus != options.nodes * per_node:
        raise ValueError(
            f"--gpus {gpus} and --nodes {options.nodes} contradict each other at {per_node} GPUs a node "
            "(--gpus-per-node); leave one out"
        )
    return Cluster(GPUS[name], gpus, per_node)


def _workload(base: Workload, options: PlanOptions) -> Workload:
    consultations = None
    if options.consultations is not None:
        consultations = consultations_of(options.consultations, base.consultations)
    changed: Workload = _given(
        base,
        prompts_per_step=options.prompts,
        rollouts_per_prompt=options.rollouts,
        solo_fraction=options.solo_fraction,
        prompt_tokens=_changed(base.prompt_tokens, options.prompt_tokens),
        response_tokens=_changed(
            base.response_tokens,
            options.response_tokens,
            options.response_spread,
            options.max_response_tokens,
        ),
        consultations=consultations,
        max_consultations=options.max_consultations,
        request_tokens=options.request_tokens,
        feedback_tokens=_changed(base.feedback_tokens, options.feedback_tokens),
        latency_s=_latency(base.latency_s, options),
        grade_s=options.grade_s,
        grade_workers=options.grade_workers,
    )
    response = changed.response_tokens
    if response.mean > response.most:
        raise ValueError(
            f"--response-tokens {response.mean:g} is more than --max-response-tokens {response.most:g}; "
            "lower the one or raise the other"
        )
    return changed


def _changed(
    spread: Spread, mean: float | None, sigma: float | None = None, most: float | None = None
) -> Spread:
    changed: Spread = _given(spread, mean=mean, sigma=sigma, most=most)
    return changed


def _latency(spread: Spread, options: PlanOptions) -> Spread:
    median, late = options.agent_latency_s, options.agent_latency_p95_s
    most = spread.most if options.agent_timeout_s is None else options.agent_timeout_s
    if median is None and late is None:
        return replace(spread, most=most)
    if median is None:
        raise ValueError(f"--agent-latency-p95-s {late:g} needs --agent-latency-s, the median")
    if late is None:
        return Spread.around(median, spread.sigma, most)
    if not 0 < median <= late:
        raise ValueError(
            f"--agent-latency-p95-s {late:g} is not above --agent-latency-s {median:g}, the median (above 0)"
        )
    return Spread.around(median, log(late / median) / P95, most)
