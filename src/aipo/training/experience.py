"""What a step learns from: sampled groups, and the credit of each stream in them.

Dynamic sampling, verified copies and the count of expert tokens belong to it. Every sampled group is
returned, counted and paid for, including those that teach nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aipo.config.settings import AlgorithmSettings, Settings
from aipo.core.seeds import seed_of
from aipo.rollout.copies import approvals
from aipo.rollout.group import Group, GroupShape, Sampler, solution_of
from aipo.tasks.base import Problem
from aipo.training.credit import REWARDS, Credit, credits_of
from aipo.training.eliciting import Eliciting
from aipo.training.metrics import ExpertTokens
from aipo.training.problems import ProblemBatches
from aipo.training.ranks import ALONE, Ranks
from aipo.training.schedule import shape_at
from aipo.training.under_way import UnderWay, staleness


class Experience:
    """Samples the groups of one step after another."""

    def __init__(
        self, settings: Settings, sampler: Sampler, problems: Sequence[Problem], ranks: Ranks = ALONE
    ) -> None:
        """Each of the `ranks` samples its share, and all learn from everything.

        Raises `ValueError` where the settings ask for data, an expert or an agent that is not there.
        """
        _refuse_what_is_missing(settings, sampler, problems)
        self._settings, self._sampler, self._ranks = settings, sampler, ranks
        self._reward = REWARDS[settings.train.reward]
        self._batches = ProblemBatches(problems, settings)
        self._batches_drawn = 0
        self.under_way: UnderWay | None = None
        """What crosses steps; None where each step's rollouts end with it."""
        if settings.rollout.max_staleness_steps:
            self.under_way = UnderWay(settings, sampler, self._batches)
        self.staleness: dict[str, float] = {}
        """The latest step's metrics of how old the weights were that sampled; none where they are its own."""
        self._eliciting = Eliciting(settings)
        self.elicited: dict[str, float] = {}
        """The latest step's metrics of elicited and own consultations; none where none are elicited."""
        self.expert_tokens = ExpertTokens()
        self.approval_cost = 0.0
        """What the latest step's questions about copies cost; consultations count their own."""

    async def sample_step(
        self, step: int, algorithm: AlgorithmSettings
    ) -> tuple[list[Group], list[list[Credit]]]:
        """Return all groups that were sampled, and what those of them teach that are learnt from.

        These are all of them, but for dynamic sampling (DAPO, arXiv 2503.14476 section 3.2), which replaces
        groups that teach nothing by groups of other problems. With agents, a group teaches also where only
        its FEEDBACK has an advantage. When the rounds are used up, a step learns from fewer groups.
        """
        settings = self._settings
        shape = replace(shape_at(settings, step), elicit=self._eliciting.now())
        rounds = settings.train.dynamic_sampling_rounds
        groups: list[Group] = []
        credits: list[list[Credit]] = []
        for round_ in range(rounds + 1):
            self._batches_drawn += 1
            path: list[str | int] = [settings.run.seed, "rollout", step]
            path += [round_] if round_ else []
            sampled = await self._sampled(step, shape, path)
            groups += sampled
            for group in self._reward(sampled, path):
                credit = credits_of(group, algorithm, settings.rollout.max_response_tokens)
                if not rounds or any(c.teaches for c in credit):
                    credits.append(credit)
            if len(credits) >= settings.train.prompts_per_step:
                break
        for group in groups:
            self.expert_tokens.add(group)
        self.elicited = self._eliciting.learn(groups)
        credits = credits[: settings.train.prompts_per_step]
        return groups, await self._verified(step, credits) if algorithm.verified_copies else credits

    async def _sampled(self, step: int, shape: GroupShape, path: Sequence[str | int]) -> list[Group]:
        if self.under_way is not None:
            groups = await self.under_way.take(step)
            self.staleness = staleness(groups, step)
            return groups
        batch = self._ranks.share(self._batches.batch(self._batches_drawn))
        return self._ranks.gather_interleaved(await self._sampler.groups(batch, shape, path))

    async def _verified(self, step: int, credits: Sequence[Sequence[Credit]]) -> list[list[Credit]]:
        """Leave out the copies that the checking agent does not approve of; its words are paid for."""
        self.approval_cost = 0.0
        copies = [credit for of_group in credits for credit in of_group if credit.copy_of]
        own = [(copy.stream, copy.problem, copy.copy_of) for copy in self._ranks.share(copies)]
        path = (self._settings.run.seed, "verified copy", step)
        answers = self._ranks.gather_interleaved(await approvals(own, self._sampler.consult, path))
        refused = set()
        for copy, answer in zip(copies, answers, strict=True):
            self.approval_cost += answer.cost
            self.expert_tokens.add_reply(f"copy:{seed_of(*copy.stream.ids):016x}", answer.reply_tokens)
            refused |= set() if answer.approved else {id(copy)}
        return [[credit for credit in of_group if id(credit) not in refused] for of_group in credits]

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "batches_drawn": self._batches_drawn,
            "expert_tokens": self.expert_tokens.state(),
            "own_consulting_shares": self._eliciting.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._batches_drawn = int(state["batches_drawn"])
        self.expert_tokens = ExpertTokens(**state["expert_tokens"])
        self._eliciting.restore(state["own_consulting_shares"])


def _refuse_what_is_missing(settings: Settings, sampler: Sampler, problems: Sequence[Problem]) -> None:
    """Raise `ValueError` where the settings ask for an expert or an agent that is not there."""
    for problem in problems if shape_at(settings, 1).experts else ():
        solution_of(problem)
    if settings.algorithm.verified_copies and sampler.consult.checker is None:
        raise ValueError(
            "algorithm.verified_copies = true but no agent of agents.enabled approves of rollouts, as "
            "'verify' does; enable one or make it false"
        )
