"""One step on verl's driver: the groups that were sampled, and what of them is learnt.

It is the part of `training/experience.py` behind the sampling, with the same functions.
"""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from aipo.config.settings import Settings
from aipo.core.types import Verdict
from aipo.integrations.verl.credit import Drawn, RowCredit, Taught, rows_by_minibatch, taught_by
from aipo.integrations.verl.parts import parts_of
from aipo.integrations.verl.verified import Verified, verified
from aipo.integrations.verl.watch import StepRefusedError, refuse_failing
from aipo.rollout.group import Group
from aipo.training.credit import REWARDS
from aipo.training.metrics import rollout_metrics
from aipo.training.schedule import algorithm_at

Run = Callable[[Coroutine[Any, Any, Verified]], Verified]
"""Runs a coroutine to its end, always on the same event loop: the agents' connections belong to it."""


class Step:
    """Groups of one step, in rounds, and their credit."""

    def __init__(self, settings: Settings, table: Mapping[str, Any], tokenizer: Any, number: int) -> None:
        """`table` is the table `aipo` of verl's configuration, `number` verl's global step."""
        self._settings, self._table, self._tokenizer = settings, table, tokenizer
        self._algorithm, self._number = algorithm_at(settings, number), number
        self._keys: dict[int, str] = {}
        self._taught: list[Taught] = []
        self._rounds = 0
        self.groups: list[Group] = []
        """All that were sampled, in the order of the data."""
        self.metrics: dict[str, float] = {}
        """After `learn`, under `aipo/`."""

    def add(self, drawn: Drawn) -> None:
        """Take the groups of a round. Raises `StepRefusedError` where too many were lost."""
        path: list[str | int] = [self._settings.run.seed, "rollout", self._number]
        path += [self._rounds] if self._rounds else []
        self._rounds += 1
        self.groups += drawn.groups
        self._keys |= drawn.keys
        refuse_failing(self.groups, self._settings.train, self._number)
        rewarded = REWARDS[self._settings.train.reward](drawn.groups, path)
        self._taught += taught_by(rewarded, self._algorithm, self._settings)

    @property
    def wants_more(self) -> bool:
        """Whether dynamic sampling asks for another round."""
        train = self._settings.train
        return len(self._taught) < train.prompts_per_step and self._rounds <= train.dynamic_sampling_rounds

    def learn(self, run: Run) -> list[list[RowCredit]]:
        """Return the rows of each mini-batch, and set `metrics`. Raises `StepRefusedError` for no rows.

        A step in which no group teaches anything learns from groups whose advantages are 0.
        """
        settings = self._settings
        if settings.train.dynamic_sampling_rounds and not self._taught:
            plain = settings.train.model_copy(update={"dynamic_sampling_rounds": 0})
            self._taught = taught_by(
                self.groups, self._algorithm, settings.model_copy(update={"train": plain})
            )
        taught = self._taught[: settings.train.prompts_per_step]
        asked: dict[str, float] = {}
        if self._algorithm.verified_copies:
            taught, asked = self._verified(taught, run)
        parts = rows_by_minibatch(taught, self._keys, self._algorithm, settings)
        if not parts:
            raise StepRefusedError(f"step {self._number}: no rollout could be graded; nothing is learnt")
        self.metrics = self._counted(taught, parts) | asked
        return parts

    def _verified(self, taught: list[Taught], run: Run) -> tuple[list[Taught], dict[str, float]]:
        consult = parts_of(self._table, self._tokenizer, 1).consult
        path: list[str | int] = [self._settings.run.seed, "verified copy", self._number]
        found = run(verified(taught, consult, path))
        return found.taught, {
            "aipo/copies_asked_about": float(found.asked),
            "aipo/copies_refused": float(found.refused),
            "aipo/approval_cost": found.cost,
            "aipo/approval_tokens": float(found.reply_tokens),
        }

    def _counted(self, taught: list[Taught], parts: list[list[RowCredit]]) -> dict[str, float]:
        agents = self._settings.agents.names
        own = {f"aipo/{name}": value for name, value in rollout_metrics(self.groups, agents).items()}
        members = [member for group in self.groups for member in group.members]
        copies = [row for part in parts for row in part if row.is_copy]
        return own | {
            "aipo/rollouts": float(len(members)),
            "aipo/graded": float(sum(m.grade.verdict is not Verdict.UNGRADED for m in members)),
            "aipo/sampled_groups": float(len(self.groups)),
            "aipo/teaching_groups": float(sum(any(c.teaches for c in of.credits) for of in taught)),
            "aipo/copies": float(len(copies)),
            "aipo/copied_tokens": float(
                sum(len(row.row.stream) - row.row.stream.prompt_length for row in copies)
            ),
        }
