"""What a step learns from: dynamic sampling, the random-reward control, the price of help, verified copies.

The rollouts are made by hand; the sampler only hands them out, so that each test sees exactly what is learnt.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from aipo.agents.base import AgentError, AgentQuery, AgentReply, Usage
from aipo.agents.named import AGENTS
from aipo.assembly.agents import protocol_of
from aipo.config.loader import load_settings
from aipo.consult.codec import TagCodec
from aipo.consult.limits import Limits
from aipo.core.advantages import Advantage
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import (
    KNOWLEDGE,
    PAPER_AGENTS,
    Condition,
    ConsultOutcome,
    Source,
    StopReason,
    Verdict,
)
from aipo.grading import Grade
from aipo.rollout.episode import Consultation, ConsultContext, Rollout
from aipo.rollout.group import Group, GroupShape, MemberRollout, Sampler
from aipo.tasks.base import Problem
from aipo.training.credit import Credit, credits_of, randomly_rewarded
from aipo.training.experience import Experience
from support.tokenizers import word_level

CORRECT, INCORRECT, UNGRADED = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNGRADED
WORDS = word_level()
PROTOCOL = protocol_of([AGENTS[name] for name in PAPER_AGENTS])
PROBLEMS = [Problem(id=f"p{i}", text=f"{i} dogs", gold="8", stratum="hard") for i in range(8)]
IDS = WORDS.encode("dogs 2 8 ;", add_special_tokens=False)


def member(name: str, verdict: Verdict, asked_tokens: int = 0) -> MemberRollout:
    """A rollout that was told one word if it asked; the word is all that a copy keeps beside its first."""
    segments = [Segment(Source.PROMPT, (1,)), Segment(Source.POLICY, (IDS[0],), (-1.0,))]
    asked: tuple[Consultation, ...] = ()
    if asked_tokens:
        segments.append(Segment(Source.FEEDBACK, (IDS[2],)))
        reply = Consultation(
            agent=KNOWLEDGE,
            request="?",
            outcome=ConsultOutcome.ANSWERED,
            reply="8",
            reply_tokens=asked_tokens,
            detail="",
            context=f"context {name}",
            latency_s=0.1,
        )
        asked = (reply,)
    produced = Rollout(
        stream=TokenStream(tuple(segments)),
        response="text",
        policy_text="text",
        stop=StopReason.END,
        consultations=asked,
        consult_spans=(),
    )
    condition = Condition.CONSULTING if asked_tokens else Condition.SOLO
    return MemberRollout(id=name, condition=condition, rollout=produced, grade=Grade(verdict, "because"))


def group(problem: Problem, *verdicts: Verdict, asked: Sequence[int] = ()) -> Group:
    tokens = [*asked, *[0] * (len(verdicts) - len(asked))]
    members = tuple(
        member(f"{problem.id}#{i}", v, t) for i, (v, t) in enumerate(zip(verdicts, tokens, strict=True))
    )
    return Group(problem=problem, members=members, solo_prompt_ids=(9,))


@dataclass
class Verifier:
    """A Verify Agent that approves, objects, says nothing or fails."""

    approves: bool | None = True
    fails: bool = False
    name: str = "critic"
    asked: list[AgentQuery] = field(default_factory=list)
    waiting: int = 0
    most_at_once: int = 0

    async def answer(self, query: AgentQuery) -> AgentReply:
        self.asked.append(query)
        self.waiting += 1
        self.most_at_once = max(self.most_at_once, self.waiting)
        await asyncio.sleep(0)
        self.waiting -= 1
        if self.fails:
            raise AgentError("gone")
        return AgentReply(
            text="8 ;", approves=self.approves, usage=Usage(prompt_tokens=10, completion_tokens=2, cost=0.25)
        )


@dataclass
class HandingOut:
    """A sampler that hands out groups by the letters of a script: m(ixed), a(ll correct), n(one correct)."""

    script: str
    agent: Verifier = field(default_factory=Verifier)
    asked: Sequence[int] = ()
    paths: list[list[Any]] = field(default_factory=list)
    handed: int = 0

    @property
    def consult(self) -> ConsultContext:
        limits = Limits(3, 8, 80)
        return ConsultContext(
            protocol=PROTOCOL,
            codec=TagCodec(WORDS, PROTOCOL),
            limits=limits,
            agents={"critic": self.agent},
            agent_timeout_s=0.5,
            checker=self.agent,
        )

    async def groups(
        self, problems: Sequence[Problem], shape: GroupShape, path: Sequence[Any]
    ) -> list[Group]:
        self.paths.append(list(path))
        verdicts = {"m": (CORRECT, INCORRECT), "a": (CORRECT, CORRECT), "n": (INCORRECT, INCORRECT)}
        made = []
        for problem in problems:
            made.append(
                group(problem, *verdicts[self.script[self.handed % len(self.script)]], asked=self.asked)
            )
            self.handed += 1
        return made


def experience(sampler: HandingOut, *overrides: str) -> Experience:
    settings = load_settings(None, ["train.prompts_per_step=4", "rollout.rollouts_per_prompt=2", *overrides])
    return Experience(settings, cast(Sampler, sampler), PROBLEMS)


def step(of: Experience, number: int, *overrides: str) -> tuple[list[Group], list[list[Credit]]]:
    algorithm = load_settings(None, list(overrides)).algorithm
    return asyncio.run(of.sample_step(number, algorithm))


def test_without_dynamic_sampling_every_group_stays_and_one_batch_is_drawn() -> None:
    sampler = HandingOut("manm")
    groups, credits = step(experience(sampler), 1)
    assert len(groups) == len(credits) == 4
    assert sampler.paths == [[0, "rollout", 1]]


def test_dynamic_sampling_replaces_groups_that_teach_nothing_and_returns_all_that_were_sampled() -> None:
    sampler = HandingOut("mnnammma")
    groups, credits = step(experience(sampler, "train.dynamic_sampling_rounds=3"), 1)
    assert len(groups) == 8  # two rounds were enough: 1 + 3 groups teach
    assert len(credits) == 4 and all(any(c.teaches for c in credit) for credit in credits)
    assert sampler.paths == [[0, "rollout", 1], [0, "rollout", 1, 1]]


def test_dynamic_sampling_keeps_no_more_than_was_asked_for_and_gives_up_after_its_rounds() -> None:
    _, credits = step(experience(HandingOut("mmmn"), "train.dynamic_sampling_rounds=5"), 1)
    assert len(credits) == 4
    groups, credits = step(experience(HandingOut("n"), "train.dynamic_sampling_rounds=2"), 1)
    assert (len(groups), credits) == (12, [])


def test_later_steps_go_on_with_the_problems_that_dynamic_sampling_has_not_used_also_after_a_resume() -> None:
    whole = experience(HandingOut("n"), "train.dynamic_sampling_rounds=1")
    first, _ = step(whole, 1)
    state = whole.state()
    resumed = experience(HandingOut("n"), "train.dynamic_sampling_rounds=1")
    resumed.restore(state)
    following = [g.problem.id for g in step(whole, 2)[0]]
    assert following == [g.problem.id for g in step(resumed, 2)[0]]
    assert Counter(g.problem.id for g in first) == Counter(p.id for p in PROBLEMS)  # one epoch, each once


def test_the_random_reward_tosses_a_coin_for_each_graded_rollout_and_keeps_the_true_verdicts() -> None:
    groups = [group(problem, *[CORRECT] * 8, UNGRADED) for problem in PROBLEMS]
    tossed = randomly_rewarded(groups, (0, "rollout", 1))
    verdicts = [m.grade.verdict for g in tossed for m in g.members]
    assert verdicts.count(UNGRADED) == 8
    assert 16 < verdicts.count(CORRECT) < 48  # 64 tosses
    assert (
        tossed == randomly_rewarded(groups, (0, "rollout", 1)) != randomly_rewarded(groups, (0, "rollout", 2))
    )
    of = experience(HandingOut("a"), "train.reward=random")
    seen, credits = step(of, 1)
    assert {m.grade.verdict for g in seen for m in g.members} == {CORRECT}
    assert any(c.teaches for credit in credits for c in credit)


@pytest.mark.parametrize(("verdicts", "charged"), [((CORRECT, INCORRECT), True), ((CORRECT, CORRECT), False)])
def test_help_costs_its_price_where_consulting_verdicts_differ_and_nothing_elsewhere(
    verdicts: tuple[Verdict, Verdict], charged: bool
) -> None:
    told = group(PROBLEMS[0], *verdicts, asked=(10, 2))
    plain = ["algorithm.estimator=group_centred", "algorithm.stripped_copies=false"]
    free, priced = (
        [c.advantage.policy for c in credits_of(told, load_settings(None, [*plain, price]).algorithm, 50)]
        for price in ("algorithm.agent_token_price=0", "algorithm.agent_token_price=0.01")
    )
    # rewards 1 - .10 and 0 - .02, around their mean
    assert priced == (pytest.approx([0.46, -0.46]) if charged else free)
    assert free == ([0.5, -0.5] if charged else [0.0, 0.0])


def test_a_solo_verdict_is_no_reason_to_charge_rollouts_that_all_ended_alike() -> None:
    told = group(PROBLEMS[0], CORRECT, CORRECT, INCORRECT, asked=(10, 2))
    changes = ["algorithm.estimator=group_centred", "algorithm.agent_token_price=0.01"]
    algorithm = load_settings(None, [*changes, "algorithm.stripped_copies=false"]).algorithm
    assert [c.advantage.policy for c in credits_of(told, algorithm, 50)[:2]] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("policy", "feedback", "teaches"), [(0.0, 0.0, False), (1.0, 0.0, True), (0.0, 1.0, True)]
)
def test_either_advantage_is_enough_to_teach(policy: float, feedback: float, teaches: bool) -> None:
    produced = member("p#0", CORRECT, 3).rollout
    assert produced is not None
    assert Credit(stream=produced.stream, advantage=Advantage(policy, feedback)).teaches is teaches


@pytest.mark.parametrize(
    ("agent", "kept"),
    [
        (Verifier(True), True),
        (Verifier(False), False),
        (Verifier(None), False),
        (Verifier(fails=True), False),
    ],
    ids=["approves", "objects", "says nothing", "fails"],
)
def test_a_copy_is_learnt_from_only_if_verify_approves_and_its_words_are_paid_for(
    agent: Verifier, kept: bool
) -> None:
    sampler = HandingOut("m", agent, asked=(5,))
    of = experience(sampler, "algorithm.verified_copies=true")
    _, credits = step(of, 1, "algorithm.verified_copies=true")
    copies = [c for credit in credits for c in credit if c.copy_of]
    assert len(copies) == (4 if kept else 0)
    assert all(len(credit) == 2 + kept for credit in credits)  # its rollout stays either way
    assert [query.rollout for query in agent.asked] == ["dogs 8"] * 4 and agent.most_at_once == 4
    assert of.expert_tokens.raw == 4 * 5 + (0 if agent.fails else 4 * 2)
    assert of.approval_cost == (0.0 if agent.fails else 4 * 0.25)


def test_verified_copies_without_a_verify_agent_are_refused_before_any_compute() -> None:
    sampler = HandingOut("m")
    sampler.__class__ = type("WithoutAgents", (HandingOut,), {"consult": property(lambda self: _no_agents())})
    with pytest.raises(ValueError, match="algorithm.verified_copies"):
        experience(sampler, "algorithm.verified_copies=true")


def _no_agents() -> ConsultContext:
    return ConsultContext(
        protocol=PROTOCOL,
        codec=TagCodec(WORDS, PROTOCOL),
        limits=Limits(0, 8, 80),
        agents={},
        agent_timeout_s=0.5,
    )


def test_an_expert_raises_the_policys_baseline_but_is_nothing_that_the_policy_can_do_alone() -> None:
    told = group(PROBLEMS[0], CORRECT, INCORRECT, asked=(5,))
    expert = TokenStream((Segment(Source.PROMPT, (1,)), Segment(Source.FEEDBACK, (2,))))
    with_expert = Group(
        problem=told.problem, members=told.members, experts=(expert,), solo_prompt_ids=told.solo_prompt_ids
    )
    algorithm = load_settings(None, ["algorithm.estimator=group_centred"]).algorithm
    helped, _, failed, taught = credits_of(with_expert, algorithm, 50)
    assert helped.advantage.feedback == 1.0  # against the solo member alone, which failed
    assert (failed.advantage.policy, taught.advantage.feedback) == (-0.5, 0.5)
