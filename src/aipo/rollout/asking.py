"""One question to one agent, within its deadline: the error boundary around agents.

Whatever an agent does becomes an outcome: nothing that it raises passes through, and nothing outlasts the
deadline. Only the end of the run itself does.
"""

import asyncio
from dataclasses import dataclass

from aipo.agents.base import NOTHING_USED, Agent, AgentError, AgentFailure, AgentQuery, AgentReply, Usage
from aipo.core.types import ConsultOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a question; a reply if and only if the outcome is ANSWERED."""

    outcome: ConsultOutcome
    reply: AgentReply | None = None
    detail: str = ""
    """Why there is none."""
    usage: Usage = NOTHING_USED
    """What was used, also by a consultation that failed."""
    failure: AgentFailure | None = None
    """Of AGENT_ERROR: which kind."""


async def ask(agent: Agent, query: AgentQuery, timeout_s: float) -> Answer:
    """Ask; raises nothing but the cancellation of the caller's own task."""
    try:
        async with asyncio.timeout(timeout_s):
            reply = await agent.answer(query)
            blank = not reply.text.strip()
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # the run itself is ending
        return _failed(repr(error))  # a task inside the agent was cancelled
    except TimeoutError:
        return Answer(outcome=ConsultOutcome.TIMEOUT, reply=None, detail=f"no answer within {timeout_s} s")
    except AgentError as error:
        return _failed(str(error), error.usage, error.failure)
    except Exception as error:  # a bug in an agent is data too, not a crash of the run
        return _failed(repr(error))
    if blank:
        return Answer(outcome=ConsultOutcome.EMPTY, reply=None, detail="empty reply", usage=reply.usage)
    return Answer(outcome=ConsultOutcome.ANSWERED, reply=reply, usage=reply.usage)


def _failed(detail: str, usage: Usage = NOTHING_USED, failure: AgentFailure = AgentFailure.OTHER) -> Answer:
    return Answer(outcome=ConsultOutcome.AGENT_ERROR, reply=None, detail=detail, usage=usage, failure=failure)
