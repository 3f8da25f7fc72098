"""A rollout on its way into verl's data plane.

Every record has `token_sources`, one `Source` for each response token, and `aipo`, what the trainer must know
of a rollout; of a failed rollout too, because verl's transfer queue drops a field from a whole batch where
one record lacks it. An UNGRADED rollout is carried as SCAFFOLD, which nothing trains on.
"""

from dataclasses import dataclass
from typing import Any

import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

from aipo.core.rewards import REWARD, reward_of
from aipo.core.types import Condition, ConsultOutcome, Source, Verdict
from aipo.integrations.verl.about import ABOUT, table_of
from aipo.integrations.verl.loss import SOURCES
from aipo.rollout.episode import Consultation
from aipo.rollout.group import MemberRollout


class AipoOutput(AgentLoopOutput):
    """verl's output with the source of every response token."""

    token_sources: list[int]

    def as_dict(self) -> dict[str, Any]:
        """Return verl's fields and `token_sources` as a tensor: a list would not become a per-token field."""
        values = super().as_dict()
        values[SOURCES] = torch.tensor(self.token_sources, dtype=torch.int64)
        return values


@dataclass(frozen=True, slots=True)
class Measured:
    """What a rollout took, and the versions of the weights behind it."""

    generate_s: float
    versions: tuple[int, ...]
    step: int
    """verl's step when it was asked for: the version of a rollout that nothing was sampled of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What a record holds beside the rollout."""

    prompt_ids: tuple[int, ...]
    """Of a rollout that the engine lost."""
    solo_prompt_ids: tuple[int, ...]
    """What a consult-stripped copy begins with."""
    end_id: int
    expert: bool = False
    """Whether nobody sampled it: an expert's solution."""


def output_of(member: MemberRollout, around: Around, measured: Measured) -> AipoOutput:
    """Return verl's record of a rollout. One that the engine lost holds a single end token as SCAFFOLD."""
    produced = member.rollout
    verdict = member.grade.verdict
    if produced is None:
        prompt_ids = around.prompt_ids
        ids: tuple[int, ...] = (around.end_id,)
        log_probs: tuple[float, ...] = (0.0,)
        sources: tuple[Source, ...] = (Source.SCAFFOLD,)
        consultations: tuple[Consultation, ...] = ()
    else:
        begin = produced.stream.prompt_length
        prompt_ids, ids = produced.stream.ids[:begin], produced.stream.ids[begin:]
        log_probs = produced.stream.log_probs[begin:]
        sources = produced.stream.sources[begin:]
        if verdict is Verdict.UNGRADED:
            sources = (Source.SCAFFOLD,) * len(ids)
        consultations = produced.consultations
    versions = measured.versions or (measured.step,)
    solo_ids = around.solo_prompt_ids if _may_be_copied(member) else ()
    return AipoOutput(
        prompt_ids=list(prompt_ids),
        response_ids=list(ids),
        response_mask=[int(source is Source.POLICY) for source in sources],
        response_logprobs=list(log_probs),
        token_sources=[int(source) for source in sources],
        # verl asks its own reward loop where there is none; the trainer takes UNGRADED rollouts out.
        reward_score=0.0 if verdict is Verdict.UNGRADED else reward_of(verdict, member.grade.reward),
        num_turns=2 + 2 * len(consultations),
        metrics=AgentLoopMetrics(
            generate_sequences=measured.generate_s, tool_calls=sum(c.latency_s for c in consultations)
        ),
        extra_fields={
            ABOUT: table_of(member, solo_ids, around.expert),
            "reward_extra_info": _reward_info(verdict),
            "min_global_steps": min(versions),
            "max_global_steps": max(versions),
            "turn_scores": [],
            "tool_rewards": [],
        },
    )


def _may_be_copied(member: MemberRollout) -> bool:
    """Say whether a consult-stripped copy of it can be wanted; the trainer decides."""
    produced = member.rollout
    return (
        produced is not None
        and member.condition is Condition.CONSULTING
        and any(c.outcome is ConsultOutcome.ANSWERED for c in produced.consultations)
    )


def _reward_info(verdict: Verdict) -> dict[str, float]:
    """Return what verl's validation averages: `acc_success_only` leaves UNGRADED out, `acc` counts it 0."""
    ungraded = {"ungraded": float(verdict is Verdict.UNGRADED)}
    return ungraded if verdict is Verdict.UNGRADED else {"acc": REWARD[verdict], **ungraded}
