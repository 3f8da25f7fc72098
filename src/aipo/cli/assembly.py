"""Assembly: from settings to the parts of a run, checked before any compute is spent.

Owns which implementation stands behind which name. Must not hold logic of its own.
Invariant: what is assembled here fits together; every mismatch is one clear error that names field, value and
fix.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from aipo.agents.base import Agent
from aipo.agents.scripted import ScriptedAgent, Unreliability
from aipo.config.settings import ConsultSettings, Settings, TaskSettings
from aipo.consult.codec import TagCodec
from aipo.consult.limits import Limits
from aipo.consult.protocol import Protocol
from aipo.core.types import AgentName
from aipo.engines.transformers import TransformersEngine
from aipo.rollout.episode import Desk
from aipo.rollout.group import Prompts, Sampler
from aipo.tasks.base import Oracle, Split, Task
from aipo.tasks.jsonl import JsonlSource, JsonlTask
from aipo.tasks.leg_counting.oracle import LegCountingOracle
from aipo.tasks.leg_counting.task import LegCountingTask
from aipo.train.model import load_policy


class AssemblyError(ValueError):
    """The settings do not fit together."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that training, evaluation and `aipo rollout` need."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    sampler: Sampler


def prepare_process(settings: Settings) -> None:
    """Set threads and determinism of this process, and keep the bars of a library out of ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    disable_progress_bar()
    torch.set_num_threads(settings.run.threads)
    torch.manual_seed(settings.run.seed)
    if settings.run.device.startswith("cuda") and not torch.cuda.is_available():
        raise AssemblyError(
            f"run.device = {settings.run.device!r} but torch sees no GPU; set run.device = 'cpu'"
        )


def assemble(settings: Settings, agents: Mapping[AgentName, Agent] | None = None) -> Parts:
    """Build all parts; `agents` of your own take the place of scripted ones.

    Raises `ValueError` subclasses, each one sentence with the fix.
    """
    prepare_process(settings)
    task = build_task(settings.task)
    oracle = oracle_of(settings)
    protocol = build_protocol(settings.consult, settings.agents.enabled)
    limits = Limits(
        settings.consult.max_consultations if settings.agents.enabled else 0,
        settings.consult.max_feedback_tokens,
        settings.rollout.max_response_tokens,
    )
    model, tokenizer = load_policy(settings.policy, settings.run.device)
    codec = TagCodec(tokenizer, protocol)
    _check_room(settings, codec)
    desk = Desk(protocol, codec, limits, _agents(settings, oracle, agents), settings.agents.timeout_s)
    capacity = settings.rollout.max_prompt_tokens + settings.rollout.max_response_tokens
    engine = TransformersEngine(model, tokenizer, slots=settings.rollout.slots, capacity=capacity)
    prompts = Prompts(
        tokenizer,
        desk,
        settings.consult.consulting_prompt,
        settings.consult.solo_prompt,
        settings.rollout.max_prompt_tokens,
    )
    expert = oracle.solution if oracle else None
    return Parts(model, tokenizer, task, Sampler(engine, desk, task, prompts, expert))


def build_task(settings: TaskSettings) -> Task:
    """Return the named task."""
    if settings.name == "leg_counting":
        return LegCountingTask()
    files = {
        Split.TRAIN: settings.train_file,
        Split.VALIDATION: settings.validation_file,
        Split.TEST: settings.test_file,
    }
    columns = (settings.problem_field, settings.answer_field, settings.answer_after)
    sources = {split: JsonlSource(path, *columns) for split, path in files.items() if path}
    return JsonlTask(sources, settings.match, settings.grade_timeout_s, settings.grade_workers)


def build_protocol(consult: ConsultSettings, enabled: tuple[AgentName, ...]) -> Protocol:
    """Return the protocol of the settings."""
    return Protocol(consult.tags, consult.feedback_tag, enabled)


def oracle_of(settings: Settings) -> Oracle | None:
    """Return the task's own oracle, if it has one."""
    if settings.task.name != "leg_counting":
        return None
    default = ConsultSettings()
    if settings.consult.tags != default.tags or settings.consult.feedback_tag != default.feedback_tag:
        raise AssemblyError(
            "consult.tags: the oracle of leg_counting reads the default tags only; leave them as they are"
        )
    return LegCountingOracle()


def _agents(
    settings: Settings, oracle: Oracle | None, own: Mapping[AgentName, Agent] | None
) -> dict[AgentName, Agent]:
    a = settings.agents
    if not a.enabled:
        return {}
    if own is not None:
        if missing := set(a.enabled) - set(own):
            raise AssemblyError(f"agents.enabled names {sorted(missing)}, but no such agent was given")
        return {name: own[name] for name in a.enabled}
    if oracle is None:
        raise AssemblyError(
            f"agents.backend = {a.backend!r}: task {settings.task.name!r} has no oracle to script "
            "agents with; give agents of your own (README, 'Your own agents'), or set agents.enabled = [] "
            "for plain RLVR"
        )
    unreliability = Unreliability(a.error_rate, a.failure_rate, a.latency_s)
    return {name: ScriptedAgent(name, oracle.feedback, unreliability) for name in a.enabled}


def _check_room(settings: Settings, codec: TagCodec) -> None:
    block = codec.request_room(settings.consult.max_feedback_tokens)
    if settings.agents.enabled and settings.rollout.max_response_tokens <= block + 2:
        raise AssemblyError(
            f"rollout.max_response_tokens = {settings.rollout.max_response_tokens} has no room for one "
            f"feedback of {block} tokens; raise it or lower consult.max_feedback_tokens = "
            f"{settings.consult.max_feedback_tokens}"
        )
