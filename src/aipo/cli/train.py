"""`aipo train`: one run, from its recipe to an exported policy."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from aipo.agents.base import Agent
from aipo.assembly.canary import refuse_silent_agents
from aipo.assembly.parts import Parts, assemble
from aipo.assembly.selftest import self_test
from aipo.assembly.stopping import several_end_at_once, signals_end_the_step, watchdog_of
from aipo.cli.evaluate import evaluate_run
from aipo.cli.screen import LiveScreen
from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.console import StepLines, console, errors, plain_errors
from aipo.evaluation.model_card import write_model_card
from aipo.tasks.base import Split
from aipo.training.events import Progress
from aipo.training.journal import AGENTS, record_agents, refuse_other_run
from aipo.training.log_probs import PolicyForward
from aipo.training.loop import Trainer
from aipo.training.model import parameter_line
from aipo.training.ranks import Ranks, join
from aipo.training.trackers import check_trackers

BFLOAT16_RATE = 4e-5
"""Below it a step of AdamW moves a usual weight, 0.02, by less than half of bfloat16's spacing there."""


def train(
    recipe: Path, overrides: Sequence[str], use_cache: bool = True, may_change: Collection[str] = ()
) -> None:
    """Train a policy; see `aipo train --help`."""
    with several_end_at_once(), plain_errors():
        train_run(load_settings(recipe, overrides), use_cache=use_cache, may_change=may_change)


def train_run(
    settings: Settings,
    agents: Mapping[str, Agent] | None = None,
    use_cache: bool = True,
    may_change: Collection[str] = (),
) -> Path:
    """Train, evaluate where the settings ask for it, and return the exported policy's folder.

    `agents` of your own take the place of those in the settings; settings that `may_change` names may differ
    from those that the run began with. All is checked before the run's folder is claimed.
    """
    policy = settings.run.output / "policy"
    if not settings.policy.model:
        raise ValueError(
            "policy.model is empty; name a model folder or hub id, or first run `aipo warmstart`"
        )
    check_trackers(settings.run.trackers)
    ranks = join(settings)
    console.quiet = console.quiet or not ranks.leads
    ranks.first(lambda: refuse_other_run(settings, may_change))
    with closing(assemble(settings, agents, use_cache, log_folder=settings.run.output)) as parts:
        _train(settings, parts, may_change, ranks)
    ranks.first(lambda: write_model_card(settings.run.output, policy))
    console.print(f"policy written to {policy}", markup=False)
    return policy


def _train(settings: Settings, parts: Parts, may_change: Collection[str], ranks: Ranks) -> None:
    problems = parts.task.problems(Split.TRAIN)
    if late := [step for step in settings.evaluate.at_steps if step > settings.train.steps]:
        raise ValueError(
            f"evaluate.at_steps = {late} is beyond train.steps = {settings.train.steps}; lower it"
        )
    if settings.evaluate.at_steps:
        parts.task.problems(Split(settings.evaluate.split))  # refused now rather than hours later
    ranks.first(lambda: refuse_silent_agents(settings, parts.crew))
    self_test(parts, problems, settings.rollout.temperature)
    whole = (parts.model, parts.tokenizer, parts.sampler, problems)
    with closing(Trainer(settings, *whole, may_change=may_change, ranks=ranks)) as trainer:
        _run(settings, replace(parts, sampler=trainer.sampler), trainer, ranks)


def _lost_updates(settings: Settings) -> str:
    """Return what to say where bfloat16 weights are too coarse for the learning rate, else ''."""
    policy, rate = settings.policy, settings.train.learning_rate
    if policy.dtype != "bfloat16" or policy.lora_rank or rate >= BFLOAT16_RATE:
        return ""
    return (
        f"policy.dtype = 'bfloat16' with train.learning_rate = {rate:g}: most updates are smaller than a "
        "weight's rounding and are lost; train adapters (policy.lora_rank), which are float32, or set "
        "policy.dtype = 'float32'"
    )


def _notes(settings: Settings, parts: Parts) -> list[str]:
    """Return what to say of the policy before training: how much of it is trained, and what costs memory."""
    forward = PolicyForward(parts.model, settings.train.logit_chunk_tokens)
    notice = forward.check() if forward.chunk_of(settings.train.microbatch_tokens) else ""
    lost = _lost_updates(settings)
    return [line for line in (parameter_line(parts.model), notice, lost) if line]


def _run(settings: Settings, parts: Parts, trainer: Trainer, ranks: Ranks) -> None:
    if ranks.leads and record_agents(settings.run.output, trainer.step, parts.crew.record):
        console.print(f"the agents have changed: see {AGENTS}", markup=False)
    for line in _notes(settings, parts):
        console.print(line, markup=False)
    for note in trainer.notes:
        if ranks.leads:
            errors.print(note, style="yellow", markup=False)
    if 0 < trainer.step < settings.train.steps:
        console.print(f"going on from step {trainer.step}", markup=False)

    with ExitStack() as stack:
        stack.enter_context(signals_end_the_step(trainer))
        if ranks.leads:  # the others wait for it, and end when it does
            stack.enter_context(watchdog_of(trainer, settings.guards, settings.run.output))
        live = console.is_terminal and ranks.leads
        screen = LiveScreen(console, str(settings.run.output)) if live else None
        show = stack.enter_context(screen) if screen else StepLines()

        async def after_step(progress: Progress) -> None:
            show(progress)
            await _evaluate_if_due(settings, parts, progress.step)

        asyncio.run(trainer.run(after_step))


async def _evaluate_if_due(settings: Settings, parts: Parts, step: int) -> None:
    plan = settings.evaluate
    if step in plan.at_steps:
        samples = plan.samples_per_problem if step == settings.train.steps else plan.curve_samples_per_problem
        await evaluate_run(settings, parts, step, samples)
