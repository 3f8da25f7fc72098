"""Verified copies: an agent that checks is asked about a rollout from which its consultations were cut out.

A copy is approved only where that agent says so: not if it cannot be asked or says nothing clear. It matters
because a correct final answer proves little about the lines before it when the last reply contained that
answer (docs/method.md#consult-stripped-copies).
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aipo.agents.base import AgentQuery
from aipo.core.seeds import seed_of
from aipo.core.tokens import TokenStream
from aipo.rollout.asking import ask
from aipo.rollout.replies import ConsultContext


@dataclass(frozen=True, slots=True)
class Approval:
    """What the checking agent said of a copy, and the tokens that it took to say so."""

    approved: bool
    reply_tokens: int
    cost: float


async def approval(copy: TokenStream, problem: str, consult: ConsultContext, seed: int) -> Approval:
    """Ask whoever checks about a copy, within the deadline of any consultation.

    Raises `ValueError` if no agent checks.
    """
    if consult.checker is None:
        raise ValueError("no agent of agents.enabled approves of rollouts")
    text = consult.codec.text(copy.ids[copy.prompt_length :])
    query = AgentQuery(problem=problem, rollout=text, request="", seed=seed)
    answer = await ask(consult.checker, query, consult.agent_timeout_s)
    if answer.reply is None:
        return Approval(False, 0, answer.usage.cost)
    begin, end = consult.codec.feedback(answer.reply.text, consult.limits.max_feedback_tokens).content
    return Approval(answer.reply.approves is True, end - begin, answer.usage.cost)


async def approvals(
    copies: Iterable[tuple[TokenStream, str, str]], consult: ConsultContext, seed_path: Sequence[str | int]
) -> list[Approval]:
    """Ask about several at the same time: each a copy, its problem, and the id of the rollout copied.

    Raises `ValueError` if no agent checks.
    """
    return await asyncio.gather(
        *(approval(copy, problem, consult, seed_of(*seed_path, of)) for copy, problem, of in copies)
    )
