"""`aipo train`: one run, from its recipe to an exported policy."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from aipo.agents.base import Agent
from aipo.cli.assembly import Parts, assemble
from aipo.cli.canary import refuse_silent_agents
from aipo.cli.console import StepLines, console, plain_errors
from aipo.cli.evaluate import evaluate_run
from aipo.cli.selftest import self_test
from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.core.types import AgentName
from aipo.tasks.base import Split
from aipo.train.events import Progress
from aipo.train.journal import AGENTS, record_agents, refuse_other_run
from aipo.train.loop import Trainer


def train(recipe: Path, overrides: Sequence[str], use_cache: bool = True) -> None:
    """Train a policy; see `aipo train --help`."""
    with plain_errors():
        train_run(load_settings(recipe, overrides), use_cache=use_cache)


def train_run(
    settings: Settings, agents: Mapping[AgentName, Agent] | None = None, use_cache: bool = True
) -> Path:
    """Train, evaluate where the settings ask for it, and return the exported policy's folder.

    `agents` of your own take the place of those in the settings. All is checked before the run's folder is
    claimed.
    """
    policy = settings.run.output / "policy"
    if not settings.policy.model:
        raise ValueError(
            "policy.model is empty; name a model folder or hub id, or first run `aipo warmstart`"
        )
    refuse_other_run(settings)
    with closing(assemble(settings, agents, use_cache, log_folder=settings.run.output)) as parts:
        _train(settings, parts)
    console.print(f"policy written to {policy}", markup=False)
    return policy


def _train(settings: Settings, parts: Parts) -> None:
    problems = parts.task.problems(Split.TRAIN)
    if late := [step for step in settings.evaluate.at_steps if step > settings.train.steps]:
        raise ValueError(
            f"evaluate.at_steps = {late} is beyond train.steps = {settings.train.steps}; lower it"
        )
    if settings.evaluate.at_steps:
        parts.task.problems(Split(settings.evaluate.split))  # refused now rather than hours later
    refuse_silent_agents(settings, parts.crew)
    self_test(parts, problems, settings.rollout.temperature)
    with closing(Trainer(settings, parts.model, parts.tokenizer, parts.sampler, problems)) as trainer:
        _run(settings, parts, trainer)


def _run(settings: Settings, parts: Parts, trainer: Trainer) -> None:
    if record_agents(settings.run.output, trainer.step, parts.crew.record):
        console.print(f"the agents have changed: see {AGENTS}", markup=False)
    lines = StepLines()
    if 0 < trainer.step < settings.train.steps:
        console.print(f"going on from step {trainer.step}", markup=False)

    async def after_step(progress: Progress) -> None:
        lines(progress)
        await _evaluate_if_due(settings, parts, progress.step)

    asyncio.run(trainer.run(after_step))


async def _evaluate_if_due(settings: Settings, parts: Parts, step: int) -> None:
    plan = settings.evaluate
    if step in plan.at_steps:
        samples = plan.samples_per_problem if step == settings.train.steps else plan.curve_samples_per_problem
        await evaluate_run(settings, parts, step, samples)
