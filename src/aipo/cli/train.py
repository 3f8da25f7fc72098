"""`aipo train`: one run, from its recipe to an exported policy."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from aipo.agents.base import Agent
from aipo.cli.assembly import Parts, assemble
from aipo.cli.console import StepLines, console, plain_errors
from aipo.cli.evaluate import evaluate_run
from aipo.cli.selftest import self_test
from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.core.types import AgentName
from aipo.tasks.base import Split
from aipo.train.events import Progress
from aipo.train.loop import Trainer


def train(recipe: Path, overrides: Sequence[str]) -> None:
    """Train a policy; see `aipo train --help`."""
    with plain_errors():
        train_run(load_settings(recipe, overrides))


def train_run(settings: Settings, agents: Mapping[AgentName, Agent] | None = None) -> Path:
    """Train, evaluate where the settings ask for it, and return the exported policy's folder.

    `agents` of your own take the place of scripted ones. All is checked before the run's folder is claimed.
    """
    policy = settings.run.output / "policy"
    if not settings.policy.model:
        raise ValueError(
            "policy.model is empty; name a model folder or hub id, or first run `aipo warmstart`"
        )
    parts = assemble(settings, agents)
    problems = parts.task.problems(Split.TRAIN)
    if late := [step for step in settings.evaluate.at_steps if step > settings.train.steps]:
        raise ValueError(
            f"evaluate.at_steps = {late} is beyond train.steps = {settings.train.steps}; lower it"
        )
    if settings.evaluate.at_steps:
        parts.task.problems(Split(settings.evaluate.split))  # refused now rather than hours later
    self_test(parts, problems)
    trainer = Trainer(settings, parts.model, parts.tokenizer, parts.sampler, problems)
    lines = StepLines()
    if 0 < trainer.step < settings.train.steps:
        console.print(f"going on from step {trainer.step}", markup=False)

    async def after_step(progress: Progress) -> None:
        lines(progress)
        await _evaluate_if_due(settings, parts, progress.step)

    asyncio.run(trainer.run(after_step))
    console.print(f"policy written to {policy}", markup=False)
    return policy


async def _evaluate_if_due(settings: Settings, parts: Parts, step: int) -> None:
    plan = settings.evaluate
    if step in plan.at_steps:
        samples = plan.samples_per_problem if step == settings.train.steps else plan.curve_samples_per_problem
        await evaluate_run(settings, parts, step, samples)
