"""The tables of several runs: estimates, paired differences, quality against expert tokens.

What cannot be compared is said in words, never left out in silence. The page can copy each as LaTeX, too.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aipo.evaluation.records import EvaluationRecord, at_last_step, methods_of
from aipo.evaluation.statistics import paired_with
from aipo.evaluation.table import MISSING, Grid, format_estimate, results_table, reward_grid
from aipo.report.expert_tokens import Spent, token_grid, token_points

HOW_PAIRED = "95 % interval; sign-flip p over problems, not corrected for the number of lines"
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def result_tables(
    records: Sequence[EvaluationRecord], pass_at: Sequence[int], baseline: str, spent: Spent
) -> dict[str, Any]:
    """Return, split by split, the results of the last step of each method and what they cost.

    Paired differences are to `baseline`, stratum by stratum. `problems` say what cannot be shown.
    """
    tables: list[dict[str, Any]] = []
    problems: list[str] = []
    for split in dict.fromkeys(record.split for record in records):
        of_split = [record for record in records if record.split == split]
        final = at_last_step(of_split)
        strata = tuple(dict.fromkeys(stratum for record in final for stratum in record.strata))
        try:
            tables.append(shown(f"Results on the {split} split", _results(final, pass_at)))
            if rewards := reward_grid(final):
                tables.append(shown(f"Rewards of your own on the {split} split", rewards))
            tokens = token_grid(token_points(of_split, spent, strata))
        except ValueError as error:
            problems.append(f"Results on {split} cannot stand in one table: {error}.")
            continue
        for stratum in strata:
            if grid := paired_differences(final, baseline, stratum, min(pass_at)):
                title = f"Paired differences to {baseline}, {stratum} problems, {split} split"
                about = f"Difference of pass@{min(pass_at)}, paired by problem and seed ({HOW_PAIRED})."
                tables.append(shown(title, replace(grid, notes=(about, *grid.notes))))
        if tokens:
            tables.append(shown(f"Quality against expert tokens, {split} split", tokens))
    return {"tables": tables, "problems": problems}


def _results(records: Sequence[EvaluationRecord], pass_at: Sequence[int]) -> Grid:
    """Return the table without the columns that nobody has a value in."""
    table = results_table(records, pass_at)
    cells = [[method, *map(format_estimate, row)] for method, row in table.rows]
    columns = [["method", *(row[0] for row in cells)]]
    for i, c in enumerate(table.columns, start=1):
        values = [row[i] for row in cells]
        if any(value != MISSING for value in values):
            columns.append([f"{c.stratum}, {c.mode}, pass@{c.k}", *values])
    return Grid(list(zip(*columns, strict=True)), table.notes())


def paired_differences(
    records: Sequence[EvaluationRecord], baseline: str, stratum: str, k: int
) -> Grid | None:
    """Return each method's difference to the baseline over the seeds that both have; None: no method has.

    Records of one step each. The notes say which cells could not be computed, and why.
    """
    records = [record for record in records if stratum in record.strata]
    base = [record for record in records if record.method == baseline]
    modes = tuple(dict.fromkeys(record.mode for record in base))
    rows, refused = [], []
    for method in methods_of(records):
        own = [record for record in records if record.method == method]
        seeds = len({r.seed for r in own} & {r.seed for r in base})
        if method == baseline or not seeds:
            continue
        cells = []
        for mode in modes:
            try:
                d = paired_with(own, base, stratum, mode, k)
            except ValueError as error:
                d = None
                refused.append(f"{method} against {baseline}, {stratum}, {mode}: {error}.")
            ends = d and f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}], p = {d.p_value:.2g}"
            cells.append(ends or MISSING)
        rows.append((method, str(seeds), *cells))
    return Grid([("method", "seeds", *modes), *rows], refused) if rows else None


def shown(title: str, grid: Grid) -> dict[str, Any]:
    """Return what the page needs of a table, both copies included; every cell is one line."""
    head, *rows = [tuple(" ".join(cell.split()) for cell in row) for row in grid.rows]
    notes = [" ".join(note.split()) for note in grid.notes]
    clean = Grid([head, *rows], notes)
    copies = {"markdown": clean.markdown(), "latex": latex(clean)}
    return {"title": title, "head": head, "rows": rows, "notes": notes, **copies}


def latex(grid: Grid) -> str:
    """Return a table as a LaTeX `tabular` with booktabs' rules; the notes stand behind it as comments."""
    head, *body = (" & ".join(map(latex_text, row)) + r" \\" for row in grid.rows)
    columns = f"l{'r' * (len(grid.rows[0]) - 1)}"
    lines = (r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule")
    end = (r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in grid.notes))
    return "\n".join((*lines, *body, *end)) + "\n"


def latex_text(text: str) -> str:
    r"""Return text as LaTeX shows it literally.

    >>> latex_text("50 % of a_b {x}")
    '50 \\% of a\\_b \\{x\\}'
    """
    return "".join(_LATEX.get(character, character) for character in text)
