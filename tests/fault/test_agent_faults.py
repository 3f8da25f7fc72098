"""Whatever an agent's server does, whenever and to whomever: an outcome, never a reward, nobody else's loss.

Each fault x {first, middle, last consultation} x {one rollout, a whole group, all groups}, over real sockets.
Proves for each: the right ConsultOutcome and kind of failure; bounded wall time; siblings and the other
consultations exactly as without the fault; the same verdicts; what was paid is counted. The policy's words
are scripted, so that it consults where the matrix says; codec, protocol, agents and rollouts are real.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from aipo.agents.base import AgentFailure, AgentQuery, AgentReply
from aipo.agents.named import AGENTS
from aipo.agents.prompting import Context
from aipo.agents.remote import ChatSampling, Endpoint, Prices, RemoteAgent
from aipo.agents.retry import RetryPolicy
from aipo.assembly.agents import protocol_of
from aipo.consult.codec import TagCodec
from aipo.consult.limits import Limits
from aipo.core.types import KNOWLEDGE, PAPER_AGENTS, Condition, ConsultOutcome, Source, Verdict
from aipo.rollout.episode import ConsultContext, Rollout
from aipo.rollout.group import Group, GroupShape, Prompts, Sampler
from aipo.tasks.base import Grade, Problem, Split
from aipo.training.metrics import rollout_metrics
from support.engines import Script
from support.servers import COMPLETION_TOKENS, PROMPT_TOKENS, ChatServer, Fault, chat_server
from support.tokenizers import byte_level_bpe

ANSWERED, EMPTY, TIMEOUT, ERROR = (
    ConsultOutcome.ANSWERED,
    ConsultOutcome.EMPTY,
    ConsultOutcome.TIMEOUT,
    ConsultOutcome.AGENT_ERROR,
)
GROUPS, CONSULTING, CONSULTATIONS = 2, 2, 3
BPE = byte_level_bpe()
PROTOCOL = protocol_of([AGENTS[name] for name in PAPER_AGENTS])
PRICES = Prices(prompt=1.0, completion=2.0)
COST = (PROMPT_TOKENS * 1.0 + COMPLETION_TOKENS * 2.0) / 1e6
LONGEST_S = 20.0
"""Nothing here waits for anything near that long; a machine that is busy may."""


@dataclass(frozen=True)
class Becomes:
    """What a consultation becomes."""

    outcome: ConsultOutcome
    failure: AgentFailure | None = None
    paid: bool = False
    attempts: int = 1
    deadline_s: float = LONGEST_S
    detail: str = ""


BECOMES = {
    Fault.NONE: Becomes(ANSWERED, paid=True),
    Fault.REFUSED: Becomes(ERROR, AgentFailure.UNREACHABLE, attempts=0, detail="4 attempts"),
    Fault.RATE_LIMITED: Becomes(ANSWERED, paid=True, attempts=2),
    Fault.RATE_LIMITED_FOR_LONG: Becomes(
        ERROR, AgentFailure.UNREACHABLE, detail="status 429, to be asked again in 86400 s"
    ),
    Fault.THREE_ERRORS: Becomes(ANSWERED, paid=True, attempts=4),
    Fault.BAD_KEY: Becomes(ERROR, AgentFailure.REFUSED, detail="status 401"),
    Fault.NEVER: Becomes(TIMEOUT, deadline_s=0.2, detail="no answer within"),
    Fault.DRIP: Becomes(TIMEOUT, deadline_s=0.2, detail="no answer within"),
    Fault.CLOSES: Becomes(ERROR, AgentFailure.UNREACHABLE, attempts=4, detail="cannot be reached"),
    Fault.INVALID_JSON: Becomes(ERROR, AgentFailure.UNREADABLE, detail="unreadable response"),
    Fault.EMPTY: Becomes(EMPTY, paid=True, detail="empty reply"),
    Fault.MEGABYTE: Becomes(ERROR, AgentFailure.UNREACHABLE, detail="longer than agents.max_reply_bytes"),
    Fault.LONG_ERROR: Becomes(ERROR, AgentFailure.UNREACHABLE, detail="longer than agents.max_reply_bytes"),
    Fault.BOMB: Becomes(ERROR, AgentFailure.UNREACHABLE, detail="content-encoding 'gzip'"),
    Fault.NOT_UTF8: Becomes(ERROR, AgentFailure.UNREADABLE, detail="unreadable response"),
    Fault.OUR_TAGS: Becomes(ANSWERED, paid=True),
    Fault.ORDERS: Becomes(ANSWERED, paid=True),
    Fault.WRONG_SCHEMA: Becomes(ERROR, AgentFailure.UNREADABLE, paid=True, detail="choices"),
    Fault.UNFORMATTED: Becomes(ERROR, AgentFailure.UNREADABLE, paid=True, detail="it begins: Certainly!"),
    Fault.REDIRECT: Becomes(ERROR, AgentFailure.REFUSED, detail="status 307"),
}
IN_ONE_PLACE = {Fault.BAD_KEY, Fault.LONG_ERROR, Fault.BOMB, Fault.UNFORMATTED, Fault.REDIRECT}
"""Variants of others: the transport's business, which does not know where in a rollout it is."""
Place = tuple[int, int, int]
"""Group, rollout, consultation."""
SCOPES: dict[str, Callable[[int, int], bool]] = {
    "one rollout": lambda group, member: (group, member) == (0, 1),
    "a whole group": lambda group, member: group == 0,
    "all groups": lambda group, member: True,
}

