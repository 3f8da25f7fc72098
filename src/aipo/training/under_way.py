"""Groups of rollouts that are under way while the policy learns from others: `rollout.max_staleness_steps`.

A group that begins in step s, from weights with s - 1 updates behind them, is learnt from in step s + N at
the latest, N the setting: each token's weights are then at most N updates old. Each group is learnt from
exactly once. A step takes the oldest groups that are complete, unless those behind them could then not all be
in time: it waits for these.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import count

from aipo.config.settings import Settings
from aipo.core.types import Source
from aipo.engines.base import Engine, Pausable, WeightSink
from aipo.rollout.episode import RolloutSpec
from aipo.rollout.group import Group, GroupShape, MemberRollout, Sampler
from aipo.tasks.base import Problem
from aipo.training.events import StopRunError
from aipo.training.gate import Gate, GroupEngine
from aipo.training.kept import Found, Kept, Place, whole
from aipo.training.problems import ProblemBatches
from aipo.training.ranks import Ranks
from aipo.training.schedule import shape_at


@dataclass(eq=False, kw_only=True)
class _Begun:
    """A group that has begun and was not learnt from."""

    number: int
    step: int
    """In which it began."""
    engine: GroupEngine | None = None
    task: "asyncio.Task[Group] | None" = None

    @property
    def complete(self) -> bool:
        return self.task is not None and self.task.done()


class UnderWay:
    """The groups of a run, from their beginning to the step that learns from them."""

    def __init__(self, settings: Settings, sampler: Sampler, batches: ProblemBatches) -> None:
        self._settings, self._sampler = settings, sampler
        self._batch = lru_cache(maxsize=16)(batches.batch)
        self._size, self._most = settings.train.prompts_per_step, settings.rollout.max_staleness_steps
        self._kept = Kept(settings.run.output)
        self._gate = Gate(sampler.engine)
        self._changed = asyncio.Event()
        self._groups: list[_Begun] = []
        """In the order of their numbers, which is also that of the steps by which they are due."""
        self._found: Found | None = None
        """What an earlier process has left; None until the first step."""
        self._numbers = count()
        self._step = 0
        self._learns = False
        """Whether the groups of `_step` have been taken."""
        self._begins = False
        """Whether groups may begin: not in a step that is made again."""
        self._taken: tuple[int, ...] = ()
        self._error: Exception | None = None
        """Why no group could begin."""

    # a step

    async def take(self, step: int) -> list[Group]:
        """Return the groups that a step learns from, in the order in which they began."""
        self._step, self._learns = step, False
        self._kept.in_step(step)
        if self._found is None:
            self._recall(step)
        taken = self._as_before(step)
        self._begins = taken is None
        for group in self._groups if taken is None else taken:
            group.step = min(group.step, step)  # later where a step could not be made again as it was
            self._go_on(group)
        while True:
            self._changed.clear()
            self._begin_more()
            self._raise_errors()
            if taken is None:
                taken = self._due()
            if taken is not None and all(group.complete for group in taken):
                break
            await self._changed.wait()
        self._learns = True
        self._groups = [group for group in self._groups if group not in taken]
        self._taken = tuple(group.number for group in taken)
        return [group.task.result() for group in taken if group.task is not None]

    def learnt(self, oldest_checkpoint: int) -> None:
        """Say that the step is over and recorded; no run goes back to before `oldest_checkpoint`."""
        self._kept.learnt(self._step, self._taken)
        # What had begun in a step is learnt from within N steps.
        self._kept.forget_before(oldest_checkpoint + 1 - self._most)

    def _raise_errors(self) -> None:
        if self._error is not None:
            raise self._error
        for group in self._groups:
            if group.task is not None and group.task.done() and (error := group.task.exception()):
                raise error

    def _due(self) -> list[_Begun] | None:
        """Return the groups that the step is to learn from; None: some are still to be waited for."""
        complete = [group for group in self._groups if group.complete]
        taken = complete[: self._size]
        if len(taken) < self._size:
            return None
        left = [group for group in self._groups if group not in taken]
        if all(group.complete for group in left):
            return taken
        for place, group in enumerate(left, start=1):
            steps_left = group.step + self._most - self._step
            if place > steps_left * self._size:
                return None  # one more that is not complete would be too late
        return taken

    # beginning

    def _begin_more(self) -> None:
        """Let groups begin while there is room to decode: as much as a step's rollouts take at their start.

        No more than can be learnt from in time are ever under way, and none that no step would learn from.
        """
        rollouts = max(1, self._settings.rollout.rollouts_per_prompt)
        room = min(self._size * rollouts, self._settings.rollout.slots)
        most = (self._most + (not self._learns)) * self._size
        steps_left = self._settings.train.steps - self._step + (not self._learns)
        most = min(most, steps_left * self._size)
        while self._begins and len(self._groups) < most:
            decoding = sum(len(group.engine.decoding) for group in self._groups if group.engine)
            if len(self._groups) >= self._size and decoding + rollouts > room:
                break
            group = _Begun(number=next(self._numbers), step=self._step)
            self._groups.append(group)
            self._kept.began(group.number, self._step)
            self._go_on(group)

    def _notice(self) -> None:
        try:
            self._begin_more()
        except (StopRunError, ValueError) as error:  # whoever called this could do nothing about it
            self._error = error
        self._changed.set()

    def _go_on(self, group: _Begun) -> None:
        """Let a group's rollouts go on, or begin."""
        if group.task is not None:
            return
        number, settings = group.number, self._settings
        batch, place = divmod(number, self._size)
        problem, shape = self._batch(batch + 1)[place], shape_at(settings, group.step)
        path = (settings.run.seed, "rollout", batch + 1)
        group.engine = GroupEngine(gate=self._gate, name=f"{number}/", ended=self._notice)
        sampler = replace(self._sampler, engine=group.engine)
        specs = sampler.specs(problem, shape, path)
        group.engine.expect(spec.id for spec in specs)
        work = self._made(number, sampler, problem, shape, specs)
        group.task = asyncio.create_task(work, name=f"group {number}")
        group.task.add_done_callback(lambda _: self._notice())

    async def _made(
        self,
        number: int,
        sampler: Sampler,
        problem: Problem,
        shape: GroupShape,
        specs: Sequence[RolloutSpec],
    ) -> Group:
        members = await asyncio.gather(
            *(self._member((number, index), sampler, problem, spec) for index, spec in enumerate(specs))
        )
        return sampler.group(problem, members, shape)

    async def _member(
        self, place: Place, sampler: Sampler, problem: Problem, spec: RolloutSpec
    ) -> MemberRollout:
        assert self._found is not None and isinstance(sampler.engine, GroupEngine)
        try:
            made, begun = self._found.done.pop(place, None), self._found.begun.pop(place, None)
            if made and (whole(made) or not self._begins):
                return made
            keep = partial(self._kept.begun, place)
            made = await sampler.member(replace(spec, begun=begun, keep=keep), problem)
            self._kept.done(place, made)
            return made
        finally:
            sampler.engine.forget(spec.id)

    # weights, and the end

    def weights_held(self) -> AbstractAsyncContextManager[None]:
        """Return a block in which no request is under way, for an engine with weights of its own."""
        return self._gate.closed()

    async def cancel(self) -> None:
        """End all that is under way."""
        self._begins = False
        tasks = [group.task for group in self._groups if group.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def sync(self) -> None:
        """Wait until what is kept is on the disk."""
        self._kept.sync()

    # going on after an end

    def _recall(self, step: int) -> None:
        """Take in what an earlier process has left, now that it is `step` that comes first."""
        found = self._found = self._kept.read()
        over = {number for before in found.learnt if before < step for number in found.learnt[before]}
        self._groups = [_Begun(number=n, step=found.began[n]) for n in sorted(found.began) if n not in over]
        first = max([*found.began, *over, (step - 1) * self._size - 1]) + 1
        self._numbers = count(first)

    def _as_before(self, step: int) -> list[_Begun] | None:
        """Return the groups of a step that is made again, if all of them are there; else None."""
        assert self._found is not None
        numbers = self._found.learnt.pop(step, ())
        by_number = {group.number: group for group in self._groups}
        shape = self._settings.rollout.rollouts_per_prompt
        there = all(
            n in by_number and all((n, member) in self._found.done for member in range(shape))
            for n in numbers
        )
        return [by_number[n] for n in numbers] if numbers and there else None


def staleness(groups: Sequence[Group], step: int) -> dict[str, float]:
    """Return how many updates older than a step's the weights were that sampled its POLICY tokens.

    Degenerate case: nothing where no engine says which weights sampled.
    """
    ages: list[tuple[int, int]] = []
    for rollout in (m.rollout for group in groups for m in group.members if m.rollout):
        policy = (s for s in rollout.stream.segments if s.source is Source.POLICY)
        for segment, version in zip(policy, rollout.segment_versions, strict=True):
            if version is not None:
                ages.append((step - 1 - version, len(segment.ids)))
    tokens = sum(number for _, number in ages)
    if not tokens:
        return {}
    mean = sum(age * number for age, number in ages) / tokens
    return {"staleness_mean": mean, "staleness_max": float(max(age for age, _ in ages))}


def refuse_crossing(settings: Settings, engine: Engine, ranks: Ranks) -> None:
    """Raise `ValueError` where rollouts may cross steps and cannot."""
    if not (most := settings.rollout.max_staleness_steps):
        return
    if ranks.several:
        raise ValueError(
            f"rollout.max_staleness_steps = {most} with several ranks is not supported; set it to 0, or "
            "start one process"
        )
    if not isinstance(engine, Pausable | WeightSink):
        raise ValueError(
            f"rollout.max_staleness_steps = {most}: engine.name = {settings.engine.name!r} can neither hold "
            "still while weights change (`pause`, `resume`) nor take new ones (`load_weights`); set it to 0"
        )
