"""The compact records of a comparison, and the report that is generated from nothing else.

Owns how the records of many runs become one table, figures and words. Must not run anything.
Invariant: every number of the report comes from the records; the same records give the same report.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aipo.comparison.records import RunRecord, read_run
from aipo.comparison.sections import TOKEN_K, differences, how, internals, token_points, token_table
from aipo.evaluation.plots import boundary_plot, expert_token_plot, training_plot
from aipo.evaluation.records import at_last_step, methods_of
from aipo.evaluation.statistics import estimate
from aipo.evaluation.table import Table, format_estimate, format_share, results_table
from aipo.training.durable import write_whole

FACTS, RUNS = "facts.json", "runs"
TRAINING_PANELS = (
    "reward_solo/hard",
    "reward_consulting/hard",
    "feedback_prob",
    "consultations/verify",
    "consultations/knowledge",
    "consultations/reasoning",
)
HARD = "hard"


@dataclass(frozen=True, slots=True)
class TuningPoint:
    """One learning rate of one method, and what it reached on the validation split."""

    method: str
    learning_rate: float
    criterion: float


@dataclass(frozen=True, slots=True)
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


def write_facts(folder: Path, facts: Facts) -> None:
    """Write the facts beside the runs' records."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FACTS, json.dumps(asdict(facts), indent=1) + "\n")


class Report:
    """The parts of a report, each generated from compact records; a page may put words around them.

    Parts take the titles of the methods to show, in order; none: all of them.
    """

    def __init__(self, records: Path, pass_at: Sequence[int]) -> None:
        """Read the records. Raises `RecordError` or `OSError` if they cannot be read."""
        self.records = records
        self.facts: dict[str, Any] = json.loads((records / FACTS).read_text())
        runs = [read_run(path) for path in sorted((records / RUNS).glob("*.json"))]
        order = {method: i for i, method in enumerate(self.facts["methods"])}
        self._runs = sorted(
            (run for run in runs if run.method in order), key=lambda r: (order[r.method], r.seed)
        )
        self._pass_at = pass_at

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
        return Report(self.records, [*self._pass_at[:1], *self._pass_at[1:][-1:]]).table()

    def table(
        self,
        methods: Sequence[str] = (),
        strata: Sequence[str] | None = None,
        modes: Sequence[str] | None = None,
    ) -> Table:
        """Return the results table; beside a hard stratum others have the smallest k only, unless named."""
        final = self._final(methods)
        found = dict.fromkeys(stratum for record in final for stratum in record.strata)
        if HARD in found and not strata:
            found = dict.fromkeys([HARD, *found])
            pass_at = {s: self._pass_at if s == HARD else self._pass_at[:1] for s in found}
            return results_table(final, pass_at, tuple(found), modes)
        return results_table(final, self._pass_at, strata, modes)

    @property
    def easy(self) -> tuple[str, ...]:
        """The strata that are not the hard one."""
        found = dict.fromkeys(stratum for record in self._final(()) for stratum in record.strata)
        return tuple(stratum for stratum in found if stratum != HARD)

    def cell(self, method: str, mode: str, k: int, stratum: str = HARD) -> str:
        """Return one estimate as it stands in the table. Raises `ValueError` for what was not measured."""
        own = [r for r in self._final([method]) if r.mode == mode]
        if not own:
            raise ValueError(f"no evaluation of {method!r} in mode {mode!r}; there are {self.methods}")
        return format_estimate(estimate(own, stratum, k))

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
        shown, final = [], self._final(methods)
        if any(HARD in record.strata for record in final):
            boundary_plot(final, output / f"{prefix}boundary")
            shown.append(f"![pass@k of hard problems]({prefix}boundary.svg)\n")
        runs = self._chosen(methods)
        series = {m: [row for r in runs if r.method == m for row in r.metrics] for m in methods_of(final)}
        if series := {method: rows for method, rows in series.items() if rows}:
            known = {name for rows in series.values() for row in rows for name in row}
            training_plot(
                series, output / f"{prefix}training", tuple(p for p in TRAINING_PANELS if p in known)
            )
            shown.append(f"![training curves]({prefix}training.svg)\n")
        if points := token_points(runs):
            expert_token_plot(points, output / f"{prefix}expert_tokens", f"hard, unanswered, pass@{TOKEN_K}")
            shown.append(f"![quality against expert tokens]({prefix}expert_tokens.svg)\n")
        return shown

    def differences(self, methods: Sequence[str] = (), baseline: str = "", k: int = 1) -> str:
        """Return the paired differences to the baseline on hard problems; '' where there are none."""
        baseline = baseline or self.facts["baseline"]
        final = self._final([*methods, baseline] if methods else ())
        bounded = [record for record in final if HARD in record.strata]
        return differences(bounded, baseline, HARD, k)

    def internals(self, methods: Sequence[str] = ()) -> str:
        """Return how often was consulted, how likely feedback became, and gradient norms by source."""
        return internals(self._chosen(methods))

    def token_table(self, methods: Sequence[str] = ()) -> str:
        """Return quality against expert tokens, one line for each method and evaluated step."""
        return token_table(token_points(self._chosen(methods)))

    def tokens_at(self, method: str, updates: int) -> str:
        """Return one line of `token_table` in words. Raises `ValueError` for what was not measured."""
        for p in token_points(self._chosen([method])):
            if p.updates == updates:
                reached = f"{format_share(p.value)} [{format_share(p.low)}, {format_share(p.high)}]"
                return f"{reached} for {p.raw_tokens:,.0f} tokens ({p.distinct_tokens:,.0f} distinct)"
        raise ValueError(f"no evaluation of {method!r} after {updates} updates with its tokens")

    def how(self) -> str:
        """Return how the numbers came about: command, commits, machine, learning rates, time."""
        return how(self.facts, self._runs)

    def _chosen(self, methods: Sequence[str]) -> list[RunRecord]:
        if not methods:
            return self._runs
        if missing := [m for m in methods if m not in self.methods]:
            raise ValueError(f"no runs of {missing}; there are {self.methods}")
        return [run for method in methods for run in self._runs if run.method == method]

    def _final(self, methods: Sequence[str]) -> Any:
        return at_last_step(record for run in self._chosen(methods) for record in run.evaluations)