MATRIX = [
    pytest.param(fault, position, scope, id=f"{fault}-{name}-{scope}")
    for fault in BECOMES
    if fault is not Fault.NONE
    for position, name in enumerate(["first", "middle", "last"])
    for scope in SCOPES
    if fault not in IN_ONE_PLACE or (name, scope) == ("middle", "a whole group")
]


class EightTask:
    """Correct is what ends in `= 8`."""

    name = "eight"

    def problems(self, split: Split) -> Sequence[Problem]:
        return [Problem(id=f"p{group}", text=f"problem {group}", gold="8") for group in range(GROUPS)]

    async def grade(self, problem: Problem, response: str) -> Grade:
        right = response.rstrip().endswith("= 8")
        return Grade(Verdict.CORRECT if right else Verdict.INCORRECT, "")

    def without_answer(self, problem: Problem, text: str) -> str | None:
        return None


@dataclass(frozen=True)
class Routed:
    """Asks the faulty agent where the matrix says, the healthy one elsewhere."""

    healthy: RemoteAgent
    faulty: RemoteAgent
    strikes: Callable[[Place], bool]
    name: str = KNOWLEDGE

    async def answer(self, query: AgentQuery) -> AgentReply:
        found = re.findall(r"\d+", query.request)
        group, member, consultation = map(int, found)
        agent = self.faulty if self.strikes((group, member, consultation)) else self.healthy
        return await agent.answer(query)


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with chat_server() as running:
        yield running


def remote(server: ChatServer, fault: Fault, deadline_s: float) -> RemoteAgent:
    return RemoteAgent(
        spec=AGENTS[KNOWLEDGE],
        endpoint=Endpoint(base_url=server.url(fault), concurrency=64),
        model="m",
        sampling=ChatSampling(temperature=0.7, top_p=0.8, max_tokens=64),
        retry=RetryPolicy(retries=3, first_wait_s=0.01),
        deadline_s=deadline_s,
        context=Context.ALL,
        prices=PRICES,
    )


def script() -> Script:
    """Each rollout asks three times and ends; the odd ones with a wrong answer."""
    texts = {}
    for group in range(GROUPS):
        for member in range(CONSULTING + 1):
            asks = [f"so <knowledge> fact {group} {member} {n} </knowledge>" for n in range(CONSULTATIONS)]
            texts[f"p{group}#{member}"] = " ".join([*asks, f"= {8 + member % 2}"])
    return Script(BPE, {name: BPE.encode(text, add_special_tokens=False) for name, text in texts.items()})


def produce(server: ChatServer, fault: Fault, strikes: Callable[[Place], bool]) -> list[Group]:
    faulty = remote(server, fault, BECOMES[fault].deadline_s)
    agent = Routed(remote(server, Fault.NONE, LONGEST_S), faulty, strikes)
    limits = Limits(max_consultations=CONSULTATIONS, max_feedback_tokens=60, max_response_tokens=2000)
    consult = ConsultContext(
        protocol=PROTOCOL,
        codec=TagCodec(BPE, PROTOCOL),
        limits=limits,
        agents=dict.fromkeys(PAPER_AGENTS, agent),
        agent_timeout_s=LONGEST_S,
    )
    task = EightTask()
    sampler = Sampler(
        engine=script(),
        consult=consult,
        task=task,
        prompts=Prompts(
            tokenizer=BPE,
            consult=consult,
            consulting_override=None,
            solo_override=None,
            max_prompt_tokens=9999,
        ),
    )
    shape = GroupShape(consulting=CONSULTING, solo=1)
    return asyncio.run(sampler.groups(task.problems(Split.TRAIN), shape, ("faults",)))


@pytest.fixture(scope="module")
def healthy(server: ChatServer) -> list[Group]:
    groups = produce(server, Fault.NONE, lambda place: False)
    found = [c.outcome for r in rollouts(groups).values() for c in r.consultations]
    assert found == [ANSWERED] * (GROUPS * CONSULTING * CONSULTATIONS)
    assert {m.grade.verdict for g in groups for m in g.members} == {Verdict.CORRECT, Verdict.INCORRECT}
    return groups


