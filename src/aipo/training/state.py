"""The state of a run between two steps: what it consists of, how it is saved, and how a run returns to it.

A restored run continues to the last bit as the saved one would have. docs/recovery.md says of each part why
it is there.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psutil
import torch

from aipo.config.settings import Settings
from aipo.training import generators
from aipo.training.changes import known_digests, settings_digest
from aipo.training.checkpoint import (
    CheckpointError,
    Checkpoints,
    DamagedCheckpointError,
    same_fields,
)
from aipo.training.events import LostRankError, NonFiniteError, StalledError, StopRunError
from aipo.training.experience import Experience
from aipo.training.guards import Guards
from aipo.training.journal import METRICS, Journal, NotRecordedError, read_lines
from aipo.training.provenance import code_revision, differences, library_versions
from aipo.training.ranks import ALONE, Ranks
from aipo.training.snapshot import Learner, bytes_of_checkpoint, snapshot
from aipo.training.writer import NotSavedError, Writer

MEMORY_SPARE = 1.2
"""Memory for a copy of the state must be free so often over; else the run waits while it is written."""


class RunState:
    """The state of one run."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        learner: Learner,
        experience: Experience,
        guards: Guards,
        writer: Writer,
        ranks: Ranks = ALONE,
    ) -> None:
        """Of several `ranks` all restore and the first one writes, by its `writer`."""
        train = self._train = settings.train
        self._ranks, self._learner, self._journal = ranks, learner, journal
        self._experience, self._guards, self._writer = experience, guards, writer
        folder = settings.run.output / "checkpoints"
        self._checkpoints = ranks.in_turn(lambda: Checkpoints(folder, train.keep_checkpoints))
        self._begun_s = time.monotonic()
        """When the newest checkpoint was begun, or this process."""
        self._failed = 0
        """Checkpoints in a row that could not be written."""
        self._max_failed = settings.guards.max_failed_checkpoints
        self._seed, self._steps = settings.run.seed, train.steps
        self._may_roll_back = settings.guards.may_roll_back
        code_revision(), library_versions()  # found out now: a stop should not wait for git
        self.step = 0
        self.after_step_due = False
        """Whether what follows a step, an evaluation for instance, is still to be done for `step`."""
        self.rolled_back = False
        """Whether the step ended with the weights of an earlier one."""
        self.notes: list[str] = []
        """What the user should know about a resume."""
        self.warnings: list[str] = []
        """What the user should know about checkpoints that could not be written."""
        self._before: dict[str, Any] | None = None
        self._saved: dict[str, Any] | None = None
        """What is on the disk of the newest checkpoint, as far as `_position` tells."""

    # saving

    def begin_step(self) -> None:
        """Remember the state as it is: a stop before the step's first update saves this."""
        self._before = self._now()

    def end_step(self, rolled_back: bool) -> None:
        """Count a step that is recorded; what follows it is due."""
        self.step, self._before = self.step + 1, None
        self.after_step_due, self.rolled_back = True, rolled_back

    @property
    def oldest_checkpoint(self) -> int:
        """The step that a run may have to go back to; 0: its beginning."""
        return min(self._checkpoints.steps(), default=0)

    def due(self) -> bool:
        """Whether a checkpoint of `step` is due. Of several ranks, the clock of the first one counts."""
        every, minutes = self._train.checkpoint_every_steps, self._train.checkpoint_every_minutes
        if self.rolled_back or self.step == self._steps:
            return True
        if every:
            return self.step % every == 0
        late = time.monotonic() - self._begun_s >= 60 * minutes
        return self._ranks.all_gather(late and not self._writer.busy)[0]

    def save(self, wait: bool = False) -> None:
        """Begin to write a checkpoint of the state between two steps; the one before is waited for.

        With `wait`, and at the last step, return when it is on the disk. A step that was rolled back is
        waited for too: no resume may come to it twice. Raises `NotSavedError`.
        """
        self._write(self._now(), periodic=True, wait=wait or self.rolled_back or self.step == self._steps)

    def settle(self, wait: bool = False) -> str:
        """Return why the newest checkpoint could not be written; "": it was, or is being written. All ranks.

        Raises `NotSavedError` for one more than `guards.max_failed_checkpoints` in a row, and where a wait
        for its end is too long.
        """
        if wait:
            self._ranks.first(self._writer.finish)
        taken = self._writer.take()
        why = self._ranks.all_gather(None if taken is None else str(taken[1] or ""))[0]
        if why is None:
            return ""
        self._failed = self._failed + 1 if why else 0
        if self._failed > self._max_failed:
            raise NotSavedError(why)
        if why:
            self._saved, self._begun_s = None, float("-inf")  # tried again as soon as may be
            self.warnings.append(f"{why}. The run goes on")
        return why

    def save_for_stop(self, weights_changed: bool) -> None:
        """Write what is whole, unless it is there: the state before the step under way, or the present one.

        In a step whose weights have changed already there is no such state. It is on the disk when this
        returns. Raises `NotSavedError`.
        """
        if self._before is None:
            self._write(self._now(), periodic=False, wait=True)
        elif not weights_changed:
            self._write(self._before, periodic=False, wait=True)

    def save_after(self, stop: StopRunError, weights_changed: bool) -> None:
        """`save_for_stop` after an error: if the disk is the reason, it is not tried again."""
        if self._ranks.is_main:
            self._journal.say_stopped(str(stop))
        if self._ranks.several and isinstance(stop, (LostRankError, StalledError)):
            return  # of this rank alone: the others would not take part
        if not isinstance(stop, (NotSavedError, NotRecordedError)):
            with suppress(NonFiniteError):  # then an older checkpoint is the valid one
                self.save_for_stop(weights_changed)

    def _now(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "after_step_due": self.after_step_due,
            "rolled_back": self.rolled_back,
            "experience": self._experience.state(),
            "guards": self._guards.state(),
            "generators": generators.state(),
        }

    def _write(self, state: dict[str, Any], periodic: bool, wait: bool) -> None:
        self.settle(wait=True)
        if self._saved == _position(state) and not periodic:
            return
        self._refuse_spoilt_weights(state["step"])
        with self._learner.policy.collected():
            self._ranks.first(lambda: self._begin(state, periodic, wait))
        self._saved, self._begun_s = _position(state), time.monotonic()
        if wait and (why := self.settle(wait=True)):
            raise NotSavedError(why)

    def _begin(self, state: Mapping[str, Any], periodic: bool, wait: bool) -> None:
        state = {
            **state,
            "lines": self._journal.lines_up_to(state["step"]),
            "settings": settings_digest(self._journal.folder),
            "code": code_revision(),
            "libraries": library_versions(),
        }
        fits = psutil.virtual_memory().available > MEMORY_SPARE * bytes_of_checkpoint(self._learner.model)
        saved = snapshot(self._learner, state, periodic, copy=fits and not wait)
        what = f"the checkpoint of step {state['step']}"
        self._writer.begin(what, lambda: self._checkpoints.save(saved, before=self._sync))
        if not fits:
            self._writer.finish()

    def _sync(self) -> None:
        """See that what the checkpoint counts on is on the disk."""
        self._journal.sync()
        if self._experience.under_way:
            self._experience.under_way.sync()

    def _refuse_spoilt_weights(self, step: int) -> None:
        """Raise `NonFiniteError`: a checkpoint of NaNs would push out those that can be gone back to."""
        for name, parameter in self._learner.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NonFiniteError(
                    f"after step {step} the weights {name} are not finite numbers; no checkpoint of them was "
                    "written. The same command continues from the newest one before"
                )

    # going back

    def restore(self) -> None:
        """Go on from the newest checkpoint that can be read, or begin.

        Raises `CheckpointError` where there are checkpoints and none can be read, or the newest is that of
        other settings.
        """
        state = self._restored()
        if state is None:
            if lost := read_lines(self._journal.folder / METRICS):
                self.notes.append(f"no checkpoint is there: {len(lost)} steps are made again")
            generators.seed(self._seed)
        else:
            self._adopt(state)
            self._ranks.first(self._checkpoints.drop_old)  # a crash may have come between the newest and this
        if self.step > self._steps:
            raise CheckpointError(
                f"train.steps = {self._steps}, but the run has made {self.step} already; raise it"
            )
        self._ranks.first(self._begin_files)
        if state is None and self._may_roll_back:
            self.save(wait=True)

    def _begin_files(self) -> None:
        self._journal.rewind(self.step)
        self._journal.changes.hold_from(self.step)
        self._journal.say_going_on()

    def roll_back(self) -> None:
        """Take the weights and the optimiser of the newest periodic checkpoint; all else stays as it is.

        The rate of learning belongs to the step's number, so the scheduler stays too.
        """
        self.settle(wait=True)
        scheduler = self._learner.scheduler
        here = scheduler.state_dict()
        if self._restored(periodic_only=True) is None:
            raise StopRunError(f"step {self.step + 1}: there is no checkpoint to roll back to")
        scheduler.load_state_dict(here)

    def _restored(self, periodic_only: bool = False) -> dict[str, Any] | None:
        """Load the newest checkpoint that is as it was written; set newer ones aside. All ranks."""
        state = self._ranks.in_turn(lambda: self._restored_here(self._checkpoints.steps(periodic_only)))
        found = self._ranks.all_gather(state["step"] if state else None)
        if found.count(found[0]) < len(found):
            raise CheckpointError(f"ranks read checkpoints of steps {found}; is run.output the same for all?")
        self._learner.policy.sync_from_sampler()
        return state

    def _restored_here(self, steps: list[int]) -> dict[str, Any] | None:
        damaged: list[DamagedCheckpointError] = []
        for step in reversed(steps):
            try:
                state = self._checkpoints.restore(step, self._learner)
                self._check(state, step)
            except DamagedCheckpointError as error:
                damaged.append(error)
                continue
            for why, bad in zip(damaged, reversed(steps), strict=False):
                place = self._checkpoints.set_aside(bad)
                self.notes.append(f"{why}; going on from step {step}. It is kept as {place.name}")
            return state
        if damaged:
            raise CheckpointError("no checkpoint can be read:\n  " + "\n  ".join(map(str, damaged)))
        return None

    def _check(self, state: Mapping[str, Any], step: int) -> None:
        """Raise for a state that is not one of this run at this step."""
        where = f"the checkpoint of step {step}"
        lines = self._journal.lines_up_to(step)
        own = {**self._now(), "lines": lines, "settings": "", "code": code_revision()}
        try:
            _same_shape({**own, "libraries": library_versions()}, state, "state.json")
        except ValueError as error:
            raise DamagedCheckpointError(f"{where}: {error}") from error
        if state["step"] != step:
            raise DamagedCheckpointError(f"{where} says that it is of step {state['step']}")
        for name, written in lines.items():
            if written < state["lines"][name]:
                raise DamagedCheckpointError(
                    f"{name} has {written} lines up to step {step}, and had {state['lines'][name]} when "
                    f"{where} was written; put the file back"
                )
        if state["settings"] not in known_digests(self._journal.folder):
            raise CheckpointError(
                f"{where} was written with settings that the run's folder knows nothing of; restore its "
                "settings.toml and changes.json, or begin anew in another run.output"
            )

    def _adopt(self, state: Mapping[str, Any]) -> None:
        try:
            generators.restore(state["generators"])
            self._experience.restore(state["experience"])
            self._guards.restore(state["guards"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint of step {state['step']}: {error!r}") from error
        self.step, self.rolled_back = int(state["step"]), bool(state["rolled_back"])
        self.after_step_due = bool(state["after_step_due"])
        self._saved = _position(state)
        for what, now in (("code", code_revision()), ("libraries", library_versions())):
            if changed := differences(state[what], now):
                self.notes.append(
                    f"the {what} changed since step {self.step} ({', '.join(changed)}): what follows may "
                    "differ in the last bits"
                )


def _same_shape(expected: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    """Raise `ValueError` where a field is missing at any depth; defaults would take its place silently."""
    same_fields(expected, found, where)
    for name, value in expected.items():
        if isinstance(value, Mapping):
            _same_shape(value, found[name], f"{where}: {name}")


def _position(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: state[name] for name in ("step", "after_step_due")}
