"""A whole training run: put together, checked, trained, evaluated where the settings ask for it, exported.

Nothing is written to the run's folder before all of the settings have been checked. The same call continues
an interrupted run.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from aipo.agents.base import Agent
from aipo.assembly.canary import refuse_silent_agents
from aipo.assembly.during import Schedule, schedule
from aipo.assembly.engines import ENGINES
from aipo.assembly.judges import refuse_silent_judges
from aipo.assembly.memory import memory_line
from aipo.assembly.parts import Parts, assemble, by_name
from aipo.assembly.selftest import SELF_TEST, self_test
from aipo.assembly.stopping import end_now_is_an_error, signals_end_the_step, watchdog_of
from aipo.config.loader import load_settings
from aipo.config.policy import Precision
from aipo.config.settings import Settings
from aipo.evaluation.model_card import write_model_card
from aipo.tasks.base import Split, Task
from aipo.training.algorithm import objective_settings, with_truncation
from aipo.training.compiling import check_compile
from aipo.training.device import settled
from aipo.training.eliciting import elicit_of
from aipo.training.events import Progress, Reporter, SignalledError, Silent
from aipo.training.journal import AGENTS, SETTINGS, record_agents, refuse_other_run
from aipo.training.log_probs import PolicyForward
from aipo.training.loop import Trainer
from aipo.training.model import parameter_line
from aipo.training.optimizers import check_optimizer
from aipo.training.ranks import Ranks, join
from aipo.training.schedule import algorithm_at
from aipo.training.snapshot import room_for_checkpoints
from aipo.training.trackers import check_trackers

BFLOAT16_RATE = 4e-5
"""Below it a step of AdamW moves a usual weight, 0.02, by less than half of bfloat16's spacing there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a finished run has left."""

    policy: Path
    """The exported policy, a plain Hugging Face folder."""
    folder: Path
    """The run's folder, `run.output`: settings, metrics, rollouts, evaluations, checkpoints."""
    step: int
    """The last step."""


def train(
    settings: Settings,
    *,
    task: Task | None = None,
    agents: Mapping[str, Agent] | Iterable[Agent] | None = None,
    reporter: Reporter | None = None,
    use_cache: bool = True,
    may_change: Collection[str] = (),
) -> TrainResult:
    """Train a policy, or go on with a run that was interrupted; evaluate where the settings ask for it.

    Args:
        settings: The run, from `load_settings`.
        task: Your own task, in the place of the one that the settings name.
        agents: Your own agents, in the place of those that the settings describe; one for each name in
            `agents.enabled`.
        reporter: Where progress and remarks go; without one, to the logger `aipo`. Nothing is printed.
        use_cache: Whether replies of remote and local agents are kept, so that nobody is asked twice.
        may_change: Settings that may differ from those that the run began with, as in `["train.steps"]`.

    Raises:
        ValueError: The settings are wrong or do not fit together; nothing was trained. The message names the
            field, the value and the fix.
        StopRunError: The run stopped on purpose with a valid checkpoint: a guard, an agent or engine that is
            gone, a full disk. `SignalledError` is the kind for SIGTERM and for the first SIGINT.
        KeyboardInterrupt: SIGINT came before the training, or a second time; the last checkpoint is valid.
    """
    policy = settings.run.output / "policy"
    if not settings.policy.model:
        raise ValueError(
            "policy.model is empty; name a model folder or hub id, or first run `aipo warmstart`"
        )
    recorded = settings.run.output / SETTINGS
    begun = load_settings(recorded) if recorded.exists() else None
    engine = ENGINES[settings.engine.name]
    settings = with_truncation(settled(settings, begun), engine.in_process, begun)
    check_trackers(settings.run.trackers)
    objective_settings(settings.algorithm)  # looks up its names, those from outside the package too
    elicit_of(settings)
    ranks = join(settings, engine.on_several_ranks)
    reporter = reporter or Reporter() if ranks.is_main else Silent()
    ranks.first(lambda: refuse_other_run(settings, may_change))
    own = by_name(agents)
    check_optimizer(settings, ranks.size)
    check_compile(settings)
    if line := memory_line(settings, ranks.size, engine.in_process):
        reporter.note(line)
    with end_now_is_an_error(), ExitStack() as stack:
        with reporter.doing(f"loading the task, the agents and {settings.policy.model}"):
            parts = assemble(settings, own, use_cache, settings.run.output, task, ranks)
        stack.enter_context(closing(parts))
        try:
            step = _train(settings, parts, may_change, ranks, reporter)
        except SignalledError:  # the policy so far was exported
            ranks.first(lambda: write_model_card(settings.run.output, policy))
            raise
    ranks.first(lambda: write_model_card(settings.run.output, policy))
    reporter.note(f"policy written to {policy}")
    return TrainResult(policy=policy, folder=settings.run.output, step=step)


