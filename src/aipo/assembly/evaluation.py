"""How good a policy is alone on the settings' task: sampled, recorded once, and not sampled again."""

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aipo.agents.base import Agent
from aipo.assembly.benchmarks import DIGEST_DIGITS, digest
from aipo.assembly.checkpoint import evaluate_checkpoint
from aipo.assembly.evaluation_options import NO_OPTIONS, EvaluationOptions
from aipo.assembly.judges import judges_of
from aipo.assembly.parts import Parts, assemble, by_name
from aipo.config.settings import Settings
from aipo.consult.prompts import dated
from aipo.engines.base import Sampling
from aipo.evaluation.manifest import fingerprint, locked
from aipo.evaluation.records import SCHEMA, EvaluationRecord, append_record, read_records
from aipo.evaluation.samples import SAMPLES, SampleFile, results
from aipo.evaluation.sampling import Evaluator, SamplingPlan, first_of_each_stratum
from aipo.tasks.base import Problem, Split, Task
from aipo.training.device import settled
from aipo.training.events import Reporter, Silent
from aipo.training.journal import EVALUATION, TIMINGS, NotRecordedError

SILENT = Silent()
PROBLEMS_AT_ONCE = 16
NOTHING_KNOWN: Mapping[str, str | int | float] = MappingProxyType({})


def evaluate(
    policy: Settings | Path | str,
    *,
    checkpoint: Path | str = "",
    method: str = "policy",
    task: Task | None = None,
    agents: Mapping[str, Agent] | Iterable[Agent] | None = None,
    reporter: Reporter | None = None,
    options: EvaluationOptions = NO_OPTIONS,
) -> list[EvaluationRecord]:
    """Evaluate a policy without agents: settings on their task, a checkpoint on benchmarks.

    Settings: in each mode of `evaluate.modes`. Appends to `evaluation.jsonl` in run.output and returns the
    records; what is recorded there of this very policy and these problems is not sampled again. A checkpoint:
    as `assembly.checkpoint.evaluate_checkpoint` does; one record for each benchmark, named by `split`.

    Args:
        policy: From `load_settings`; or a model folder or hub id, for which `options` and `reporter` count.
        checkpoint: The policy; without it, `policy.model`.
        method: What tables call this policy.
        task: Your own task, in the place of the one that the settings name.
        agents: Your own agents, for the mode `agents`.
        reporter: Where progress goes; without one, to the logger `aipo`. Nothing is printed.
        options: Which benchmarks, and how they are sampled; the command's options.

    Raises:
        ValueError: The settings are wrong or do not fit together.
        StopRunError: Too many samples could not be graded; nothing of them was recorded.
    """
    if not isinstance(policy, Settings):
        return evaluate_checkpoint(str(policy), options, reporter=reporter).records()
    settings = settled(policy)
    if checkpoint:
        model = settings.policy.model_copy(update={"model": str(checkpoint)})
        settings = settings.model_copy(update={"policy": model})
    n, reporter = settings.evaluate.samples_per_problem, reporter or Reporter()
    with closing(assemble(settings, by_name(agents), True, settings.run.output, task)) as parts:
        return asyncio.run(evaluate_run(settings, parts, 0, n, method, _known(settings, parts), reporter))


