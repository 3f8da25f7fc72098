"""What one group teaches: each stream to be learnt from, with its advantages.

Experts, consult-stripped copies, the price of help and the random-reward control are here. An UNGRADED
rollout leaves nothing; a copy is made of correct consulting rollouts only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from aipo.config.settings import AlgorithmSettings
from aipo.core.advantages import Advantage, Member, group_advantages
from aipo.core.registry import Registry
from aipo.core.rewards import overlong_penalty
from aipo.core.seeds import seed_of
from aipo.core.tokens import TokenStream, stripped_copy
from aipo.core.types import Condition, ConsultOutcome, Verdict
from aipo.grading import Grade
from aipo.rollout.group import Group, MemberRollout, rewards_of
from aipo.training.algorithm import base_algorithm


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """A stream and its advantages; weights come later, from the whole batch."""

    stream: TokenStream
    advantage: Advantage
    copy_of: str = ""
    """Id of the rollout that this is a consult-stripped copy of; '' for what is no copy."""
    problem: str = ""
    """The problem's text, of a copy."""
    without_requests: bool = False
    """Whether it is learnt in the policy from which request tags are taken away."""

    @property
    def teaches(self) -> bool:
        """Whether any token of it can have a gradient."""
        return self.advantage.policy != 0 or self.advantage.feedback != 0


def credits_of(group: Group, algorithm: AlgorithmSettings, max_response_tokens: int) -> list[Credit]:
    """Return what one group teaches.

    An expert counts as a correct solo member of its group (LUFFY, arXiv 2504.14945), with the reward 1 also
    where rollouts have rewards of one's own: those should have 1 as their best. In a group of experts
    only there is nothing to compare with and its advantage is 1, which makes it supervised fine-tuning.
    """
    expert = Member(verdict=Verdict.CORRECT, condition=Condition.SOLO, expert=True)
    members = members_of(group, algorithm, max_response_tokens)
    advantages, of_copies = (
        group_advantages(
            members + [expert] * len(group.experts),
            estimator=base_algorithm(algorithm).estimator,
            split_baselines=algorithm.split_baselines,
            feedback=rule,
        )
        for rule in (algorithm.feedback_advantage, algorithm.copies_advantage or algorithm.feedback_advantage)
    )
    sampled = any(m.verdict is not Verdict.UNGRADED for m in members)
    result: list[Credit] = []
    for member, advantage, of_copy in zip(group.members, advantages, of_copies, strict=False):
        if advantage is None or of_copy is None or member.rollout is None:
            continue
        stream = member.rollout.stream
        result.append(Credit(stream=stream, advantage=advantage, without_requests=member.banned))
        if algorithm.stripped_copies and of_copy.feedback > 0 and _deserves_copy(member):
            result.append(
                Credit(
                    stream=stripped_copy(stream, member.rollout.consult_spans, group.solo_prompt_ids),
                    advantage=Advantage(0.0, of_copy.feedback),
                    copy_of=member.id,
                    problem=group.problem.text,
                    without_requests=algorithm.copies_without_requests,
                )
            )
    for stream, advantage in zip(group.experts, advantages[len(group.members) :], strict=True):
        assert advantage is not None
        credit = advantage.policy if sampled else 1.0
        result.append(Credit(stream=stream, advantage=Advantage(0.0, credit)))
    return result


def members_of(group: Group, algorithm: AlgorithmSettings, max_response_tokens: int) -> list[Member]:
    """Return what baselines need to know; the price of help is charged where consulting rewards differ.

    In a set of equal rewards a price would be all the variance there is, and normalising by it would make it
    as large as a reward (docs/method.md#advantages).
    """
    mixed = len(rewards_of(m for m in group.members if m.condition is Condition.CONSULTING)) > 1
    price = algorithm.agent_token_price if mixed else 0.0
    buffer_tokens = algorithm.overlong_buffer_tokens
    result = []
    for member in group.members:
        stream = member.rollout.stream if member.rollout else None
        length = len(stream) - stream.prompt_length if stream else 0
        asked = sum(c.reply_tokens for c in member.rollout.consultations) if member.rollout else 0
        penalty = overlong_penalty(length, max_response_tokens, buffer_tokens) - price * asked
        grade = member.grade
        result.append(
            Member(
                verdict=grade.verdict,
                condition=member.condition,
                penalty=penalty,
                reward=grade.reward,
                banned=member.banned,
            )
        )
    return result


def _deserves_copy(member: MemberRollout) -> bool:
    """Whether it is a correct rollout with at least one answered consultation."""
    assert member.rollout is not None
    answered = any(c.outcome is ConsultOutcome.ANSWERED for c in member.rollout.consultations)
    return member.grade.verdict is Verdict.CORRECT and answered


def randomly_rewarded(groups: Sequence[Group], seed_path: Sequence[str | int]) -> list[Group]:
    """Return the groups with verdicts by the toss of a coin: a control, which should teach nothing.

    UNGRADED rollouts stay UNGRADED. Records and metrics keep the true verdicts.
    """

    def tossed(member: MemberRollout) -> MemberRollout:
        if member.grade.verdict is Verdict.UNGRADED:
            return member
        heads = seed_of(*seed_path, "random reward", member.id) % 2 == 0
        verdict = Verdict.CORRECT if heads else Verdict.INCORRECT
        return replace(member, grade=Grade(verdict, "random"))

    return [replace(group, members=tuple(map(tossed, group.members))) for group in groups]


Reward = Callable[[Sequence[Group], Sequence[str | int]], Sequence[Group]]
"""(sampled groups, the seed path of their batch) -> the groups that the update sees, verdicts changed."""

REWARDS: Registry[Reward] = Registry("train.reward", callable, "aipo.rewards")
REWARDS.register("verdict", lambda groups, seed_path: groups)
REWARDS.register("random", randomly_rewarded)
