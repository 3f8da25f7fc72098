"""What of an agent's reply reaches the policy: through the leak guard, with the agent's own probabilities."""

import asyncio
from dataclasses import dataclass, replace

import pytest

from aipo.agents.base import AgentQuery, AgentReply
from aipo.core.tokens import stripped_copy
from aipo.core.types import ConsultOutcome, LeakPolicy, Source
from aipo.rollout.episode import rollout
from support.engines import Script
from support.episodes import ANSWERED, EMPTY, WORDS, Answering, consult_of, ids_of, spec_of

ASKING = "dogs <knowledge> spider </knowledge> 2"


def hide(reply: str) -> str | None:
    return reply.replace(" 8", "") if " 8" in reply else None


@pytest.mark.parametrize(
    ("policy", "outcome", "read"),
    [
        (LeakPolicy.ALLOW, ANSWERED, "spider 8"),
        (LeakPolicy.MASK, ANSWERED, "spider"),
        (LeakPolicy.DROP, EMPTY, ""),
    ],
)
def test_feedback_that_states_the_answer_is_counted_and_passes_is_masked_or_dropped(
    policy: LeakPolicy, outcome: ConsultOutcome, read: str
) -> None:
    consult = replace(consult_of(Answering()), leak_policy=policy)
    made = asyncio.run(rollout(Script(WORDS, ids_of(ASKING)), spec_of(hide_answer=hide), consult))
    (asked,) = made.consultations
    assert (asked.outcome, asked.reply, asked.leaked) == (outcome, read, True)
    assert asked.reply_tokens == 2  # what the agent wrote is paid for, whatever is read of it
    assert ("8" in made.response) is (policy is LeakPolicy.ALLOW)


def test_feedback_that_does_not_state_the_answer_is_no_leak_under_any_policy() -> None:
    for policy in LeakPolicy:
        consult = replace(consult_of(Answering(lambda query: "spider 2")), leak_policy=policy)
        made = asyncio.run(rollout(Script(WORDS, ids_of(ASKING)), spec_of(hide_answer=hide), consult))
        assert [(c.reply, c.leaked) for c in made.consultations] == [("spider 2", False)]


# the agent's own log-probabilities


@dataclass
class Reporting(Answering):
    """An agent that reports the log-probabilities of its words."""

    log_probs: tuple[float, ...] = ()

    async def answer(self, query: AgentQuery) -> AgentReply:
        reply = await super().answer(query)
        return AgentReply(text=reply.text, log_probs=self.log_probs)


@pytest.mark.parametrize(
    ("reported", "kept"),
    [
        ((-0.5, -0.25), (0.0, -0.5, -0.25, 0.0)),
        ((-0.5,), ()),
        ((), ()),
        ((-0.5, -0.25, -9.0), (0.0, -0.5, -0.25, 0.0)),
    ],
    ids=["all", "too few", "none", "more than is read"],
)
def test_what_an_agent_reports_of_its_words_goes_into_the_stream_and_the_tags_are_certain(
    reported: tuple[float, ...], kept: tuple[float, ...]
) -> None:
    made = asyncio.run(
        rollout(
            Script(WORDS, ids_of(ASKING)),
            spec_of(),
            consult_of(Reporting(log_probs=reported)),
        )
    )
    (feedback,) = (s for s in made.stream.segments if s.source is Source.FEEDBACK)
    assert feedback.log_probs == kept
    copy = stripped_copy(made.stream, made.consult_spans, (9,))
    content = dict(zip(copy.ids[1:], copy.log_probs[1:], strict=True))
    assert content[ids_of("spider")[0]] == (kept[1] if kept else 0.0)
