"""Evaluations of checkpoints and comparisons of them as tables for a terminal, Markdown, figures and JSON.

No number is computed here that is not in the scores. Equal evaluations give equal bytes; a number that does
not exist is a dash, or null in JSON.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from aipo.evaluation.intervals import OnlySet, samples_needed, zero_bound
from aipo.evaluation.plots import boundary_plot
from aipo.evaluation.samples import ALL, as_record
from aipo.evaluation.scores import Evaluation, Overall, Pair, Score, agents_worth, overall, scores
from aipo.evaluation.table import MISSING, Grid, difference_cells, interval, p_value, percent
from aipo.training.durable import write_whole

RESULTS_JSON, RESULTS_MD = "results.json", "results.md"
COMPARISON_JSON, COMPARISON_MD = "comparison.json", "comparison.md"
SHOWN_QUESTIONS = 12
GUESSING = "choice"
"""The kind of benchmark whose pass@k goes to 1 by guessing."""
_COLUMNS = (
    *("questions", "n", "Avg@n %", "these questions", "any questions", "pass@n %", "truncated %", "ungraded"),
    *("tokens a response", "tokens"),
)


class ScorePage:
    """An evaluation's tables and files, all from its samples."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.manifest = evaluation.manifest
        self.scores = scores(evaluation)
        self.overall = [overall(evaluation, condition) for condition in evaluation.manifest.conditions]
        self.worth = agents_worth(evaluation) if evaluation.manifest.agents else []

    def table(self, condition: str) -> Grid:
        """Return Avg@n of each benchmark and their mean."""
        rows: list[tuple[str, ...]] = [("benchmark", *_COLUMNS)]
        rows += [_row(self._title(score), score) for score in self._of(condition)]
        mean = next(each for each in self.overall if each.condition == condition)
        if len(self.manifest.benchmarks) > 1:
            rows.append(_mean_row(mean))
        return Grid(rows)

    def strata(self, condition: str) -> dict[str, Grid]:
        """Return, by benchmark that has several, the scores of its strata."""
        found: dict[str, list[tuple[str, ...]]] = {}
        for score in self.scores:
            if score.condition == condition and score.stratum != ALL:
                rows = found.setdefault(score.benchmark, [("stratum", *_COLUMNS)])
                rows.append(_row(score.stratum, score))
        return {name: Grid(rows) for name, rows in found.items()}

    def curves(self, condition: str) -> Grid:
        """Return pass@k by k, with intervals over new questions."""
        chosen = self._of(condition)
        ks = sorted({each.k for score in chosen for each in score.pass_at})
        rows: list[tuple[str, ...]] = [("pass@k %", *map(str, ks))]
        for score in chosen:
            by_k = {each.k: f"{percent(each.value)} {interval(each.interval)}" for each in score.pass_at}
            rows.append((self._title(score), *(by_k.get(k, MISSING) for k in ks)))
        return Grid(rows)

    def agents(self) -> Grid:
        """Return what the agents were worth: Avg@n with them minus that without, question by question."""
        rows: list[tuple[str, ...]] = [("benchmark", "with agents − alone, points", "95 %", "p", "p (Holm)")]
        rows += [(self.manifest.questions(n).title, *difference_cells(d, p)) for n, d, p in self.worth]
        return Grid(rows)

    def notes(self) -> list[str]:
        """Return what a reader must know beside the numbers."""
        sampling = ", ".join(f"{key} {value}" for key, value in self.manifest.sampling.items())
        policy = f"Policy {self.manifest.policy} ({self.manifest.checkpoint})"
        found = [
            f"{policy}; {sampling}; seed {self.manifest.seed}.",
            "Avg@n: mean over questions of the share of their n samples that are correct; ungraded samples "
            "do not count. Intervals, 95 %: over new samples of these questions, and over a new set of any "
            "questions of the kind (bootstrap); exact bounds where nothing varied.",
        ]
        for questions in self.manifest.benchmarks:
            if not questions.whole:
                found.append(f"{questions.title}: only {questions.problems} questions, not the benchmark.")
        for condition in self.manifest.conditions:
            for score in self._of(condition):
                found += _trouble(self._title(score), score)
        return found

    def markdown(self) -> str:
        """Return the whole page."""
        parts = ["# Evaluation\n", *(f"{note}\n" for note in self.notes())]
        for condition in self.manifest.conditions:
            alone = "Alone: no agent was reachable" if condition == "solo" else "With agents"
            parts += [f"## {alone}\n", self.table(condition).markdown(), self.curves(condition).markdown()]
            for name, grid in self.strata(condition).items():
                parts += [f"### {self.manifest.questions(name).title}, by stratum\n", grid.markdown()]
        if self.worth:
            parts += ["## What the agents were worth\n", self.agents().markdown()]
        cautions = [(q.title, note) for q in self.manifest.benchmarks for note in q.notes]
        if cautions:
            parts += ["## Read before quoting\n", "".join(f"- {t}: {note}\n" for t, note in cautions)]
        return "\n".join(parts)

    def write(self, folder: Path) -> None:
        """Write results.json and results.md, each aside and renamed."""
        table = {
            "manifest": asdict(self.manifest),
            "scores": [asdict(score) for score in self.scores],
            "overall": [asdict(each) for each in self.overall],
            "agents_worth": [
                {"benchmark": name, **asdict(difference), "holm_p": p} for name, difference, p in self.worth
            ],
        }
        write_whole(folder / RESULTS_JSON, json.dumps(_finite(table), indent=1, allow_nan=False) + "\n")
        write_whole(folder / RESULTS_MD, self.markdown())

    def _of(self, condition: str) -> list[Score]:
        return [s for s in self.scores if s.condition == condition and s.stratum == ALL]

    def _title(self, score: Score) -> str:
        return self.manifest.questions(score.benchmark).title


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
            for score in scores(each)
            if score.stratum == ALL and score.condition == "solo"
        }
        rows: list[tuple[str, ...]] = [("Avg@n %, alone", *(each.label for each in self._evaluations))]
        for questions in self._benchmarks:
            title = f"{questions.title} (n = {questions.samples})"
            rows.append((title, *(found[each.label, questions.name] for each in self._evaluations)))
        if len(self._benchmarks) > 1:
            means = [overall(each) for each in self._evaluations]
            rows.append(("mean", *(f"{percent(m.average)} {interval(m.population)}" for m in means)))
        return Grid(rows)

    def differences(self, pair: Pair) -> Grid:
        """Return a pair's differences of Avg@n."""
        rows: list[tuple[str, ...]] = [("benchmark", "difference, points", "95 %", "p", "p (Holm)")]
        for benchmark in pair.benchmarks:
            rows.append(
                (self._title(benchmark.name), *difference_cells(benchmark.difference, benchmark.holm_p))
            )
        if len(pair.benchmarks) > 1:
            rows.append(("mean", percent(pair.overall), interval(pair.overall_interval), "", ""))
        return Grid(rows)

    def curves(self, pair: Pair) -> Grid:
        """Return a pair's differences of pass@k."""
        ks = sorted({k for benchmark in pair.benchmarks for k in benchmark.curve})
        rows: list[tuple[str, ...]] = [("difference of pass@k, points", *map(str, ks))]
        for benchmark in pair.benchmarks:
            cells = {k: f"{percent(d.value)} {interval((d.low, d.high))}" for k, d in benchmark.curve.items()}
            rows.append((self._title(benchmark.name), *(cells.get(k, "") for k in ks)))
        return Grid(rows)

    def sets(self, pair: Pair) -> Grid:
        """Return how many questions only one of a pair solved, and what chance gives."""
        rows: list[tuple[str, ...]] = [
            ("benchmark", "both", "neither", "only A", "by chance", "p", "only B", "by chance", "p")
        ]
        for benchmark in pair.benchmarks:
            sets = benchmark.sets
            cells = [cell for only in (sets.only_a, sets.only_b) for cell in _set_cells(only)]
            rows.append((self._title(benchmark.name), str(sets.both), str(sets.neither), *cells))
        return Grid(rows)

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
                    each.of(questions.name),
                    each.label,
                    str(each.manifest.sampling["solo_mode"]),
                    questions.title,
                )
                for each in self._evaluations
            ]
            svg, _ = boundary_plot(records, folder / f"pass_at_k_{questions.name}", [questions.title])
            svgs.append((questions.title, svg.name))
        table = _finite({"pairs": [asdict(pair) for pair in self._pairs]})
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
            if self._evaluations[0].manifest.questions(benchmark.name).kind == GUESSING:
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
        return self._evaluations[0].manifest.questions(name).title


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


