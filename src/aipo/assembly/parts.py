"""Assembly: from settings to the parts of a run, checked before any compute is spent.

What is assembled here fits together; every mismatch is one clear error that names field, value and fix.
"""

import ctypes
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from aipo.agents.base import Agent
from aipo.assembly.agents import AgentSet, build_agents, oracle_of
from aipo.assembly.engines import ENGINES, PolicyEngine, build_engine
from aipo.assembly.fitting import Fitting
from aipo.assembly.formats import build_format
from aipo.assembly.judges import Judges
from aipo.config.settings import SandboxSettings, Settings, TaskSettings
from aipo.consult.codec import Codec
from aipo.consult.limits import Limits
from aipo.consult.prompts import check_template
from aipo.rollout.group import Prompts, Sampler
from aipo.rollout.replies import ConsultContext
from aipo.rollout.reward import reward_rule
from aipo.tasks.base import Problem, Split, Task, TaskError, TaskSpec
from aipo.tasks.benchmarks.catalogue import BENCHMARKS
from aipo.tasks.benchmarks.load import refuse_evaluation_file
from aipo.tasks.registry import TASKS, task_spec
from aipo.training.credit import REWARDS
from aipo.training.device import settled, the_device, use_tf32
from aipo.training.model import load_policy
from aipo.training.ranks import ALONE, Ranks

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_TRIM_FROM_BYTES = 2**31 - 1
_MMAP_FROM_BYTES = 32 * 2**20  # glibc takes no more


class AssemblyError(ValueError):
    """The settings do not fit together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything that training, evaluation and `aipo rollout` need."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    sampler: Sampler
    agent_set: AgentSet
    policy_engine: PolicyEngine
    fitting: Fitting

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return the problems of a split whose prompts fit. Raises `TaskError`; see `Fitting`."""
        return self.fitting.problems(split)

    def close(self) -> None:
        """End what was started for these parts: a policy server."""
        self.policy_engine.close()


def prepare_process(settings: Settings) -> None:
    """Set threads, determinism and heap of this process, and keep the bars of a library out of ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    disable_progress_bar()
    if settings.run.threads:  # else torch's own number: OMP_NUM_THREADS, or all cores
        torch.set_num_threads(settings.run.threads)
    torch.manual_seed(settings.run.seed)
    use_tf32(settings.policy)
    if the_device(settings.run.device) == "cpu":
        tune_malloc()


def tune_malloc() -> bool:
    """Have glibc keep what is freed for what comes next; return whether it does.

    What a user has set by glibc's own variables (`MALLOC_TRIM_THRESHOLD_` and its like) stays as it is.

    On a CPU each micro-batch frees its activations and the next one asks for as many. By itself glibc gives
    them back to the kernel in between, which hands out zeroed pages again: 4 to 7 % of a step's time
    (`benchmarks/step.py`). Tensors above 32 MiB still come and go by themselves. Degenerate case: another C
    library, nothing happens.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    set_trim = mallopt(_M_TRIM_THRESHOLD, _TRIM_FROM_BYTES)
    set_mmap = mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES)
    return bool(set_trim and set_mmap)


def refuse_unknown_names(settings: Settings) -> None:
    """Raise `RegistryError` for a task, an engine or a reward that does not exist; nothing is imported."""
    if settings.task.name:
        TASKS.check(settings.task.name)
    ENGINES.check(settings.engine.name)
    REWARDS.check(settings.train.reward)


def assemble(
    settings: Settings,
    agents: Mapping[str, Agent] | None = None,
    use_cache: bool = True,
    log_folder: Path | None = None,
    task: Task | None = None,
    ranks: Ranks = ALONE,
) -> Parts:
    """Build all parts; `agents` and a `task` of your own take the place of those in the settings.

    Called on all `ranks` at once. Policy servers that are started (engine.start) log to `log_folder`;
    `Parts.close` ends them.
    Raises `ValueError` subclasses, each one sentence with the fix.
    """
    refuse_unknown_names(settings)
    settings = settled(settings)
    prepare_process(settings)
    oracle = oracle_of(settings) if task is None else None
    task = build_task(settings.task, settings.sandbox) if task is None else task
    judges = Judges(settings, use_cache)
    reward = reward_rule(settings.task, judges)
    agent_set = build_agents(settings, oracle, agents, use_cache).beside(judges.record)
    model, tokenizer = load_policy(settings.policy, settings.run.device)
    prompts = build_prompts(settings, tokenizer, agent_set.agents)
    _check_room(settings, prompts.consult.codec)
    engine = build_engine(settings, model, tokenizer, log_folder, ranks)
    sampler = Sampler(
        engine=engine.engine, consult=prompts.consult, task=task, prompts=prompts, reward=reward
    )
    return Parts(
        model=model,
        tokenizer=tokenizer,
        task=task,
        sampler=sampler,
        agent_set=agent_set,
        policy_engine=engine,
        fitting=Fitting(task=task, prompts=prompts, on_bad_row=settings.task.on_bad_row),
    )


