"""Verified copies on verl's driver: only those copies are learnt from that the checking agent approves of.

The agents of the agent-loop processes are idle then, so that the driver asks with all of their concurrency.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aipo.integrations.verl.credit import Taught
from aipo.rollout.copies import approvals
from aipo.rollout.replies import ConsultContext


class NobodyChecksError(ValueError):
    """`algorithm.verified_copies` without an agent that approves of rollouts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What is left to be learnt from, and what it took to ask."""

    taught: list[Taught]
    asked: int
    refused: int
    cost: float
    reply_tokens: int


async def verified(
    taught: Sequence[Taught], consult: ConsultContext, seed_path: Sequence[str | int]
) -> Verified:
    """Ask about every copy, each within the deadline of a consultation. Raises `NobodyChecksError`."""
    if consult.checker is None:
        raise NobodyChecksError(
            "algorithm.verified_copies = true but no agent of agents.enabled approves of rollouts, as "
            "'verify' does; enable one or make it false"
        )
    copies = [credit for of in taught for credit in of.credits if credit.copy_of]
    answers = await approvals(((c.stream, c.problem, c.copy_of) for c in copies), consult, seed_path)
    refused = {id(copy) for copy, answer in zip(copies, answers, strict=True) if not answer.approved}
    kept = [replace(of, credits=[c for c in of.credits if id(c) not in refused]) for of in taught]
    return Verified(
        taught=kept,
        asked=len(copies),
        refused=len(refused),
        cost=sum(answer.cost for answer in answers),
        reply_tokens=sum(answer.reply_tokens for answer in answers),
    )
