"""The warm start of a pretrained model: fine-tuned on traces, measured before and after.

A killed one goes on with the same command. Everything but the exported policy stands beside it: settings,
the traces, `warmstart.json` with what was measured, and the checkpoints, which go when it is done.
"""

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from aipo.assembly.parts import Parts, assemble
from aipo.assembly.trace_sources import source_of
from aipo.assembly.traces import LINES_EVERY_S, Kept, TraceMaker, Traces
from aipo.config.engines import EngineSettings
from aipo.config.loader import dump_settings
from aipo.config.warmstart import TraceSettings
from aipo.core.types import Condition, ConsultOutcome, Source, Verdict
from aipo.engines.base import MemoryHolder, Sampling
from aipo.evaluation.sampling import first_of_each_stratum
from aipo.rollout.group import GroupShape, MemberRollout
from aipo.tasks.base import Problem, Split, TaskError
from aipo.tasks.registry import task_spec
from aipo.training.checkpoint import Checkpoints
from aipo.training.durable import write_whole
from aipo.training.events import Reporter, duration
from aipo.training.log_probs import PolicyForward
from aipo.training.model import checkpoints_activations, parameter_line, save_policy
from aipo.training.supervised import Supervised, SupervisedSettings, mean_loss

RECORD, CHECKPOINTS, TRACES_FILE = "warmstart.json", "warmstart-checkpoints", "warmstart-traces.jsonl"

Measured = Mapping[str, float]
"""By what was measured: `loss`, `consult rate`, `solo, hard` and so on."""


def warm_start_on_traces(settings: TraceSettings, folder: Path, reporter: Reporter) -> None:
    """Fine-tune `warmstart.model` on traces and write it to `folder`. Raises `ValueError`s."""
    start = settings.policy.model_copy(update={"model": settings.warmstart.model})
    beginning = settings.model_copy(update={"policy": start, "engine": EngineSettings()})
    entry = source_of(settings.warmstart.source)
    source = entry, entry.make(settings)
    with closing(assemble(beginning)) as parts:
        kept = Kept(folder.with_name(TRACES_FILE), settings)
        task = task_spec(settings.task.name)
        traces = asyncio.run(TraceMaker(settings, task, parts, source, kept, reporter.note).make())
        reporter.note(f"{len(traces.learnt)} traces to learn from, {len(traces.held_out)} held out")
        for note in traces.notes:
            reporter.warn(note)
        folder.parent.mkdir(parents=True, exist_ok=True)
        (folder.parent / "settings.toml").write_text(dump_settings(settings))
        _train(settings, parts, traces, folder, reporter)


def refuse_no_start(settings: TraceSettings, folder: Path) -> None:
    """Raise `ValueError` where no model to begin with is named, or the folder holds another model."""
    if not settings.warmstart.model:
        raise ValueError(
            f"warmstart.model is empty; name the pretrained model that the warm start of task.name = "
            f"{settings.task.name!r} begins with, and in policy.model the folder to write. To train without "
            "one, name a real model in policy.model; in a comparison also set compare.warmstart = false"
        )
    if (folder / "config.json").exists() and not folder.with_name(RECORD).exists():
        raise ValueError(
            f"policy.model = {str(folder)!r} is where the warm start is written, and holds a model that none "
            "made; name that one in warmstart.model, and another folder in policy.model"
        )


