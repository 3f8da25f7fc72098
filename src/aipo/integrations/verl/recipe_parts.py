"""The parts of a rollout in a process of verl, from the recipe in its configuration: `aipo.parts`.

Owns that way for whoever has no agents of their own; see `integrations/verl/parts.py` for the seam.
Must not load a model: the policy stands on verl's servers. Invariant: consult, task and prompts are those of
`aipo train` with the same recipe.
"""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from aipo.assembly.agents import build_agents
from aipo.assembly.parts import build_protocol, build_task, oracle_of
from aipo.config.layers import Layers
from aipo.config.settings import Settings
from aipo.consult.codec import TagCodec
from aipo.consult.limits import Limits
from aipo.core.types import SoloMode
from aipo.integrations.verl.parts import Parts
from aipo.rollout.episode import ConsultContext
from aipo.rollout.group import Prompts
from aipo.rollout.leaks import LeakPolicy


def build(table: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, processes: int) -> Parts:
    """Return the parts of one of so many processes; see `integrations.verl.parts.Builder`.

    Each process asks a share of `agents.concurrency` at a time. Raises `ValueError` subclasses.
    """
    settings = _sharing(recipe_of(table), processes)
    protocol = build_protocol(settings.consult, settings.agents.enabled)
    limits = Limits(
        settings.consult.max_consultations if settings.agents.enabled else 0,
        settings.consult.max_feedback_tokens,
        settings.rollout.max_response_tokens,
    )
    crew = build_agents(settings, oracle_of(settings))
    codec = TagCodec(tokenizer, protocol)
    leaks = LeakPolicy(settings.consult.leak_policy)
    consult = ConsultContext(protocol, codec, limits, crew.agents, settings.agents.timeout_s, leaks)
    return Parts(
        consult,
        build_task(settings.task, settings.sandbox),
        prompts_of(settings, tokenizer, consult),
        _end_ids(settings.policy.model, tokenizer),
        SoloMode.BANNED if settings.evaluate.modes == ("banned",) else SoloMode.UNANSWERED,
    )


def prompts_of(settings: Settings, tokenizer: PreTrainedTokenizerBase, consult: ConsultContext) -> Prompts:
    """Return the two prompts of a recipe."""
    texts = (settings.consult.consulting_prompt, settings.consult.solo_prompt)
    return Prompts(tokenizer, consult, *texts, settings.rollout.max_prompt_tokens)


def recipe_of(table: Mapping[str, Any]) -> Settings:
    """Return the recipe inside the table `aipo`. Raises `SettingsError`."""
    layers = Layers("aipo.recipe of verl's configuration")
    layers.add_table(Settings, table["recipe"], "aipo.recipe")
    return layers.validate(Settings)


def _sharing(settings: Settings, processes: int) -> Settings:
    """Return the settings of one of so many processes that ask the same endpoints."""
    agents = settings.agents
    share = {"concurrency": max(1, agents.concurrency // processes)}
    for name in agents.enabled:
        own = getattr(agents, name)
        if own.concurrency is not None:
            share[name] = own.model_copy(update={"concurrency": max(1, own.concurrency // processes)})
    return settings.model_copy(update={"agents": agents.model_copy(update=share)})


def _end_ids(model: str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end a turn: the tokenizer's, and those that vLLM takes of the model's folder."""
    try:
        configured = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # a folder without generation_config.json
        configured = None
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
