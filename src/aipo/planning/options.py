"""Options of `aipo plan`.

Owns their wording. Must not load anything: the help is quick. Invariant: an option that was not given is
None, so that a recipe's or a run's value can stand in for it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

_MACHINE, _WORK, _AGENTS, _UPDATE, _SHOWN = "Machine", "Rollouts", "Agents", "Update", "Shown"


def _option(help_: str, panel: str, *names: str, **limits: Any) -> Any:
    return typer.Option(*names, help=help_, rich_help_panel=panel, **limits)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What `aipo plan` takes; each field is an option of the command line."""

    model: Annotated[
        str | None, _option("qwen2.5-7b and its sisters, or a folder with a config.json.", _MACHINE)
    ] = None
    gpu: Annotated[str | None, _option("a100 (80 GB), h100 or h200.", _MACHINE)] = None
    gpus: Annotated[int | None, _option("All GPUs of the policy.", _MACHINE, min=1)] = None
    nodes: Annotated[int | None, _option("Nodes, in place of --gpus.", _MACHINE, min=1)] = None
    gpus_per_node: Annotated[int | None, _option("8 if not given.", _MACHINE, min=1)] = None
    tensor_parallel: Annotated[
        int | None, _option("GPUs of a rollout replica; without, as few as fit.", _MACHINE, min=1)
    ] = None
    max_sequences: Annotated[
        int | None, _option("Rollouts that a replica decodes at the same time.", _MACHINE, min=1)
    ] = None
    like: Annotated[
        Path | None,
        _option("Run folder that rates are taken from: consultations by agent, lengths, latency.", _WORK),
    ] = None
    prompts: Annotated[int | None, _option("Problems of a step.", _WORK, min=1)] = None
    rollouts: Annotated[int | None, _option("Rollouts of a problem.", _WORK, min=1)] = None
    solo_fraction: Annotated[float | None, _option("Share that may not consult.", _WORK, min=0, max=1)] = None
    prompt_tokens: Annotated[float | None, _option("Mean.", _WORK, min=1)] = None
    response_tokens: Annotated[
        float | None, _option("Mean of what the policy writes, requests not counted.", _WORK, min=1)
    ] = None
    response_spread: Annotated[
        float | None, _option("Deviation of its logarithm; 0: all alike.", _WORK, min=0)
    ] = None
    max_response_tokens: Annotated[int | None, _option("Limit, feedback included.", _WORK, min=1)] = None
    grade_s: Annotated[float | None, _option("Time to grade a rollout.", _WORK, min=0)] = None
    grade_workers: Annotated[int | None, _option("Rollouts graded at the same time.", _WORK, min=1)] = None
    consultations: Annotated[
        str | None,
        _option("Per consulting rollout: a number, or by agent: verify=0.5,knowledge=1.", _AGENTS),
    ] = None
    max_consultations: Annotated[int | None, _option("Per rollout.", _AGENTS, min=0)] = None
    request_tokens: Annotated[float | None, _option("Mean, tags included.", _AGENTS, min=0)] = None
    feedback_tokens: Annotated[float | None, _option("Mean.", _AGENTS, min=0)] = None
    agent_latency_s: Annotated[
        float | None, _option("Median until an agent writes its first token.", _AGENTS, min=0)
    ] = None
    agent_latency_p95_s: Annotated[
        float | None, _option("Its tail: 95 of 100 take no longer.", _AGENTS, min=0)
    ] = None
    agent_timeout_s: Annotated[float | None, _option("No latency is longer.", _AGENTS, min=0)] = None
    agent_servers: Annotated[int | None, _option("Servers of agents; 2 if not given.", _AGENTS, min=1)] = None
    agent_concurrency: Annotated[
        int | None, _option("Requests that a server answers at the same time.", _AGENTS, min=1)
    ] = None
    agent_tokens_s: Annotated[
        float | None, _option("Tokens per second of a full server, all answers together.", _AGENTS, min=0)
    ] = None
    agent_gpus: Annotated[int | None, _option("GPUs of a server, for the cost.", _AGENTS, min=0)] = None
    minibatches: Annotated[int | None, _option("Optimiser steps of a batch.", _UPDATE, min=1)] = None
    microbatch_tokens: Annotated[
        int | None, _option("Tokens of a forward pass on a GPU.", _UPDATE, min=1)
    ] = None
    shard_gpus: Annotated[
        int | None,
        _option("GPUs that share one copy of weights and optimiser; without, all.", _UPDATE, min=1),
    ] = None
    checkpointing: Annotated[
        bool | None,
        _option(
            "Compute activations again in the backward pass.", _UPDATE, "--checkpointing/--no-checkpointing"
        ),
    ] = None
    old_log_probs: Annotated[
        bool | None,
        _option(
            "One more forward pass for old log-probabilities.", _UPDATE, "--old-log-probs/--no-old-log-probs"
        ),
    ] = None
    chunked_logits: Annotated[
        bool | None,
        _option("Hold logits a chunk at a time, as our own trainer does.", _UPDATE, "--chunked-logits"),
    ] = None
    offload: Annotated[
        bool | None, _option("Trainer's state to the host while the policy samples.", _UPDATE, "--offload")
    ] = None
    mfu: Annotated[
        float | None, _option("Share of peak FLOP/s that the update reaches.", _UPDATE, min=0.01, max=1)
    ] = None
    steps: Annotated[int | None, _option("Of the run, for its cost.", _UPDATE, min=1)] = None
    sizes: Annotated[str, _option("Numbers of GPUs in the table of scaling; empty: no table.", _SHOWN)] = (
        "1,2,4,8,16,32,64,128,256,512,1000"
    )
    seed: Annotated[int, _option("Of the rollouts that are simulated.", _SHOWN, min=0)] = 0
    json: Annotated[bool, _option("Print JSON in place of tables.", _SHOWN, "--json")] = False


NO_PLAN_OPTIONS = PlanOptions()


def with_plan_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, whose last parameter is `options`, one option for each field of `PlanOptions`."""
    hints = get_type_hints(PlanOptions, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    own_hints = get_type_hints(command, include_extras=True)
    own = [
        p.replace(kind=keyword, annotation=own_hints[p.name])
        for p in inspect.signature(command).parameters.values()
        if p.name != "options"
    ]
    options = [
        inspect.Parameter(each.name, keyword, annotation=hints[each.name], default=each.default)
        for each in fields(PlanOptions)
    ]

    def run(**values: Any) -> None:
        given = PlanOptions(**{each.name: values.pop(each.name) for each in fields(PlanOptions)})
        command(**values, options=given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    signature = inspect.Signature([*own, *options])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return run
