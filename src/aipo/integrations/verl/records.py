"""The records of a run on verl, in the form of `aipo train`, so that `aipo report` reads them.

They are written by the driver after each step, to a folder `journal` in `run.output`; after a resume no line
of a later step is left.
"""

from collections.abc import Mapping, Sequence
from math import isfinite

from aipo.config.settings import Settings
from aipo.rollout.group import Group
from aipo.rollout.records import rollout_records
from aipo.rollout.replies import ConsultContext
from aipo.training.journal import METRICS, ROLLOUTS, TIMINGS, Journal
from aipo.training.metrics import spending

FOLDER = "journal"
OURS = "aipo/"
VERLS = {
    "actor/pg_loss": "loss",
    "actor/grad_norm": "grad_norm",
    "actor/lr": "learning_rate",
    "actor/entropy": "entropy",
    "training/rollout_probs_diff_mean": "sampler_probs_diff_mean",
}
"""Metrics of verl's under the names of `aipo train`; `aipo/entropy`, where there is one, wins."""


class Records:
    """Settings, metrics, timings and rollouts of one run."""

    def __init__(self, settings: Settings, step: int) -> None:
        """Go on after `step`. Raises `RunFolderError` where the folder holds another run."""
        folder = settings.run.output / FOLDER
        run = settings.run.model_copy(update={"output": folder})
        self._every = settings.train.record_rollouts_every_steps
        self._journal = Journal(settings.model_copy(update={"run": run}), may_change=("train.steps",))
        self._journal.rewind(step)

    def add(
        self,
        step: int,
        metrics: Mapping[str, float],
        seconds: Mapping[str, float],
        groups: Sequence[Group],
        consult: ConsultContext,
    ) -> None:
        """Append a step. `metrics` and `seconds` are verl's, the former with the plugin's among them."""
        said = {own: float(metrics[name]) for name, own in VERLS.items() if name in metrics}
        said |= {n.removeprefix(OURS): float(v) for n, v in metrics.items() if n.startswith(OURS)}
        finite = {name: value for name, value in said.items() if isfinite(value)}
        if step == 1 or step % self._every == 0:
            self._journal.append(
                ROLLOUTS, [record for group in groups for record in rollout_records(group, step, consult)]
            )
        self._journal.append(METRICS, [{"step": step, **finite}])
        rollouts = [m.rollout for g in groups for m in g.members if m.rollout]
        times = {
            "rollout_s": seconds.get("gen", 0.0),
            "update_s": seconds.get("step", 0.0) - seconds.get("gen", 0.0),
            "consult_s": sum(c.latency_s for rollout in rollouts for c in rollout.consultations),
        }
        self._journal.append(TIMINGS, [{"step": step, **times, **spending(groups)}])
