"""The results of several runs as tables that can be copied: estimates, and paired differences.

Owns their layout for the page and for LaTeX. Must not compute a statistic itself; Markdown is `table.py`'s.
Invariant: what cannot be compared is said in words, never left out in silence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aipo.evaluation.records import EvaluationRecord, at_last_step, methods_of
from aipo.evaluation.statistics import Difference, paired_difference
from aipo.evaluation.table import MISSING, Table, format_estimate, format_share, results_table

HARD = "hard"
"""What tasks call problems beyond the policy's boundary; tables put them first."""
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


@dataclass(frozen=True, slots=True)
class Grid:
    """A table as text: a head, rows and notes."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def shown(self) -> dict[str, Any]:
        """Return what the page needs, both copies included."""
        return {
            "title": self.title,
            "head": self.head,
            "rows": self.rows,
            "notes": self.notes,
            "markdown": self.markdown(),
            "latex": self.latex(),
        }

    def markdown(self) -> str:
        """Return it as Markdown."""
        rows = [self.head, ("---",) + ("--:",) * (len(self.head) - 1), *self.rows]
        lines = ["| " + " | ".join(_markdown(cell) for cell in row) + " |" for row in rows]
        return "\n".join([*lines, "", "  \n".join(map(_markdown, self.notes))]) + "\n"

    def latex(self) -> str:
        """Return it as a LaTeX `tabular` with booktabs' rules; the notes stand behind it as comments."""
        body = [" & ".join(map(latex_text, row)) + r" \\" for row in self.rows]
        return (
            "\n".join(
                [
                    r"% \usepackage{booktabs}",
                    rf"\begin{{tabular}}{{l{'r' * (len(self.head) - 1)}}}",
                    r"\toprule",
                    " & ".join(map(latex_text, self.head)) + r" \\",
                    r"\midrule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}",
                    *(f"% {' '.join(note.split())}" for note in self.notes),
                ]
            )
            + "\n"
        )


def latex_text(text: str) -> str:
    r"""Return text as LaTeX shows it literally, on one line.

    >>> latex_text("50 % of a_b\n{x}")
    '50 \\% of a\\_b \\{x\\}'
    """
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def result_tables(
    records: Sequence[EvaluationRecord], pass_at: Sequence[int], baseline: str
) -> dict[str, Any]:
    """Return the results of the last step of each method, and the differences to `baseline`, split by split.

    `problems` say what could not be computed, as sentences.
    """
    tables: list[dict[str, Any]] = []
    problems: list[str] = []
    final = at_last_step(records)
    splits = tuple(dict.fromkeys(record.split for record in final))
    for split in splits:
        own = [record for record in final if record.split == split]
        try:
            table = results_table(own, *_columns(own, pass_at))
        except ValueError as error:
            problems.append(f"Results on {split} cannot stand in one table: {error}.")
            continue
        tables.append(_results(table, split).shown())
        grid, refused = _differences(own, min(pass_at), baseline, split)
        problems += refused
        if grid.rows:
            tables.append(grid.shown())
    return {"tables": tables, "problems": problems}


def _columns(
    records: Sequence[EvaluationRecord], pass_at: Sequence[int]
) -> tuple[dict[str, Sequence[int]], tuple[str, ...]]:
    """Return each stratum's k and their order: hard problems first, easier ones with the smallest k only.

    Without a hard stratum all have every k. So does `aipo compare`.
    """
    strata = _strata(records)
    if HARD not in strata:
        return dict.fromkeys(strata, pass_at), strata
    return {s: pass_at if s == HARD else (min(pass_at),) for s in strata}, tuple(
        dict.fromkeys([HARD, *strata])
    )


def _results(table: Table, split: str) -> Grid:
    """Return the table without the columns that nobody has a value in."""
    kept = [
        i
        for i in range(len(table.columns))
        if any(format_estimate(cells[i]) != MISSING for _, cells in table.rows)
    ]
    columns = [table.columns[i] for i in kept]
    head = ("method", *(f"{c.stratum}, {c.mode}, pass@{c.k}" for c in columns))
    rows = tuple((m, *(format_estimate(cells[i]) for i in kept)) for m, cells in table.rows)
    return Grid(f"Results on the {split} split", head, rows, table.notes())


def _differences(
    records: Sequence[EvaluationRecord], k: int, baseline: str, split: str
) -> tuple[Grid, list[str]]:
    """Return the paired differences to the baseline, over the seeds that both have."""
    base = [r for r in records if r.method == baseline]
    columns = [(s, m) for s in _columns(base, (k,))[1] for m in dict.fromkeys(r.mode for r in base)]
    rows, refused = [], []
    for method in methods_of(records):
        own = [r for r in records if r.method == method]
        if method == baseline or not base:
            continue
        cells = []
        for stratum, mode in columns:
            try:
                cells.append(_difference(own, base, stratum, mode, k))
            except ValueError as error:
                cells.append(MISSING)
                refused.append(f"{method} against {baseline}, {stratum}, {mode}: {error}.")
        rows.append((method, *cells))
    head = ("method", *(f"{stratum}, {mode}" for stratum, mode in columns))
    notes = (
        f"Difference of pass@{k} to {baseline}, paired by problem and seed; [ ]: 95 % interval; p: sign-flip "
        "permutation over problems, not corrected for the number of comparisons.",
    )
    return Grid(f"Paired differences to {baseline}, {split} split", head, tuple(rows), notes), refused


def _strata(records: Sequence[EvaluationRecord]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(stratum for record in records for stratum in record.strata))


def _difference(
    own: Sequence[EvaluationRecord], base: Sequence[EvaluationRecord], stratum: str, mode: str, k: int
) -> str:
    sides = [[r for r in side if r.mode == mode and stratum in r.strata] for side in (own, base)]
    shared = {r.seed for r in sides[0]} & {r.seed for r in sides[1]}
    if not shared:
        return MISSING
    pair = [[r for r in side if r.seed in shared] for side in sides]
    return _signed(paired_difference(pair[0], pair[1], stratum, k))


def _signed(d: Difference) -> str:
    sign = "+" if d.value > 0 and format_share(d.value) != ".00" else ""
    p = "p < .001" if d.p_value < 0.001 else f"p = {d.p_value:.3f}".replace("0.", ".")
    return f"{sign}{format_share(d.value)} [{format_share(d.low)}, {format_share(d.high)}], {p}"


def _markdown(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())
