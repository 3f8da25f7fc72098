"""How an evaluation of benchmarks is shown: tables for a terminal and Markdown, and one JSON file.

Owns layout and number formats. Must not compute a number that is not in the scores. Invariant: equal samples
give equal bytes; a number that does not exist is a dash, or null in JSON.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import isfinite, isnan
from pathlib import Path
from typing import Any

from aipo.evaluation.scores import ALL, Interval, Overall, Score, overall, scores
from aipo.evaluation.statistics import Difference
from aipo.evaluation.table import BAR, MISSING
from aipo.evaluation.versus import Evaluation, agents_worth
from aipo.training.durable import write_whole

RESULTS_JSON, RESULTS_MD = "results.json", "results.md"


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of texts; the first row is its head."""

    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return it as Markdown; all columns but the first are aligned right."""
        head, *body = (f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |" for row in self.rows)
        return "\n".join((head, "|---|" + "--:|" * (len(self.rows[0]) - 1), *body)) + "\n"

    def __str__(self) -> str:
        widths = [max(map(len, cells)) for cells in zip(*self.rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in self.rows
        )


class ScorePage:
    """An evaluation's tables and files, all from its samples."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.manifest = evaluation.manifest
        self.scores = scores(evaluation.manifest, evaluation.samples)
        self.overall = [
            overall(evaluation.manifest, evaluation.samples, condition)
            for condition in evaluation.manifest.conditions
        ]
        self.worth = agents_worth(evaluation) if evaluation.manifest.agents else []

    def table(self, condition: str) -> Grid:
        """Return Avg@n of each benchmark and their mean."""
        head = ("benchmark", "questions", "n", "Avg@n %", "these questions", "any questions", "pass@n %")
        rows: list[tuple[str, ...]] = [(*head, "truncated %", "ungraded", "tokens a response", "tokens")]
        for score in self._of(condition):
            if score.stratum == ALL:
                rows.append(_row(self._title(score), score))
        mean = next(each for each in self.overall if each.condition == condition)
        if len(self.manifest.benchmarks) > 1:
            rows.append(_mean_row(mean, len(rows[0])))
        return Grid(tuple(rows))

    def strata(self, condition: str) -> dict[str, Grid]:
        """Return, by benchmark that has several, the scores of its strata."""
        found: dict[str, list[tuple[str, ...]]] = {}
        head = ("stratum", "questions", "n", "Avg@n %", "these questions", "any questions", "pass@n %")
        for score in self._of(condition):
            if score.stratum != ALL:
                rows = found.setdefault(
                    score.benchmark, [(*head, "truncated %", "ungraded", "tokens a response", "tokens")]
                )
                rows.append(_row(score.stratum, score))
        return {name: Grid(tuple(rows)) for name, rows in found.items()}

    def curves(self, condition: str) -> Grid:
        """Return pass@k by k, with intervals over new questions."""
        chosen = [score for score in self._of(condition) if score.stratum == ALL]
        ks = sorted({each.k for score in chosen for each in score.pass_at})
        rows: list[tuple[str, ...]] = [("pass@k %", *map(str, ks))]
        for score in chosen:
            by_k = {each.k: f"{percent(each.value)} {interval(each.interval)}" for each in score.pass_at}
            rows.append((self._title(score), *(by_k.get(k, MISSING) for k in ks)))
        return Grid(tuple(rows))

    def agents(self) -> Grid:
        """Return what the agents were worth: Avg@n with them minus that without, question by question."""
        rows: list[tuple[str, ...]] = [("benchmark", "with agents − alone, points", "95 %", "p", "p (Holm)")]
        rows += [(self.manifest.questions(n).title, *difference_cells(d, p)) for n, d, p in self.worth]
        return Grid(tuple(rows))

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
        for score in self.scores:
            if score.stratum == ALL:
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
        write_whole(folder / RESULTS_JSON, json.dumps(finite(table), indent=1, allow_nan=False) + "\n")
        write_whole(folder / RESULTS_MD, self.markdown())

    def _of(self, condition: str) -> list[Score]:
        return [score for score in self.scores if score.condition == condition]

    def _title(self, score: Score) -> str:
        return self.manifest.questions(score.benchmark).title


def percent(share: float) -> str:
    """Return a share in per cent.

    >>> percent(0.1234), percent(float("nan")), percent(-0.0001)
    ('12.3', '–', '0.0')
    """
    if isnan(share):
        return MISSING
    text = f"{100 * share:.1f}"
    return "0.0" if text == "-0.0" else text


def interval(ends: Interval) -> str:
    """Return an interval of shares in per cent.

    >>> interval((0.1, 0.25)), interval((float("nan"), float("nan")))
    ('[10.0, 25.0]', '–')
    """
    return MISSING if isnan(ends[0]) else f"[{percent(ends[0])}, {percent(ends[1])}]"


def difference_cells(difference: Difference, corrected: float) -> tuple[str, str, str, str]:
    """Return a difference in points, its interval, its p-value and the corrected one."""
    ends = interval((difference.low, difference.high))
    return percent(difference.value), ends, p_value(difference.p_value), p_value(corrected)


def p_value(p: float) -> str:
    """Return a p-value.

    >>> p_value(0.04321), p_value(0.0002), p_value(float("nan"))
    ('0.043', '0.0002', '–')
    >>> p_value(1e-9)
    '<0.0001'
    """
    if isnan(p):
        return MISSING
    if p < 0.0001:
        return "<0.0001"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


def finite(value: Any) -> Any:
    """Return a JSON-ready value with null in the place of each NaN."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
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


def _mean_row(mean: Overall, columns: int) -> tuple[str, ...]:
    cells = ("mean", "", "", percent(mean.average), interval(mean.fixed), interval(mean.population))
    return (*cells, *[""] * (columns - len(cells)))


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
