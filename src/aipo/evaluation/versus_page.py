"""How a comparison of evaluations is shown: tables, sets of questions, pass@k figures, one JSON file.

Owns layout. Must not compute a number that is not in the comparison. Invariant: equal evaluations give equal
bytes.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from aipo.evaluation.intervals import zero_bound
from aipo.evaluation.plots import boundary_plot
from aipo.evaluation.score_page import Grid, difference_cells, finite, interval, p_value, percent
from aipo.evaluation.scores import as_record, overall, scores
from aipo.evaluation.solved_sets import OnlySet, samples_needed
from aipo.evaluation.versus import Evaluation, Pair
from aipo.training.durable import write_whole

COMPARISON_JSON, COMPARISON_MD = "comparison.json", "comparison.md"
SHOWN_QUESTIONS = 12
GUESSING = "choice"
"""The kind of benchmark whose pass@k goes to 1 by guessing."""


class VersusPage:
    """The tables, files and figures of a comparison."""

    def __init__(self, evaluations: Sequence[Evaluation], pairs: Sequence[Pair]) -> None:
        self._evaluations, self._pairs = evaluations, pairs
        self._benchmarks = evaluations[0].manifest.benchmarks

    def averages(self) -> Grid:
        """Return each evaluation's Avg@n by benchmark, with the interval over new questions."""
        found = {
            (each.label, score.benchmark): f"{percent(score.average)} {interval(score.population)}"
            for each in self._evaluations
            for score in scores(each.manifest, each.samples)
            if score.stratum == "all" and score.condition == "solo"
        }
        rows: list[tuple[str, ...]] = [("Avg@n %, alone", *(each.label for each in self._evaluations))]
        for questions in self._benchmarks:
            title = f"{questions.title} (n = {questions.samples})"
            rows.append((title, *(found[each.label, questions.name] for each in self._evaluations)))
        if len(self._benchmarks) > 1:
            means = [overall(each.manifest, each.samples, "solo") for each in self._evaluations]
            rows.append(("mean", *(f"{percent(m.average)} {interval(m.population)}" for m in means)))
        return Grid(tuple(rows))

    def differences(self, pair: Pair) -> Grid:
        """Return a pair's differences of Avg@n."""
        rows: list[tuple[str, ...]] = [("benchmark", "difference, points", "95 %", "p", "p (Holm)")]
        for benchmark in pair.benchmarks:
            rows.append(
                (self._title(benchmark.name), *difference_cells(benchmark.difference, benchmark.holm_p))
            )
        if len(pair.benchmarks) > 1:
            rows.append(("mean", percent(pair.overall), interval(pair.overall_interval), "", ""))
        return Grid(tuple(rows))

    def curves(self, pair: Pair) -> Grid:
        """Return a pair's differences of pass@k."""
        ks = sorted({k for benchmark in pair.benchmarks for k in benchmark.curve})
        rows: list[tuple[str, ...]] = [("difference of pass@k, points", *map(str, ks))]
        for benchmark in pair.benchmarks:
            cells = {k: f"{percent(d.value)} {interval((d.low, d.high))}" for k, d in benchmark.curve.items()}
            rows.append((self._title(benchmark.name), *(cells.get(k, "") for k in ks)))
        return Grid(tuple(rows))

    def sets(self, pair: Pair) -> Grid:
        """Return how many questions only one of a pair solved, and what chance gives."""
        rows: list[tuple[str, ...]] = [
            ("benchmark", "both", "neither", "only A", "by chance", "p", "only B", "by chance", "p")
        ]
        for benchmark in pair.benchmarks:
            sets = benchmark.sets
            cells = [cell for only in (sets.only_a, sets.only_b) for cell in _set_cells(only)]
            rows.append((self._title(benchmark.name), str(sets.both), str(sets.neither), *cells))
        return Grid(tuple(rows))

    def markdown(self, figures: Sequence[tuple[str, str]]) -> str:
        """Return the whole page; `figures` are (title, file)."""
        parts = ["# Comparison of evaluations\n", self.averages().markdown()]
        for pair in self._pairs:
            parts += [f"## A = {pair.a}, B = {pair.b}\n", self.differences(pair).markdown(), _HOW_P]
            parts += [self.curves(pair).markdown(), self.sets(pair).markdown(), self.set_words(pair)]
        parts += [f"![pass@k, {title}]({file})\n" for title, file in figures]
        return "\n".join(parts)

    def write(self, folder: Path) -> list[Path]:
        """Write comparison.json, comparison.md and a figure for each benchmark; return the files."""
        folder.mkdir(parents=True, exist_ok=True)
        svgs = []
        for questions in self._benchmarks:
            records = [
                as_record(
                    each.of(questions.name, "solo"),
                    each.label,
                    str(each.manifest.sampling["solo_mode"]),
                    questions.title,
                )
                for each in self._evaluations
            ]
            svg, _ = boundary_plot(records, folder / f"pass_at_k_{questions.name}", questions.title)
            svgs.append((questions.title, svg.name))
        table = finite({"pairs": [asdict(pair) for pair in self._pairs]})
        write_whole(folder / COMPARISON_JSON, json.dumps(table, indent=1, allow_nan=False) + "\n")
        write_whole(folder / COMPARISON_MD, self.markdown(svgs))
        return [folder / COMPARISON_MD, folder / COMPARISON_JSON, *(folder / file for _, file in svgs)]

    def set_words(self, pair: Pair) -> str:
        """Return the sets with the names of their questions, and what they do not show."""
        lines = []
        for benchmark in pair.benchmarks:
            for side, other, only in (("A", "B", benchmark.sets.only_a), ("B", "A", benchmark.sets.only_b)):
                if only.problems:
                    lines.append(f"- {self._title(benchmark.name)}: {_set_sentence(side, other, only)}")
            if self._kind(benchmark.name) == GUESSING:
                lines.append(
                    f"- {self._title(benchmark.name)} has four choices: its pass@k and its sets follow "
                    "from guessing, and say nothing about what a policy can solve."
                )
        n = max(questions.samples for questions in self._benchmarks)
        lines.append(
            f"- 0 correct of {n} samples leaves a chance of up to {percent(zero_bound(n))} % per sample open "
            f"(95 %); to bound it below 5 % takes {samples_needed(0.05)} samples, below 1 % "
            f"{samples_needed(0.01)}."
        )
        return "\n".join(lines) + "\n"

    def _title(self, name: str) -> str:
        return next(questions.title for questions in self._benchmarks if questions.name == name)

    def _kind(self, name: str) -> str:
        return next(questions.kind for questions in self._benchmarks if questions.name == name)


_HOW_P = (
    "A minus B, question by question. Interval: bootstrap over questions. p: sign flips of the questions' "
    "differences, all of them up to 12 questions that differ, else 5,000 at random. Holm: corrected for all "
    "benchmarks of all pairs here. Training seeds are not in it: another training run may differ.\n"
)


def _set_cells(only: OnlySet) -> tuple[str, str, str]:
    return str(len(only.problems)), f"{only.by_chance:.1f}", p_value(only.p_value)


def _set_sentence(side: str, other: str, only: OnlySet) -> str:
    named = ", ".join(only.problems[:SHOWN_QUESTIONS])
    more = len(only.problems) - SHOWN_QUESTIONS
    rest = f" and {more} more (comparison.json)" if more > 0 else ""
    return (
        f"only {side} solved {len(only.problems)}: {named}{rest}. On each, {other}'s chance per sample "
        f"is below {percent(only.largest_missed)} % (95 %); sampled as often again, {other} may be expected "
        f"to solve up to {only.another_run:.1f} of them."
    )
