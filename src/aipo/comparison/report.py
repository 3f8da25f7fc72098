"""The compact records of a comparison, and the report that is generated from nothing else.

Every number of the report comes from the records; the same records give the same report. No stratum is
special by its name: those in the comparison's focus are shown first, in figures alone; without one, all are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aipo.comparison.records import RunRecord, read_run
from aipo.comparison.sections import how, internals
from aipo.core.types import SoloMode
from aipo.evaluation.plots import TokenPoint, boundary_plot, expert_token_plot, training_plot
from aipo.evaluation.records import EvaluationRecord, at_last_step, methods_of
from aipo.evaluation.statistics import estimate
from aipo.evaluation.table import Table, format_estimate, results_table
from aipo.report.expert_tokens import format_point, spent_tokens, token_grid, token_points
from aipo.report.results import HOW_PAIRED, paired_differences
from aipo.training.durable import write_whole

FACTS, RUNS = "facts.json", "runs"
SHOWN_METRICS = ("feedback_prob", "consultations")
"""Beside rewards; what stands before the first `/` of a name."""


@dataclass(frozen=True, slots=True)
class TuningPoint:
    """One learning rate of one method, and what it reached on the validation split."""

    method: str
    learning_rate: float
    criterion: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a reader must know of a comparison beside its runs."""

    name: str
    command: str
    baseline: str
    """The method that the others are compared with, pair by pair."""
    methods: tuple[str, ...]
    """In the order of the tables."""
    tuning: tuple[TuningPoint, ...]
    missing: int
    """Runs that are planned and not there yet."""
    focus: tuple[str, ...] = ()
    """The strata that matter most; none: all alike. Facts of earlier versions do not say it."""


