"""Groups: the rollouts of one problem, some consulting, some solo, with their verdicts and expert solutions.

A rollout whose engine or grader failed is UNGRADED; no other rollout is affected.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from aipo.consult.prompts import DATE, chat_prompt_ids, system_prompt, thinking_opened
from aipo.consult.protocol import neutralise
from aipo.core.rewards import reward_of
from aipo.core.seeds import seed_of
from aipo.core.tokens import TokenStream, expert_stream
from aipo.core.types import Condition, SoloMode, Verdict
from aipo.engines.base import Engine, EngineError, Sampling
from aipo.rollout.elicit import Elicit
from aipo.rollout.episode import ConsultContext, Rollout, RolloutSpec, rollout
from aipo.rollout.reward import RewardError, Rewarding, finite
from aipo.tasks.base import Grade, Problem, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_MARGIN = 64
"""Tokens below the limit of a prompt from which on it is measured exactly."""
_TAIL_TOKENS = 16
"""Of a prompt: enough to see whether its template has begun the policy's thinking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Makes the token ids of a problem's two prompts, the consulting and the solo one."""

    tokenizer: "PreTrainedTokenizerBase"
    consult: ConsultContext
    consulting_override: str | None
    solo_override: str | None
    max_prompt_tokens: int
    date: str = DATE
    """Today, for chat templates that write it."""

    def ids(self, problem: Problem, condition: Condition) -> tuple[int, ...]:
        """Return the prompt's ids. Raises `ValueError` for a problem that is too long."""
        ids = self._made(problem, condition)
        if len(ids) > self.max_prompt_tokens:
            where = f"{problem.place}: " if problem.place else ""
            raise ValueError(
                f"{where}problem {problem.id}: its prompt has {len(ids)} tokens; raise "
                f"rollout.max_prompt_tokens = {self.max_prompt_tokens} or leave the problem out"
            )
        return ids

    def lengths(self, problems: Sequence[Problem], condition: Condition) -> list[int]:
        """Return the number of tokens of each problem's prompt, quickly.

        Exact from shortly below `max_prompt_tokens` on. Of a prompt well below it, the problem's own tokens
        are counted, and those that the template adds to the shortest problem.
        """
        margin = min(_MARGIN, self.max_prompt_tokens // 8)
        found: dict[int, int] = {}
        plain = [place for place, problem in enumerate(problems) if not problem.turns and not problem.tools]
        if len(plain) > 2:
            forbidden = self.consult.codec.forbidden
            texts = [neutralise(problems[place].text, forbidden) for place in plain]
            encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            own = dict(zip(plain, map(len, encoded), strict=True))
            ends = min(plain, key=own.__getitem__), max(plain, key=own.__getitem__)
            added = [len(self._made(problems[place], condition)) - own[place] for place in ends]
            if abs(added[0] - added[1]) <= margin // 2:  # else the template does more than add
                found = {place: added[0] + tokens for place, tokens in own.items()}
        near = self.max_prompt_tokens - margin
        return [
            found[place] if found.get(place, near) < near else len(self._made(problem, condition))
            for place, problem in enumerate(problems)
        ]

    def _made(self, problem: Problem, condition: Condition) -> tuple[int, ...]:
        consulting = condition is Condition.CONSULTING
        override = self.consulting_override if consulting else self.solo_override
        return tuple(
            chat_prompt_ids(
                self.tokenizer,
                system_prompt(condition, self.consult.protocol, override),
                problem.turns or problem.text,
                self.consult.codec.forbidden,
                tools=_offered(self.consult.protocol.tools, problem) if consulting else problem.tools,
                date=self.date,
            )
        )


def _offered(agents: str, problem: Problem) -> str:
    """Return the agents and the problem's own tools as one JSON list; '' where there is neither."""
    if not agents or not problem.tools:
        return agents or problem.tools
    return json.dumps([*json.loads(agents), *json.loads(problem.tools)], ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupShape:
    """How many rollouts of each kind a group has, and how they are sampled."""

    consulting: int
    solo: int
    experts: int = 0
    solo_mode: SoloMode = SoloMode.UNANSWERED
    sampling: Sampling = field(default_factory=Sampling)
    banned: int = 0
    """How many of the solo rollouts use the mode BANNED, whatever `solo_mode` says."""
    elicit: Elicit | None = None
    """How consultations are elicited in some of the consulting rollouts; None: they are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRollout:
    """A rollout with its verdict; `rollout` is None where the engine failed."""

    id: str
    condition: Condition
    rollout: Rollout | None
    grade: Grade
    banned: bool = False
    """Whether it was sampled without request tags."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The rollouts of one problem."""

    problem: Problem
    members: tuple[MemberRollout, ...]
    experts: tuple[TokenStream, ...] = ()
    solo_prompt_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Produces groups; training, evaluation and `aipo rollout` all make their rollouts through it."""

    engine: Engine
    consult: ConsultContext
    task: Task
    prompts: Prompts
    reward: Rewarding | None = None
    """None: what is learnt from is the verdict."""

    async def groups(
        self, problems: Sequence[Problem], shape: GroupShape, seed_path: Sequence[str | int]
    ) -> list[Group]:
        """Return a group for each problem, all sampled concurrently. `seed_path` identifies the batch."""
        return list(await asyncio.gather(*(self._group(problem, shape, seed_path) for problem in problems)))

    async def _group(self, problem: Problem, shape: GroupShape, seed_path: Sequence[str | int]) -> Group:
        specs = self.specs(problem, shape, seed_path)
        members = await asyncio.gather(*(self.member(spec, problem) for spec in specs))
        return self.group(problem, members, shape)

    def group(self, problem: Problem, members: Sequence[MemberRollout], shape: GroupShape) -> Group:
        """Return the group that some rollouts make, with its experts."""
        solo_ids = self.prompts.ids(problem, Condition.SOLO)
        experts = tuple(self._expert(problem, solo_ids) for _ in range(shape.experts))
        return Group(problem=problem, members=tuple(members), experts=experts, solo_prompt_ids=solo_ids)

    def specs(self, problem: Problem, shape: GroupShape, seed_path: Sequence[str | int]) -> list[RolloutSpec]:
        """Return which rollouts a group consists of. Raises `ValueError` for a problem that is too long."""
        conditions = [Condition.CONSULTING] * shape.consulting + [Condition.SOLO] * shape.solo
        prompt_ids = {c: self.prompts.ids(problem, c) for c in {*conditions, Condition.SOLO}}
        seeds = [seed_of(*seed_path, problem.id, index) for index in range(len(conditions))]
        first_turn = seed_of(*seed_path, problem.id, "whose tag is opened") if shape.elicit else 0
        return [
            RolloutSpec(
                id=f"{problem.id}#{index}",
                group=problem.id,
                problem=problem.text,
                prompt_ids=prompt_ids[condition],
                condition=condition,
                seed=seed,
                solo_mode=SoloMode.BANNED if index >= len(conditions) - shape.banned else shape.solo_mode,
                sampling=shape.sampling,
                hide_answer=partial(self.task.without_answer, problem),
                opening=shape.elicit.chosen(seed, first_turn + index)
                if shape.elicit and condition is Condition.CONSULTING
                else None,
            )
            for index, (condition, seed) in enumerate(zip(conditions, seeds, strict=True))
        ]

    async def member(self, spec: RolloutSpec, problem: Problem) -> MemberRollout:
        """Return one rollout with its verdict; a failure of the engine, or a bug in the task, is UNGRADED."""
        produced: Rollout | None = None
        try:
            produced = await rollout(self.engine, spec, self.consult)
            grade = await self.grade(problem, produced, spec.condition)
        except EngineError as error:
            grade = Grade(Verdict.UNGRADED, f"engine: {error}")
        banned = spec.condition is Condition.SOLO and spec.solo_mode is SoloMode.BANNED
        return MemberRollout(
            id=spec.id, condition=spec.condition, rollout=produced, grade=grade, banned=banned
        )

    async def grade(self, problem: Problem, produced: Rollout, condition: Condition) -> Grade:
        """Return a rollout's verdict and reward; a bug in the task or in a reward is UNGRADED."""
        try:
            prompt_ids = produced.stream.ids[: produced.stream.prompt_length]
            opened = thinking_opened(self.consult.codec.text(prompt_ids[-_TAIL_TOKENS:]))
            grade = await self.task.grade(problem, opened + produced.policy_text)
        except Exception as error:  # a bug in a user's task is not a verdict
            grade = Grade(Verdict.UNGRADED, f"task: {error!r}")
        if self.reward is not None:
            return await self.reward.grade(problem, produced, condition, grade)
        if grade.reward is not None:  # the task's own
            try:
                return replace(grade, reward=finite(grade.reward))
            except RewardError as error:
                return Grade(Verdict.UNGRADED, f"reward: {error}")
        return grade

    def _expert(self, problem: Problem, prompt_ids: tuple[int, ...]) -> TokenStream:
        tokenizer = self.prompts.tokenizer
        ids = tokenizer.encode(solution_of(problem), add_special_tokens=False)
        return expert_stream(prompt_ids, [*ids, tokenizer.eos_token_id])


def rewards_of(members: Iterable[MemberRollout]) -> set[float]:
    """Return the different rewards of graded rollouts."""
    grades = (member.grade for member in members)
    return {reward_of(g.verdict, g.reward) for g in grades if g.verdict is not Verdict.UNGRADED}


def solution_of(problem: Problem) -> str:
    """Return the problem's solution, which is an expert's turn. Raises `ValueError` if there is none."""
    if not problem.solution:
        raise ValueError(
            f"rollout.experts_per_prompt: problem {problem.id!r} has no solution for an expert; name the "
            "column that holds solutions in task.solution_field, or set experts_per_prompt = 0"
        )
    return problem.solution