def _train(
    settings: Settings, parts: Parts, may_change: Collection[str], ranks: Ranks, reporter: Reporter
) -> int:
    with reporter.doing("measuring prompts"):
        problems = parts.problems(Split.TRAIN)
    evaluations = schedule(settings, parts)
    for line in parts.fitting.lines():
        reporter.warn(line)
    room = ranks.in_turn(lambda: room_for_checkpoints(parts.model, settings))
    ranks.first(lambda: refuse_silent_agents(settings, parts.agent_set, problems))
    ranks.first(lambda: refuse_silent_judges(settings, reporter))
    with reporter.doing(SELF_TEST):
        self_test(parts, problems, settings.rollout.temperature)
    whole = (parts.model, parts.tokenizer, parts.sampler, problems)
    with closing(Trainer(settings, *whole, may_change=may_change, ranks=ranks)) as trainer:
        if ranks.is_main:
            _report_start(settings, parts, trainer, reporter)
            for line in filter(None, (room, evaluations.line)):
                reporter.note(line)
        _run(replace(parts, sampler=trainer.sampler), evaluations, trainer, ranks, reporter)
        if line := evaluations.best_line():
            reporter.note(line)
        return trainer.step


def _report_start(settings: Settings, parts: Parts, trainer: Trainer, reporter: Reporter) -> None:
    """Say what of the policy is trained, what costs memory or updates, and where the run goes on."""
    if record_agents(settings.run.output, trainer.step, parts.agent_set.record):
        reporter.note(f"the agents have changed: see {AGENTS}")
    reporter.note(parameter_line(parts.model))
    forward = PolicyForward(parts.model, settings.train.logit_chunk_tokens)
    notice = forward.check() if forward.chunk_of(settings.train.microbatch_tokens) else ""
    for line in (_correction_line(settings), notice, _bfloat16_warning(settings)):
        if line:
            reporter.note(line)
    if line := _nothing_learnt_of_agents(settings):
        reporter.warn(line)
    for note in trainer.notes:
        reporter.warn(note)
    if 0 < trainer.step < settings.train.steps:
        reporter.note(f"going on from step {trainer.step}")


def _correction_line(settings: Settings) -> str:
    """Return what to say where the sampler is corrected for, else ''."""
    truncation = settings.algorithm.mismatch_truncation
    if not truncation:
        return ""
    return (
        f"algorithm.mismatch_truncation = {truncation:g}: a POLICY token weighs the trainer's p over that of "
        f"engine {settings.engine.name!r}, at most {truncation:g}; costs a forward pass an update (0: off)"
    )


def _bfloat16_warning(settings: Settings) -> str:
    """Return what to say where bfloat16 weights are too coarse for the learning rate, else ''."""
    policy, rate = settings.policy, settings.train.learning_rate
    if policy.precision is not Precision.BFLOAT16 or policy.lora_rank or rate >= BFLOAT16_RATE:
        return ""
    return (
        f"policy.precision = 'bfloat16' with train.learning_rate = {rate:g}: most updates are smaller than a "
        "weight's rounding and are lost; set policy.precision = 'bf16-mixed', which keeps float32 weights "
        "and computes in bfloat16, or train adapters (policy.lora_rank), which are float32"
    )


def _nothing_learnt_of_agents(settings: Settings) -> str:
    """Return what to say where the policy reads its agents' words and learns none of them, else ''."""
    at_some_step = any(
        objective_settings(algorithm_at(settings, step)).feedback_trained
        for step in (1, settings.train.steps)
    )
    if not settings.agents.enabled or at_some_step:
        return ""
    algorithm = settings.algorithm
    setting = f"algorithm.feedback_weight = {algorithm.feedback_weight:g}"
    if algorithm.feedback_weight:
        setting = f"algorithm.coefficient = {algorithm.coefficient!r}"
    fix = "algorithm.coefficient = 'floored', algorithm.feedback_weight = 1 and "
    return (
        f"{setting}: the policy reads what its agents say and learns none of it, not from copies either; "
        f"that is not AIPO. For AIPO set {fix}algorithm.stripped_copies = true"
    )


def _run(parts: Parts, evaluations: Schedule, trainer: Trainer, ranks: Ranks, reporter: Reporter) -> None:
    settings = evaluations.settings
    with ExitStack() as stack:
        stack.enter_context(signals_end_the_step(trainer, reporter))
        if ranks.is_main:  # the others wait for it, and end when it does
            stack.enter_context(watchdog_of(trainer, settings.guards, settings.run.output, reporter))
        stack.enter_context(reporter)

        async def before() -> None:
            await evaluations.evaluate(parts, 0, reporter)

        async def after_step(progress: Progress) -> None:
            reporter.step(progress)
            for line in progress.warnings:
                reporter.warn(f"step {progress.step}: {line}")
            await evaluations.evaluate(parts, progress.step, reporter)

        asyncio.run(trainer.run(after_step, before))