def write_facts(folder: Path, facts: Facts) -> None:
    """Write the facts beside the runs' records."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FACTS, json.dumps(asdict(facts), indent=1) + "\n")


class Report:
    """The parts of a report, each generated from compact records; a page may put words around them.

    Parts take the titles of the methods to show, in order; none: all of them.
    """

    def __init__(self, records: Path, pass_at: Sequence[int], focus: Sequence[str] = ()) -> None:
        """Read the records; `focus` is for facts that name none. Raises `RecordError` or `OSError`."""
        self.records = records
        self.facts: dict[str, Any] = json.loads((records / FACTS).read_text())
        runs = [read_run(path) for path in sorted((records / RUNS).glob("*.json"))]
        order = {method: i for i, method in enumerate(self.facts["methods"])}
        self._runs = sorted(
            (run for run in runs if run.method in order), key=lambda r: (order[r.method], r.seed)
        )
        self._pass_at = pass_at
        self.strata = tuple(dict.fromkeys(s for run in runs for e in run.evaluations for s in e.strata))
        """In the order of the data."""
        wanted = self.facts.get("focus") or focus
        self.focus = tuple(stratum for stratum in wanted if stratum in self.strata)

    def write(self, output: Path) -> Path:
        """Write `results.md`, `results.csv` and the figures into a folder; return the Markdown file."""
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.csv").write_text(self.table().csv())
        parts = [f"# {self.facts['name']}\n", self.table().markdown(), *self.figures(output)]
        parts += [part for part in (self.differences(), self.internals(), self.token_table()) if part]
        path = output / "results.md"
        path.write_text("\n".join([*parts, self.how()]))
        return path

    def summary(self) -> Table:
        """Return the table with the smallest and the largest k only, for a terminal."""
        return Report(self.records, [*self._pass_at[:1], *self._pass_at[1:][-1:]], self.focus).table()

    def table(
        self,
        methods: Sequence[str] = (),
        strata: Sequence[str] | None = None,
        modes: Sequence[str] | None = None,
    ) -> Table:
        """Return the results table; those beside the focus with the smallest k, unless they are named."""
        final = self._final(methods)
        if strata or not self.focus:
            return results_table(final, self._pass_at, strata or self.strata, modes)
        pass_at = {s: self._pass_at if s in self.focus else self._pass_at[:1] for s in self.strata}
        return results_table(final, pass_at, (*self.focus, *self.others), modes)

    @property
    def others(self) -> tuple[str, ...]:
        """The strata beside the focus; none without a focus."""
        return tuple(s for s in self.strata if self.focus and s not in self.focus)

    @property
    def shown(self) -> tuple[str, ...]:
        """The strata of figures, differences and the token table: the focus, or else all."""
        return self.focus or self.strata

    def cell(self, method: str, mode: str, k: int, stratum: str = "") -> str:
        """Return one estimate as it stands in the table; without a stratum, that of the first one shown.

        Raises `ValueError` for what was not measured.
        """
        own = [r for r in self._final([method]) if r.mode == mode]
        if not own:
            raise ValueError(f"no evaluation of {method!r} in mode {mode!r}; there are {self.methods}")
        return format_estimate(estimate(own, stratum or self.shown[0], k))

    @property
    def methods(self) -> tuple[str, ...]:
        """The titles of the methods that have runs."""
        return tuple(dict.fromkeys(run.method for run in self._runs))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The training seeds that there are runs of."""
        return tuple(sorted({run.seed for run in self._runs if run.metrics}))

    def figures(self, output: Path, methods: Sequence[str] = (), prefix: str = "") -> list[str]:
        """Write the figures and return the Markdown that shows them."""
        shown, final, runs = [], self._final(methods), self._chosen(methods)
        if any(record.mode in tuple(SoloMode) for record in final):
            boundary_plot(final, output / f"{prefix}boundary", self.shown)
            shown.append(f"![pass@k of {', '.join(self.shown)} problems]({prefix}boundary.svg)\n")
        series = {m: [row for r in runs if r.method == m for row in r.metrics] for m in methods_of(final)}
        if series := {method: rows for method, rows in series.items() if rows}:
            training_plot(series, output / f"{prefix}training", self._training_panels(series))
            shown.append(f"![training curves]({prefix}training.svg)\n")
        measures = self._token_points(methods)
        if any(measures.values()):
            expert_token_plot(measures, output / f"{prefix}expert_tokens")
            shown.append(f"![quality against expert tokens]({prefix}expert_tokens.svg)\n")
        return shown

    def _training_panels(self, series: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
        known = dict.fromkeys(name for rows in series.values() for row in rows for name in row)
        rewards = [f"reward_{c}/{stratum}" for stratum in self.shown for c in ("solo", "consulting")]
        others = [name for shown in SHOWN_METRICS for name in known if name.partition("/")[0] == shown]
        return [name for name in (*rewards, *others) if name in known]

    def differences(self, methods: Sequence[str] = (), baseline: str = "", k: int = 1) -> str:
        """Return the paired differences to the baseline, one table per stratum; '' where there are none."""
        baseline = baseline or self.facts["baseline"]
        final = self._final([*methods, baseline] if methods else ())
        found = []
        for stratum in self.shown:
            if grid := paired_differences(final, baseline, stratum, k):
                about = f"Paired differences to {baseline}, {stratum} problems, pass@{k} ({HOW_PAIRED}):\n"
                found.append(f"{about}\n{grid.markdown()}")
        return "\n".join(found)

    def internals(self, methods: Sequence[str] = ()) -> str:
        """Return how often was consulted, how likely feedback became, and gradient norms by source."""
        return internals(self._chosen(methods))

    def token_table(self, methods: Sequence[str] = ()) -> str:
        """Return quality against expert tokens, one line for each method and evaluated step; '' if none."""
        grid = token_grid(self._token_points(methods))
        return grid.markdown() if grid else ""

    def tokens_at(self, method: str, updates: int) -> str:
        """Return one line of `token_table` in words. Raises `ValueError` for what was not measured."""
        for p in next(iter(self._token_points([method]).values())):
            if p.updates == updates:
                return f"{format_point(p)} for {p.raw_tokens:,.0f} tokens ({p.distinct_tokens:,.0f} distinct)"
        raise ValueError(f"no evaluation of {method!r} after {updates} updates with its tokens")

    def _token_points(self, methods: Sequence[str]) -> dict[str, list[TokenPoint]]:
        """Return, by what was measured, the points of each stratum that is shown."""
        runs = self._chosen(methods)
        records = [record for run in runs for record in run.evaluations]
        return token_points(records, spent_tokens(runs), self.shown)

    def how(self) -> str:
        """Return how the numbers came about: command, commits, machine, learning rates, time."""
        return how(self.facts, self._runs)

    def _chosen(self, methods: Sequence[str]) -> list[RunRecord]:
        if not methods:
            return self._runs
        if missing := [m for m in methods if m not in self.methods]:
            raise ValueError(f"no runs of {missing}; there are {self.methods}")
        return [run for method in methods for run in self._runs if run.method == method]

    def _final(self, methods: Sequence[str]) -> list[EvaluationRecord]:
        return at_last_step(record for run in self._chosen(methods) for record in run.evaluations)
