"""Guards: numbers that a run must not learn from, and what is done about each.

A guard that trips is counted in the step's record, and no policy lets a run go on for ever without learning:
skips in a row and roll backs are limited. docs/recovery.md has the table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from math import isfinite
from typing import Any

from aipo.config.guards import Policy
from aipo.config.settings import Settings
from aipo.rollout.episode import NOT_FINITE
from aipo.rollout.group import Group
from aipo.training.credit import Credit
from aipo.training.events import NonFiniteError, StopRunError
from aipo.training.failures import too_many_failed, too_many_ungraded
from aipo.training.trends import Trends


class Guard(StrEnum):
    """What can be wrong; also the name of its policy in the table `guards`."""

    NON_FINITE = "non_finite"
    DIVERGENCE = "divergence"
    ENTROPY = "entropy"
    ZERO_VARIANCE = "zero_variance"
    UNGRADED = "ungraded"
    FAILED_CONSULTATIONS = "failed_consultations"


class SkipStepError(Exception):
    """The step is not learnt from; it is recorded, and the run goes on."""


class RollBackError(Exception):
    """The step ends with the weights of the newest periodic checkpoint."""


@dataclass(slots=True, kw_only=True)
class _Kept:
    """What the next step's guards depend on; part of a checkpoint."""

    skipped_steps: int = 0
    low_entropy_steps: int = 0
    zero_variance_steps: int = 0
    roll_backs: int = 0
    agent_cost: float = 0.0