def rollouts(groups: Sequence[Group]) -> dict[tuple[int, int], Rollout]:
    """Return the consulting rollouts by group and member."""
    found = {}
    for g, group in enumerate(groups):
        for m, member in enumerate(group.members):
            if member.condition is Condition.CONSULTING:
                assert member.rollout is not None
                found[g, m] = member.rollout
    return found


@pytest.mark.parametrize(("fault", "position", "scope"), MATRIX)
def test_a_fault_is_an_outcome_and_touches_nobody_else(
    fault: Fault, position: int, scope: str, server: ChatServer, healthy: list[Group]
) -> None:
    becomes = BECOMES[fault]
    server.forget()
    begun = time.monotonic()
    groups = produce(server, fault, lambda place: SCOPES[scope](place[0], place[1]) and place[2] == position)
    assert time.monotonic() - begun < LONGEST_S
    struck = 0
    for (g, m), produced in rollouts(groups).items():
        clean = rollouts(healthy)[g, m]
        if not SCOPES[scope](g, m):
            assert produced.stream == clean.stream
            continue
        struck += 1
        assert_only_this_consultation_differs(produced, clean, position, becomes)
    assert struck > 0
    verdicts = [[member.grade for member in group.members] for group in groups]
    assert verdicts == [[member.grade for member in group.members] for group in healthy]
    assert [m.rollout for g in groups for m in g.members if m.condition is Condition.SOLO] == [
        m.rollout for g in healthy for m in g.members if m.condition is Condition.SOLO
    ]
    of_fault = [asked for asked in server.asked if asked.fault is fault]
    most = struck * becomes.attempts  # a deadline may pass before a busy machine has sent the request
    assert len(of_fault) <= most if becomes.outcome is TIMEOUT else len(of_fault) == most
    answered = GROUPS * CONSULTING * CONSULTATIONS - (0 if becomes.paid else struck)
    metrics = rollout_metrics(groups)
    assert metrics["agent_cost"] == pytest.approx(answered * COST)
    assert metrics["agent_prompt_tokens"] == answered * PROMPT_TOKENS
    assert metrics["agent_completion_tokens"] == answered * COMPLETION_TOKENS
    if becomes.outcome is not ANSWERED:
        assert metrics[f"failures/knowledge/{becomes.outcome}"] == struck
    unreadable = becomes.failure is AgentFailure.UNREADABLE
    assert metrics["unreadable_replies/knowledge"] == (struck if unreadable else 0)


def assert_only_this_consultation_differs(
    produced: Rollout, clean: Rollout, position: int, becomes: Becomes
) -> None:
    outcomes = [c.outcome for c in produced.consultations]
    assert outcomes == [becomes.outcome if n == position else ANSWERED for n in range(CONSULTATIONS)]
    consultation = produced.consultations[position]
    assert consultation.failure is becomes.failure
    assert becomes.detail in consultation.detail and bool(consultation.detail) == bool(becomes.detail)
    assert consultation.usage.cost == pytest.approx(COST if becomes.paid else 0.0)
    assert produced.policy_text == clean.policy_text  # the policy went on as if nothing had happened
    inserted = produced.stream.segments[2 * position + 2]
    before = clean.stream.segments[: 2 * position + 2]
    assert produced.stream.segments[: 2 * position + 2] == before
    text = TagCodec(BPE, PROTOCOL).text(inserted.ids)
    tags = [tag for tag in PROTOCOL.control_strings if tag in text]
    assert tags == ["<feedback>", "</feedback>"] and text.count("<feedback>") == 1
    assert text.count("</feedback>") == 1 and text.endswith("</feedback>")
    assert inserted.source is (Source.FEEDBACK if becomes.outcome is ANSWERED else Source.SCAFFOLD)
    assert BPE.eos_token_id not in inserted.ids


def test_what_the_server_says_of_the_key_is_in_no_record(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_TEST", "sk-secret-123")
    agent = remote(server, Fault.BAD_KEY, LONGEST_S)
    agent = RemoteAgent(
        **{name: getattr(agent, name) for name in agent.__dataclass_fields__}
        | {"endpoint": Endpoint(base_url=server.url(Fault.BAD_KEY), api_key_env="SECRET_OF_THE_TEST")}
    )
    with pytest.raises(Exception, match="status 401.*no such key: Bearer \\[key\\]") as caught:
        asyncio.run(agent.answer(AgentQuery(problem="p", rollout="r", request="q", seed=1)))
    assert server.asked[-1].headers["authorization"] == "Bearer sk-secret-123"
    seen = [str(caught.value), repr(caught.value), repr(agent), repr(agent.endpoint), repr(caught.value.args)]
    assert not any("sk-secret" in text for text in seen)
    assert caught.value.__cause__ is None  # a traceback that is printed would show the request
