"""What a rollout needs in a process of verl: the context it consults in, the task, the prompts.

`aipo.parts` of verl's configuration names the function that builds them: `recipe`, which reads the recipe in
the configuration, or one of yours as `module:attribute`, for agents of your own. Each process builds one set,
so that its agents share their limits and cache. No model is loaded: the policy stands on verl's servers.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from aipo.assembly.agents import build_agents, oracle_of
from aipo.assembly.judges import Judges
from aipo.assembly.parts import build_prompts, build_task
from aipo.config.settings import Settings
from aipo.core.registry import Registry
from aipo.core.types import SoloMode
from aipo.engines.stops import ends_of
from aipo.integrations.verl.recipe import recipe_of
from aipo.rollout.group import Prompts
from aipo.rollout.replies import ConsultContext
from aipo.rollout.reward import Rewarding, reward_rule
from aipo.tasks.base import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutParts:
    """Everything that a rollout needs but the engine."""

    consult: ConsultContext
    task: Task
    prompts: Prompts
    end_ids: frozenset[int]
    """Ids that end a turn."""
    reward: Rewarding | None = None
    """None: what is learnt from is the verdict."""
    solo_mode: SoloMode = SoloMode.UNANSWERED


Builder = Callable[[Mapping[str, Any], Any, int], RolloutParts]
"""(the table `aipo` of verl's configuration, the tokenizer, agent-loop processes that share the agents)."""

BUILDERS: Registry[Builder] = Registry("aipo.parts", callable)
_BUILT: dict[int, tuple[object, RolloutParts]] = {}
_LOCK = threading.Lock()


def parts_of(table: Mapping[str, Any], tokenizer: Any, processes: int) -> RolloutParts:
    """Return this process's parts, built by `table["parts"]` at the first call with this tokenizer.

    Raises `RegistryError` for a name that leads to no function, and what the function raises.
    """
    with _LOCK:
        if id(tokenizer) not in _BUILT:
            # The tokenizer is kept with them: an id may be given again to another object.
            _BUILT[id(tokenizer)] = (tokenizer, BUILDERS[str(table["parts"])](table, tokenizer, processes))
        return _BUILT[id(tokenizer)][1]


def build(table: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, processes: int) -> RolloutParts:
    """Return the parts of one process of several, with the context, task and prompts of `aipo train`.

    Each process asks a share of `agents.concurrency` at a time. Raises `ValueError` subclasses.
    """
    settings = _sharing(recipe_of(table), processes)
    prompts = build_prompts(settings, tokenizer, build_agents(settings, oracle_of(settings)).agents)
    return RolloutParts(
        consult=prompts.consult,
        task=build_task(settings.task, settings.sandbox),
        prompts=prompts,
        end_ids=_end_ids(settings.policy.model, tokenizer),
        reward=reward_rule(settings.task, Judges(settings, use_cache=True)),
        solo_mode=SoloMode.BANNED if settings.evaluate.modes == ("banned",) else SoloMode.UNANSWERED,
    )


BUILDERS.register("recipe", build)


def _sharing(settings: Settings, processes: int) -> Settings:
    """Return the settings of one of so many processes that ask the same endpoints."""
    agents = settings.agents
    share: dict[str, Any] = {"concurrency": max(1, agents.concurrency // processes)}
    for name, own in agents.tables.items():
        if own.concurrency is not None:
            share[name] = own.model_copy(update={"concurrency": max(1, own.concurrency // processes)})
    return settings.model_copy(update={"agents": agents.model_copy(update=share)})


def _end_ids(model: str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end a turn: the tokenizer's, the template's, and vLLM's of the model's folder."""
    try:
        settings = GenerationConfig.from_pretrained(model)
    except OSError:  # a folder without generation_config.json
        settings = None
    return ends_of(settings, tokenizer)