def _train(settings: TraceSettings, parts: Parts, traces: Traces, folder: Path, reporter: Reporter) -> None:
    w, record = settings.warmstart, folder.with_name(RECORD)
    targets = frozenset({Source.POLICY, *([Source.FEEDBACK] if w.learn_feedback else [])})
    how = SupervisedSettings(
        targets=targets,
        epochs=w.epochs,
        sequences_per_step=w.sequences_per_step,
        learning_rate=w.learning_rate,
        microbatch_tokens=settings.train.microbatch_tokens,
        max_grad_norm=settings.train.max_grad_norm,
        checkpoint_every_s=w.checkpoint_every_s,
        seed=settings.run.seed,
    )
    checkpointing = checkpoints_activations(settings.train, parts.model)
    forward = PolicyForward(parts.model, settings.train.logit_chunk_tokens, checkpointing)

    def measured(when: str) -> Measured:
        reporter.note(f"measuring {when} …")
        found = asyncio.run(sampled(settings, parts))
        if not traces.held_out:
            return found
        return {
            "held-out loss": mean_loss(forward, traces.held_out, targets, how.microbatch_tokens),
            **found,
        }

    checkpoints = Checkpoints(folder.with_name(CHECKPOINTS), keep=1)
    going_on = bool(checkpoints.steps()) and record.exists()
    before: Measured = json.loads(record.read_text())["before"] if going_on else measured("before")
    write_whole(record, json.dumps({"before": before}, indent=1))
    trainer = Supervised(forward, traces.learnt, how, checkpoints)
    reporter.note(parameter_line(parts.model))
    if trainer.step:
        reporter.note(f"going on from step {trainer.step}")
    begun = time.monotonic()
    trainer.run(_lines(trainer, reporter))
    train_s = time.monotonic() - begun
    after = measured("after")
    save_policy(parts.model, parts.tokenizer, folder)
    result = {"before": before, "after": after, "steps": trainer.steps, "traces": len(traces.learnt)}
    write_whole(record, json.dumps(result, indent=1))
    shutil.rmtree(folder.with_name(CHECKPOINTS), ignore_errors=True)
    for line in table(before, after):
        reporter.note(line)
    reporter.note(f"{trainer.steps} updates, {duration(train_s)}; written to {folder}")


async def sampled(settings: TraceSettings, parts: Parts) -> Measured:
    """Sample validation problems, consulting and solo; return consult rate and accuracies by stratum.

    A consulting rollout consults if an agent answered it at least once. Degenerate case: {} without
    validation problems or with warmstart.check_problems = 0.
    """
    w = settings.warmstart
    try:
        problems = first_of_each_stratum(parts.problems(Split.VALIDATION), w.check_problems)
    except TaskError:
        problems = []
    if not problems:
        return {}
    consulting = w.check_samples if settings.agents.enabled else 0
    sampling = Sampling(temperature=settings.rollout.temperature, exact_log_probs=False)
    shape = GroupShape(consulting=consulting, solo=w.check_samples, sampling=sampling)
    groups = await parts.sampler.groups(problems, shape, (settings.run.seed, "warmstart", "check"))
    if isinstance(engine := parts.policy_engine.engine, MemoryHolder):
        engine.free()
    members = [(group.problem, member) for group in groups for member in group.members]
    asked = [_consulted(member) for _, member in members if member.condition is Condition.CONSULTING]
    return {
        **({"consulting rollouts that consult": sum(asked) / len(asked)} if asked else {}),
        **_accuracies(members, Condition.CONSULTING),
        **_accuracies(members, Condition.SOLO),
    }


def _consulted(member: MemberRollout) -> bool:
    made = member.rollout
    return made is not None and any(c.outcome is ConsultOutcome.ANSWERED for c in made.consultations)


def _accuracies(members: Sequence[tuple[Problem, MemberRollout]], condition: Condition) -> Measured:
    graded: dict[str, list[bool]] = {}
    for problem, member in members:
        if member.condition is condition and member.grade.verdict is not Verdict.UNGRADED:
            graded.setdefault(problem.stratum, []).append(member.grade.verdict is Verdict.CORRECT)
    return {f"correct {condition}, {name}": sum(found) / len(found) for name, found in sorted(graded.items())}


def table(before: Measured, after: Measured) -> list[str]:
    """Return what was measured as lines; none where nothing was.

    >>> print("\\n".join(table({"held-out loss": 3.2}, {"held-out loss": 0.25})))
                                        before   after
    held-out loss                        3.200   0.250
    """
    lines = [f"{'':34}  {'before':>6}  {'after':>6}"] if after else []
    return [
        *lines,
        *(f"{name:34}  {before.get(name, float('nan')):6.3f}  {after[name]:6.3f}" for name in after),
    ]


def _lines(trainer: Supervised, reporter: Reporter) -> Callable[[int, int, float, float], None]:
    said = time.monotonic()

    def progress(done: int, steps: int, loss: float, elapsed_s: float) -> None:
        nonlocal said
        due = done == steps or time.monotonic() - said > LINES_EVERY_S
        said = time.monotonic() if due else said
        remaining = duration(elapsed_s / done * (steps - done))
        say = reporter.note if due else reporter.passing
        say(f"step {trainer.step}/{trainer.steps}  loss {loss:.4f}  remaining {remaining}")

    return progress