class Guards:
    """The guards of one run: one step after another."""

    def __init__(self, settings: Settings) -> None:
        self._limits, self._train = settings.guards, settings.train
        self._judged = bool(settings.task.reward)
        self._kept = _Kept()
        self.trends = Trends(settings)
        """Not in a checkpoint: the lines of metrics.jsonl say all that it needs."""
        self._step = 0
        self._trips: dict[Guard, int] = {}
        self._skipped_minibatches = 0
        self._skipped = False
        self._stop = ""
        """A stop that waits for the end of the step, because the weights have changed already."""

    # a step, in the order of its events

    def begin(self, step: int) -> None:
        """Begin a step: nothing has tripped. Raises `StopRunError` when the run's money is spent."""
        limit, spent = self._limits.max_agent_cost, self._kept.agent_cost
        self._step, self._trips = step, dict.fromkeys(Guard, 0)
        self._skipped_minibatches, self._skipped, self._stop = 0, False, ""
        if limit and spent >= limit:
            whom = "consultations and judgements" if self._judged else "consultations"
            what = f"{whom} have cost {spent:.4g} so far, guards.max_agent_cost = {limit:g} in all"
            raise StopRunError(self._paragraph(what, "max_agent_cost"))

    def check_rollouts(
        self, groups: Sequence[Group], credits: Sequence[Sequence[Credit]]
    ) -> list[list[Credit]]:
        """Return the credits to learn from. Raises `StopRunError`, `SkipStepError` or `RollBackError`."""
        lost = sum(NOT_FINITE in m.grade.reason for g in groups for m in g.members)
        finite = [[c for c in of_group if _finite(c)] for of_group in credits]
        nonfinite = lost + sum(map(len, credits)) - sum(map(len, finite))
        if nonfinite:
            what = "sampled log-probabilities or advantages that are not finite numbers"
            self._trip(Guard.NON_FINITE, f"{nonfinite} rollouts had {what}", number=nonfinite)
        if why := too_many_ungraded(groups, self._train):
            self._trip(Guard.UNGRADED, why, whole_step=True)
        if why := too_many_failed(groups, self._train):
            self._trip(Guard.FAILED_CONSULTATIONS, why, whole_step=True)
        return finite

    def check_minibatch(self, sums: Mapping[str, float], first: bool) -> None:
        """Raise `StopRunError` for a mini-batch whose gradient must not be applied.

        `sums` are those of `training/update.py`; `first`: the weights are those that sampled.
        """
        tokens = sums.get("policy_tokens", 0.0)
        if not tokens:
            return
        ratio, abs_diff = sums["ratio"] / tokens, sums["mismatch_sum"] / tokens
        if not ratio <= self._limits.max_ratio:
            raise _DivergedError(
                f"the mean ratio p/p_old of a mini-batch is {ratio:.3g}, more than guards.max_ratio = "
                f"{self._limits.max_ratio:g}"
            )
        if first and not abs_diff <= self._limits.max_mismatch_nats:
            raise _DivergedError(
                f"trainer and sampler are {abs_diff:.3g} nats apart in the mean before the first update, "
                f"more than guards.max_mismatch_nats = {self._limits.max_mismatch_nats:g}: the engine "
                "samples from another policy"
            )

    def refuse_minibatch(self, error: StopRunError, weights_changed: bool) -> None:
        """Decide about a mini-batch that was refused with `error`: return to leave it out.

        Raises `StopRunError` or `RollBackError`. A stop after an optimiser step waits for the end of the
        step, so that the weights that are saved are those of a whole step.
        """
        guard = Guard.DIVERGENCE if isinstance(error, _DivergedError) else Guard.NON_FINITE
        try:
            self._trip(guard, f"{error}; the mini-batch was left out")
        except StopRunError as stop:
            if not weights_changed:
                raise
            self._stop = str(stop)
        self._skipped_minibatches += 1

    def leaves_out_the_rest(self) -> bool:
        """Say whether the step ends with a stop and takes no further mini-batch; counts the one asked for."""
        self._skipped_minibatches += bool(self._stop)
        return bool(self._stop)

    def check_step(self, metrics: Mapping[str, float]) -> None:
        """Look at a step after its update. Raises `RollBackError`; a stop is raised by `end`."""
        low = metrics.get("policy_tokens", 0) > 0 and metrics["entropy"] < self._limits.min_entropy_nats
        self._kept.low_entropy_steps = self._kept.low_entropy_steps + 1 if low else 0
        flat = metrics["teaching_groups"] == 0
        self._kept.zero_variance_steps = self._kept.zero_variance_steps + 1 if flat else 0
        if self._kept.low_entropy_steps >= self._limits.entropy_steps:
            self._late(
                Guard.ENTROPY,
                f"the entropy is {metrics['entropy']:.2g} nats a token, and has been below "
                f"guards.min_entropy_nats = {self._limits.min_entropy_nats:g} for "
                f"{self._kept.low_entropy_steps} steps: the policy says one thing only",
            )
        if self._kept.zero_variance_steps >= self._limits.zero_variance_steps:
            self._late(
                Guard.ZERO_VARIANCE,
                f"no group of the last {self._kept.zero_variance_steps} steps taught anything: in each, all "
                "rollouts had the same verdict. Problems that are neither too easy nor too hard teach, and "
                "so does train.dynamic_sampling_rounds",
            )

    def count_step(self, agent_cost: float) -> dict[str, float]:
        """Close the step's books; return what its record says of the guards."""
        self._kept.agent_cost += agent_cost
        self._kept.skipped_steps = self._kept.skipped_steps + 1 if self._skipped else 0
        if self._kept.skipped_steps > self._limits.max_skipped_steps and not self._stop:
            tripped = ", ".join(guard for guard, number in self._trips.items() if number)
            self._stop = self._paragraph(
                f"something was skipped in {self._kept.skipped_steps} steps in a row, more than "
                f"guards.max_skipped_steps = {self._limits.max_skipped_steps}; this time by: {tripped}",
                "max_skipped_steps",
            )
        return {
            **{f"guards/{guard}": float(number) for guard, number in self._trips.items()},
            "guards/skipped_minibatches": float(self._skipped_minibatches),
            "guards/skipped_steps_in_a_row": float(self._kept.skipped_steps),
            "guards/roll_backs": float(self._kept.roll_backs),
        }

    def watch(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Look at where a step's numbers are going; return what begins to go wrong, by the guard's name.

        A stop is raised by `end`.
        """
        began = self.trends.add(metrics)
        for trend, what in began.items():
            if getattr(self._limits, trend) == "stop":
                self._stop = self._stop or self._paragraph(what, trend)
        return {f"{trend}": what for trend, what in began.items()}

    def end(self) -> None:
        """Raise the `StopRunError` that waited for the end of the step, if there is one."""
        if self._stop:
            raise StopRunError(self._stop)

    # policies

    def _trip(self, guard: Guard, what: str, number: int = 1, whole_step: bool = False) -> None:
        self._trips[guard] += number
        policy: Policy = getattr(self._limits, guard)
        if policy == "roll_back":
            self._count_roll_back(guard, what)
            raise RollBackError(what)
        if policy == "stop":
            error = NonFiniteError if guard is Guard.NON_FINITE else StopRunError
            raise error(self._paragraph(what, guard))
        self._skipped = True
        if whole_step:
            raise SkipStepError(what)

    def _late(self, guard: Guard, what: str) -> None:
        """Trip after the update: a stop waits for the end of the step, and to skip is only to count."""
        skipped = self._skipped
        try:
            self._trip(guard, what)
        except StopRunError as stop:
            self._stop = self._stop or str(stop)
        self._skipped = skipped

    def _count_roll_back(self, guard: Guard, what: str) -> None:
        if self._kept.roll_backs >= self._limits.max_roll_backs:
            used_up = f"{what}; guards.max_roll_backs = {self._limits.max_roll_backs} are used up"
            raise StopRunError(self._paragraph(used_up, guard))
        kept = _Kept(skipped_steps=self._kept.skipped_steps, agent_cost=self._kept.agent_cost)
        kept.roll_backs = self._kept.roll_backs + 1
        self._kept, self._skipped = kept, True

    def _paragraph(self, what: str, setting: str) -> str:
        end = "" if what.endswith("\n") else ". "
        return (
            f"step {self._step}: {what}{end}A valid checkpoint is there and the same command continues "
            f"from it; if it stops here again, change what causes this, or name guards.{setting} with "
            "--allow-change (docs/recovery.md)"
        )

    # checkpoints

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return asdict(self._kept)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._kept = _Kept(**state)


class _DivergedError(StopRunError):
    """A mini-batch's ratios say that the policy has run away from what was sampled."""


def _finite(credit: Credit) -> bool:
    return isfinite(credit.advantage.policy) and isfinite(credit.advantage.feedback)