def _finite(value: Any) -> Any:
    """Return a JSON-ready value with null in the place of each NaN."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _row(title: str, score: Score) -> tuple[str, ...]:
    last = score.pass_at[-1]
    return (
        title,
        str(score.questions),
        str(score.samples),
        percent(score.average),
        interval(score.fixed),
        interval(score.population),
        percent(last.value),
        percent(score.truncated),
        f"{score.ungraded}/{score.all_samples}",
        f"{score.response_tokens / score.all_samples:.0f}",
        f"{score.response_tokens:,}",
    )


def _mean_row(mean: Overall) -> tuple[str, ...]:
    cells = ("mean", "", "", percent(mean.average), interval(mean.fixed), interval(mean.population))
    return (*cells, *[""] * (1 + len(_COLUMNS) - len(cells)))


def _trouble(title: str, score: Score) -> Iterable[str]:
    where = f"{title}, {score.condition}"
    if score.too_long:
        yield f"{where}: {score.too_long} prompts do not fit the policy's context; they count as wrong."
    if score.unreadable:
        yield (
            f"{where}: {score.unreadable} of {score.questions} prompts hold words that the tokenizer does "
            "not know; they were asked all the same."
        )
    if score.ungraded:
        yield f"{where}: {score.ungraded} samples could not be graded and are in no denominator."