def build_prompts(
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    agents: Mapping[str, Agent],
    max_prompt_tokens: int | None = None,
    max_response_tokens: int | None = None,
) -> Prompts:
    """Return what rollouts begin with and consult in: prompts; protocol, codec, limits, agents, leaks.

    Training, evaluation and verl's plugin all have them from here. The two limits, where given, take the
    place of those of the settings. Without agents, no consultation is answered.
    """
    consult, rollout = settings.consult, settings.rollout
    check_template(tokenizer)
    protocol, codec = build_format(settings, tokenizer)
    limits = Limits(
        consult.max_consultations if agents else 0,
        consult.max_feedback_tokens,
        rollout.max_response_tokens if max_response_tokens is None else max_response_tokens,
    )
    context = ConsultContext(
        protocol=protocol,
        codec=codec,
        limits=limits,
        agents=agents,
        agent_timeout_s=settings.agents.timeout_s,
        leak_policy=consult.leak_policy,
        checker=next(
            (agents[s.name] for s in settings.agents.specs() if s.approves and s.name in agents), None
        ),
    )
    longest = rollout.max_prompt_tokens if max_prompt_tokens is None else max_prompt_tokens
    return Prompts(
        tokenizer=tokenizer,
        consult=context,
        consulting_override=consult.consulting_prompt,
        solo_override=consult.solo_prompt,
        max_prompt_tokens=longest,
        date=settings.policy.date,
    )


def by_name(agents: Mapping[str, Agent] | Iterable[Agent] | None) -> Mapping[str, Agent] | None:
    """Return a user's agents by their names, also where they come as a list; None stays None."""
    if agents is None or isinstance(agents, Mapping):
        return agents
    return {agent.name: agent for agent in agents}


def build_task(settings: TaskSettings, sandbox: SandboxSettings | None = None) -> Task:
    """Return the named task. Without `sandbox`, its defaults."""
    return make_task(task_spec(settings.name), settings, sandbox)


def make_task(spec: TaskSpec, settings: TaskSettings, sandbox: SandboxSettings | None = None) -> Task:
    """Return the task of an entry. Raises `TaskError` for problems that cannot be used."""
    files = (name for name in ("train_file", "validation_file", "test_file") if getattr(settings, name))
    if not spec.takes_files and (given := next(files, None)):
        raise TaskError(
            f"task.{given} = {str(getattr(settings, given))!r}: task.name = {spec.name!r} makes its own "
            "problems and reads no file; leave it out, or set task.name = 'jsonl'"
        )
    if settings.train_file:
        described = (benchmark for _, benchmark in BENCHMARKS.items())
        refuse_evaluation_file(settings.train_file, "task.train_file", described)
    unknown = [name for name in settings.options if name not in spec.options]
    if unknown and not spec.open_options:
        raise TaskError(
            f"task.options.{unknown[0]}: task {spec.name!r} has no such option; it has "
            f"{', '.join(spec.options) or 'none'}"
        )
    settings = settings.model_copy(update={"options": {**spec.options, **settings.options}})
    return spec.make(settings, sandbox or SandboxSettings())


def _check_room(settings: Settings, codec: Codec) -> None:
    block = codec.request_room(settings.consult.max_feedback_tokens)
    if settings.agents.enabled and settings.rollout.max_response_tokens <= block + 2:
        raise AssemblyError(
            f"rollout.max_response_tokens = {settings.rollout.max_response_tokens} has no room for one "
            f"feedback of {block} tokens; raise it or lower consult.max_feedback_tokens = "
            f"{settings.consult.max_feedback_tokens}"
        )