async def evaluate_run(
    settings: Settings,
    parts: Parts,
    step: int,
    samples: int,
    method: str = "",
    known: Mapping[str, str | int | float] = NOTHING_KNOWN,
    reporter: Reporter = SILENT,
) -> list[EvaluationRecord]:
    """Evaluate in every mode of the settings, append the records, and return those of this step.

    A mode that is recorded already is not sampled again, if that was this very evaluation: the same step,
    method, split, problems and samples, and what is `known` of the policy and of the sampling. Where
    something is known, each sample is kept in `samples.jsonl` and not made again; in training nothing is.
    """
    plan, path = settings.evaluate, settings.run.output / EVALUATION
    problems = first_of_each_stratum(parts.problems(Split(plan.split)), plan.problems)
    path.parent.mkdir(parents=True, exist_ok=True)
    run = settings.run.output.name
    asked = [(problem.id, samples) for problem in problems]
    done = {
        r.mode: r
        for r in (read_records(path) if path.exists() else ())
        if (r.step, r.method, r.split) == (step, method or run, plan.split)
        and [(result.problem, result.samples) for result in r.results] == asked
        and all(r.meta.get(name, value) == value for name, value in known.items())
    }
    evaluator = Evaluator(
        sampler=parts.sampler,
        batch=PROBLEMS_AT_ONCE * samples,
        max_ungraded_share=settings.train.max_ungraded_share,
        ungraded_option="train.max_ungraded_share =",
        mended="give the same command: nothing of this evaluation was recorded",
        reporter=reporter,
    )
    with locked(path.with_name(SAMPLES)) if known else nullcontext(False) as ours:
        log = SampleFile(path.parent) if ours else None  # of two at once, one keeps its samples
        if log is not None:
            log.append([])  # cuts off what a crash tore
        recorded = {k: s for k, s in log.read().items() if s.graded} if log else {}
        for mode in plan.modes:
            if mode in done:
                continue
            begun = time.monotonic()
            how = _plan(settings, parts, mode, samples)
            if log is not None:
                how = replace(how, policy=str(known["policy"]), questions=_digest(settings, parts, problems))
            done[mode] = EvaluationRecord(
                schema=SCHEMA,
                run=run,
                method=method or run,
                seed=settings.run.seed,
                step=step,
                split=plan.split,
                mode=mode,
                results=results(await evaluator.run(problems, how, log, recorded)),
                meta=dict(known),
            )
            _record(path, done[mode], time.monotonic() - begun)
    return [done[mode] for mode in plan.modes]


def _plan(settings: Settings, parts: Parts, mode: str, samples: int) -> SamplingPlan:
    plan = settings.evaluate
    return SamplingPlan(
        mode=mode,
        samples=samples,
        sampling=Sampling(temperature=plan.temperature, exact_log_probs=False),
        seed_path=(plan.seed, "evaluate", mode),
        max_response_tokens=settings.rollout.max_response_tokens,
        benchmark=parts.task.name,
        condition=mode,
    )


def _digest(settings: Settings, parts: Parts, problems: Sequence[Problem]) -> str:
    """Return a digest of the problems, and of all settings that decide a sample and its verdict."""
    deciding = {
        "problems": digest(parts.task, problems),
        "temperature": settings.evaluate.temperature,
        "consult": settings.consult.model_dump(mode="json"),
        "limits": [settings.rollout.max_prompt_tokens, settings.rollout.max_response_tokens],
        "policy": [settings.policy.precision, settings.engine.name],
        "agents": {str(name): dict(record) for name, record in parts.agent_set.record.items()},
    }
    if dated(parts.tokenizer):
        deciding["date"] = settings.policy.date
    if settings.task.reward:
        deciding["reward"] = _reward(settings)  # who judges stands among the agents
    return sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:DIGEST_DIGITS]


def _known(settings: Settings, parts: Parts) -> dict[str, str | int | float]:
    """Return what tells one evaluation into a folder from another; a run's own settings cannot change."""
    folder, plan = Path(settings.policy.model), settings.evaluate
    policy = fingerprint(folder) if folder.is_dir() else settings.policy.model
    known: dict[str, str | int | float] = {
        "policy": policy,
        "temperature": plan.temperature,
        "seed": plan.seed,
    }
    if settings.task.reward:
        judges = [{name: parts.agent_set.record[name]} for name in judges_of(settings.task)]
        known["reward"] = json.dumps([*_reward(settings), *judges])
    return known


def _reward(settings: Settings) -> list[Any]:
    return [settings.task.reward, settings.task.reward_threshold]


def _record(path: Path, record: EvaluationRecord, evaluate_s: float) -> None:
    """Append a record and the time that it took. Raises `NotRecordedError`."""
    try:
        append_record(path, record)
        with path.with_name(TIMINGS).open("a") as timings:
            timings.write(json.dumps({"step": record.step, "evaluate_s": evaluate_s}) + "\n")
    except OSError as error:
        raise NotRecordedError(
            f"{str(path)!r} could not be written ({error}); make room. The same command makes this "
            "evaluation again"
        ) from error
