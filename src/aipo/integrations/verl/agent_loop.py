"""verl's agent loops `aipo`, `aipo_solo` and `aipo_agents`: the one rollout coroutine on verl's servers.

What an agent or a server does never leaves `run`: it is an outcome, or the rollout is UNGRADED.

verl imports this module in its agent-loop processes. A dataset's column `agent_name` chooses: `aipo` trains,
a group's first rollouts consulting and the others solo; `aipo_solo` evaluates without agents; `aipo_agents`
evaluates with them, to see what they are worth.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf
from ray.exceptions import RayError
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, register

from aipo.core.types import SoloMode
from aipo.engines.base import Sampling
from aipo.integrations.verl.engine import VerlEngine
from aipo.integrations.verl.output import AipoOutput, Measured, output_of
from aipo.integrations.verl.parts import RolloutParts, parts_of
from aipo.integrations.verl.plan import Plan
from aipo.integrations.verl.refusals import refuse
from aipo.rollout.group import GroupShape, Sampler
from aipo.tasks.base import Problem

LOST = (RayError, ValueError)
"""What verl's client raises for a server that died or refuses: the rollout is lost, the run decides."""


@register("aipo")
class AipoAgentLoop(AgentLoopBase):
    """A training rollout. verl makes one object for each rollout; the parts belong to the process."""

    def __init__(self, trainer_config: Any, server_manager: Any, tokenizer: Any, **_: Any) -> None:
        """Take what is needed of what verl gives. Its own `__init__` is left out: all that it adds is a
        builder that tokenises conversations, for each rollout anew and for the model families it knows.
        """
        self.server_manager = server_manager
        self._plan, self._parts = _of_process(trainer_config.config, tokenizer)

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AipoOutput:
        """Produce one rollout of the problem in `kwargs`, graded. Raises nothing that a server or agent does.

        Raises `ValueError` for a row that `aipo data export` did not write, or a prompt that is too long.
        """
        parts, plan = self._parts, self._plan
        problem = problem_of(kwargs)
        engine = VerlEngine(
            self.server_manager,
            parts.consult.codec.text,
            parts.end_ids,
            plan.generate_timeout_s,
            LOST,
        )
        shape = replace(self._shape(int(kwargs.get("session_id", 0))), sampling=_sampling(sampling_params))
        sampler = Sampler(engine=engine, consult=parts.consult, task=parts.task, prompts=parts.prompts)
        path: list[str | int] = ["verl", str(kwargs.get("uid", "")), int(kwargs.get("session_id", 0))]
        (group,) = await sampler.groups([problem], shape, path)
        (member,) = group.members
        prompt_ids = parts.prompts.ids(problem, member.condition)
        step = int(kwargs.get("global_steps", 0))
        measured = Measured(engine.generate_s, tuple(engine.versions), step)
        return output_of(member, prompt_ids, min(parts.end_ids), measured)

    def _shape(self, session: int) -> GroupShape:
        """Return a group of one: the rollout with this number in verl's group."""
        plan, parts = self._plan, self._parts
        if session < plan.consulting:
            return GroupShape(consulting=1, solo=0)
        banned = session >= plan.consulting + plan.solo - plan.banned
        return GroupShape(consulting=0, solo=1, solo_mode=SoloMode.BANNED if banned else parts.solo_mode)


@register("aipo_solo")
class AipoSoloLoop(AipoAgentLoop):
    """An evaluation rollout without agents, in the solo mode of the recipe."""

    def _shape(self, session: int) -> GroupShape:
        return GroupShape(consulting=0, solo=1, solo_mode=self._parts.solo_mode)


@register("aipo_agents")
class AipoAgentsLoop(AipoAgentLoop):
    """An evaluation rollout with agents."""

    def _shape(self, session: int) -> GroupShape:
        return GroupShape(consulting=1, solo=0)


LOOPS = {"aipo": AipoAgentLoop, "aipo_solo": AipoSoloLoop, "aipo_agents": AipoAgentsLoop}


def problem_of(row: Mapping[str, Any]) -> Problem:
    """Return the problem of a dataset's row. Raises `ValueError` for a row of another dataset."""
    info = row.get("extra_info")
    try:
        said = dict(info or {})["problem"]
        return Problem(
            id=str(said["id"]), text=str(said["text"]), gold=str(said["gold"]), stratum=str(said["stratum"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"extra_info = {info!r} holds no problem ({error!r}); write the dataset with `aipo data export`"
        ) from error


def _sampling(parameters: Mapping[str, Any]) -> Sampling:
    return Sampling(
        temperature=float(parameters.get("temperature", 1.0)),
        top_p=float(parameters.get("top_p", 1.0)),
        top_k=max(0, int(parameters.get("top_k", 0))),
    )


_CHECKED: dict[int, tuple[object, Plan, RolloutParts]] = {}


def _of_process(config: Any, tokenizer: Any) -> tuple[Plan, RolloutParts]:
    """Return this process's plan and parts; the configuration is checked at the first rollout."""
    if id(config) not in _CHECKED:
        refuse(config)
        table = OmegaConf.to_container(config.aipo, resolve=True)
        assert isinstance(table, dict)
        processes = int(config.actor_rollout_ref.rollout.agent.num_workers)
        named = {str(key): value for key, value in table.items()}
        parts = parts_of(named, tokenizer, processes)
        _CHECKED[id(config)] = (config, Plan.from_table(named["plan"]), parts)
    return _CHECKED[id(config)][1:]
