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

from aipo.config.settings import Settings
from aipo.core.tokens import TokenStream
from aipo.core.types import Condition, SoloMode, StopReason, Verdict
from aipo.engines.base import Sampling
from aipo.grading import Grade
from aipo.integrations.verl.engine import VerlEngine
from aipo.integrations.verl.output import AipoOutput, Around, Measured, output_of
from aipo.integrations.verl.parts import RolloutParts, parts_of
from aipo.integrations.verl.problems import problem_of
from aipo.integrations.verl.recipe import generate_timeout_s, recipe_of
from aipo.integrations.verl.refusals import refuse
from aipo.rollout.episode import Rollout
from aipo.rollout.group import GroupShape, MemberRollout, Sampler, solution_of
from aipo.tasks.base import Problem
from aipo.training.schedule import shape_at

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
        self._settings, self._timeout_s, self._parts = _of_process(trainer_config.config, tokenizer)

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AipoOutput:
        """Produce one rollout of the problem in `kwargs`, graded. Raises nothing that a server or agent does.

        Raises `ValueError` for a row that `aipo data export` did not write, or a prompt that is too long.
        """
        parts = self._parts
        problem, session = problem_of(kwargs), int(kwargs.get("session_id", 0))
        step = int(kwargs.get("global_steps", 0))
        shape = replace(self._shape(session, step), sampling=_sampling(sampling_params))
        engine = VerlEngine(
            self.server_manager, parts.consult.codec.text, parts.end_ids, self._timeout_s, LOST
        )
        sampler = Sampler(
            engine=engine, consult=parts.consult, task=parts.task, prompts=parts.prompts, reward=parts.reward
        )
        path: list[str | int] = ["verl", str(kwargs.get("uid", "")), session]
        (group,) = await sampler.groups([problem], shape, path)
        member = group.members[0] if group.members else _expert(group.experts[0], problem)
        around = Around(
            prompt_ids=parts.prompts.ids(problem, member.condition),
            solo_prompt_ids=group.solo_prompt_ids,
            end_id=min(parts.end_ids),
            expert=bool(group.experts),
        )
        return output_of(member, around, Measured(engine.generate_s, tuple(engine.versions), step))

    def _shape(self, session: int, step: int) -> GroupShape:
        """Return a group of one: the rollout with this number in verl's group, or the expert."""
        whole = shape_at(self._settings, step)
        rollouts = whole.consulting + whole.solo
        if session < whole.consulting:
            return GroupShape(consulting=1, solo=0)
        if session >= rollouts:
            return GroupShape(consulting=0, solo=0, experts=1)
        banned = session >= rollouts - whole.banned
        return GroupShape(consulting=0, solo=1, solo_mode=SoloMode.BANNED if banned else SoloMode.UNANSWERED)


@register("aipo_solo")
class AipoSoloLoop(AipoAgentLoop):
    """An evaluation rollout without agents, in the solo mode of the recipe."""

    def _shape(self, session: int, step: int) -> GroupShape:
        return GroupShape(consulting=0, solo=1, solo_mode=self._parts.solo_mode)


@register("aipo_agents")
class AipoAgentsLoop(AipoAgentLoop):
    """An evaluation rollout with agents."""

    def _shape(self, session: int, step: int) -> GroupShape:
        return GroupShape(consulting=1, solo=0)


LOOPS = {"aipo": AipoAgentLoop, "aipo_solo": AipoSoloLoop, "aipo_agents": AipoAgentsLoop}


def _expert(stream: TokenStream, problem: Problem) -> MemberRollout:
    """Return an expert's solution in the form of a rollout: nothing was sampled and nobody was asked."""
    produced = Rollout(
        stream=stream,
        response=solution_of(problem),
        policy_text="",
        stop=StopReason.END,
        consultations=(),
        consult_spans=(),
    )
    return MemberRollout(
        id=problem.id, condition=Condition.SOLO, rollout=produced, grade=Grade(Verdict.CORRECT, "expert")
    )


def _sampling(parameters: Mapping[str, Any]) -> Sampling:
    return Sampling(
        temperature=float(parameters.get("temperature", 1.0)),
        top_p=float(parameters.get("top_p", 1.0)),
        top_k=max(0, int(parameters.get("top_k", 0))),
    )


_CHECKED: dict[int, tuple[object, Settings, float, RolloutParts]] = {}


def _of_process(config: Any, tokenizer: Any) -> tuple[Settings, float, RolloutParts]:
    """Return this process's recipe, deadline and parts; the first rollout checks the configuration."""
    if id(config) not in _CHECKED:
        refuse(config)
        table = OmegaConf.to_container(config.aipo, resolve=True)
        assert isinstance(table, dict)
        processes = int(config.actor_rollout_ref.rollout.agent.num_workers)
        named = {str(key): value for key, value in table.items()}
        parts = parts_of(named, tokenizer, processes)
        _CHECKED[id(config)] = (config, recipe_of(named), generate_timeout_s(named), parts)
    return _CHECKED[id(config)][1:]
