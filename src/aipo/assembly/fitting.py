"""The problems whose prompts fit, and what is said of those that do not and of rows that cannot be used.

Every prompt is measured in tokens before anything is spent: a text can be short in characters and long in
tokens, and nothing of it may end a run when its step comes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from aipo.core.types import Condition
from aipo.rollout.group import Prompts
from aipo.tasks.base import Problem, Split, Task, TaskError

OnBadRow = Literal["refuse", "drop"]


@dataclass(frozen=True, slots=True)
class Long:
    """A problem whose prompt is too long."""

    problem: Problem
    tokens: int

    @property
    def place(self) -> str:
        """File and line, or the problem's id where it comes from no file."""
        return self.problem.place or f"problem {self.problem.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """The problems of a task that fit its prompts, measured once for each split."""

    task: Task
    prompts: Prompts
    on_bad_row: OnBadRow = "refuse"
    _kept: dict[Split, Sequence[Problem]] = field(default_factory=dict)
    _long: dict[Split, list[Long]] = field(default_factory=dict)

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return the problems of a split whose prompts fit.

        Raises:
            TaskError: a prompt is too long and is not to be left out, or none is left.
        """
        if split not in self._kept:
            problems = self.task.problems(split)
            long = too_long(self.prompts, problems)
            if long and self.on_bad_row == "refuse":
                raise TaskError(said(long, self.prompts.max_prompt_tokens))
            ids = {each.problem.id for each in long}
            self._long[split] = long
            self._kept[split] = [p for p in problems if p.id not in ids] if ids else problems
            if problems and not self._kept[split]:
                raise TaskError(f"no prompt to {split} fits: {said(long, self.prompts.max_prompt_tokens)}")
        return self._kept[split]

    def lines(self) -> Iterator[str]:
        """Yield what was left out so far, and why, for whoever started the run."""
        limit, bad = self.prompts.max_prompt_tokens, list(getattr(self.task, "bad_rows", ()))
        if bad:
            yield f"{len(bad)} rows left out that cannot be used (task.on_bad_row); the first: {bad[0]}"
        for split, long in self._long.items():
            if long:
                yield (
                    f"{len(long)} problems to {split} left out whose prompts have more than "
                    f"rollout.max_prompt_tokens = {limit} tokens (task.on_bad_row); the first: "
                    f"{long[0].place}, {long[0].tokens} tokens"
                )


def too_long(prompts: Prompts, problems: Sequence[Problem]) -> list[Long]:
    """Return the problems one of whose prompts has more tokens than `max_prompt_tokens`."""
    consulting = bool(prompts.consult.protocol.enabled)
    conditions = [*([Condition.CONSULTING] if consulting else []), Condition.SOLO]
    lengths = {c: prompts.lengths(problems, c) for c in conditions}
    most = [max(each) for each in zip(*lengths.values(), strict=True)]
    return [
        Long(problem, tokens)
        for problem, tokens in zip(problems, most, strict=True)
        if tokens > prompts.max_prompt_tokens
    ]


def said(long: Sequence[Long], limit: int) -> str:
    """Return one message about prompts that are too long."""
    first, most = long[0], max(each.tokens for each in long)
    many = f"; {len(long)} prompts are too long, the longest has {most}" if len(long) > 1 else ""
    return (
        f"{first.place}: problem {first.problem.id}: its prompt has {first.tokens} tokens{many}; raise "
        f"rollout.max_prompt_tokens = {limit}, or leave such problems out with task.on_bad_row = 'drop'"
    )
