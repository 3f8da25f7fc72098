"""The state of a run between two steps: what it consists of, how it is saved, and how a run returns to it.

A restored run continues to the last bit as the saved one would have. docs/recovery.md says of each part why
it is there.
"""

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import Any

import torch

from aipo.config.settings import Settings
from aipo.training import generators
from aipo.training.changes import known_digests, settings_digest
from aipo.training.checkpoint import (
    CheckpointError,
    Checkpoints,
    DamagedCheckpointError,
    NotSavedError,
    same_fields,
)
from aipo.training.events import LostRankError, NonFiniteError, StalledError, StopRunError
from aipo.training.experience import Experience
from aipo.training.guards import Guards
from aipo.training.journal import METRICS, Journal, NotRecordedError, read_lines
from aipo.training.provenance import code_revision, differences, library_versions
from aipo.training.ranks import ALONE, Ranks
from aipo.training.sharded import Whole


class RunState:
    """The state of one run."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        learner: tuple[Any, Any, Any],
        experience: Experience,
        guards: Guards,
        ranks: Ranks = ALONE,
        policy: Whole | None = None,
    ) -> None:
        """`learner`: model, optimiser, scheduler. Of several `ranks` all restore and the first one writes."""
        train = settings.train
        self._ranks, self._policy = ranks, policy
        self._learner, self._experience, self._guards, self._journal = learner, experience, guards, journal
        folder = settings.run.output / "checkpoints"
        self._checkpoints = ranks.in_turn(lambda: Checkpoints(folder, train.keep_checkpoints))
        self._seed, self._steps = settings.run.seed, train.steps
        limits = settings.guards
        policies = (limits.non_finite, limits.divergence, limits.entropy, limits.zero_variance)
        self._may_roll_back = "roll_back" in (*policies, limits.ungraded, limits.failed_consultations)
        code_revision(), library_versions()  # found out now: a stop should not wait for git
        self.step = 0
        self.after_step_due = False
        """Whether what follows a step, an evaluation for instance, is still to be done for `step`."""
        self.rolled_back = False
        """Whether the step ended with the weights of an earlier one."""
        self.notes: list[str] = []
        """What the user should know about a resume."""
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

    def save(self, periodic: bool) -> None:
        """Write a checkpoint of the state between two steps. Raises `NotSavedError`."""
        self._write(self._now(), periodic)

    def save_for_stop(self, weights_changed: bool) -> None:
        """Write what is whole, unless it is there: the state before the step under way, or the present one.

        In a step whose weights have changed already there is no such state. Raises `NotSavedError`.
        """
        if self._before is None:
            self._write(self._now(), periodic=False)
        elif not weights_changed:
            self._write(self._before, periodic=False)

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

    def _write(self, state: dict[str, Any], periodic: bool) -> None:
        if self._saved == _position(state) and not periodic:
            return
        self._refuse_spoilt_weights(state["step"])
        with self._policy.collected() if self._policy else nullcontext():
            self._ranks.first(lambda: self._write_files(state, periodic))
        self._saved = _position(state)

    def _write_files(self, state: Mapping[str, Any], periodic: bool) -> None:
        self._journal.sync()
        state = {
            **state,
            "lines": self._journal.lines_up_to(state["step"]),
            "settings": settings_digest(self._journal.folder),
            "code": code_revision(),
            "libraries": library_versions(),
        }
        self._checkpoints.save(state["step"], *self._learner, state, periodic)

    def _refuse_spoilt_weights(self, step: int) -> None:
        """Raise `NonFiniteError`: a checkpoint of NaNs would push out those that can be gone back to."""
        model, *_ = self._learner
        for name, parameter in model.named_parameters():
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
            self.save(periodic=True)

    def _begin_files(self) -> None:
        self._journal.rewind(self.step)
        self._journal.changes.hold_from(self.step)
        self._journal.say_going_on()

    def roll_back(self) -> None:
        """Take the weights and the optimiser of the newest periodic checkpoint; all else stays as it is.

        The rate of learning belongs to the step's number, so the scheduler stays too.
        """
        *_, scheduler = self._learner
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
        if self._policy is not None:
            self._policy.sync_from_sampler()
        return state

    def _restored_here(self, steps: list[int]) -> dict[str, Any] | None:
        damaged: list[DamagedCheckpointError] = []
        for step in reversed(steps):
            try:
                state = self._checkpoints.restore(step, *self._learner)
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
