"""Tables of texts, and of methods by strata, modes and k with intervals; and how numbers are written.

For Markdown, a terminal and CSV. Every number of a results table derives from records; none can be passed in.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from math import isnan

from aipo.evaluation.intervals import Interval
from aipo.evaluation.records import EvaluationRecord, methods_of
from aipo.evaluation.statistics import Difference, Estimate, estimate, mean_reward

MISSING = "–"
BAR = r"\|"
"""A bar inside a cell of a Markdown table."""


@dataclass(frozen=True, slots=True, order=True)
class Column:
    """What a column of the table shows."""

    stratum: str
    mode: str
    k: int


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of texts with notes below it; the first row is its head."""

    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    numbers: bool = True
    """Whether all columns but the first are aligned right."""

    def markdown(self) -> str:
        """Return it as Markdown."""
        head, *body = (f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |" for row in self.rows)
        rule = "|---|" + ("--:|" if self.numbers else "---|") * (len(self.rows[0]) - 1)
        notes = ["", "  \n".join(self.notes)] if self.notes else []
        return "\n".join((head, rule, *body, *notes)) + "\n"

    def __str__(self) -> str:
        widths = [max(map(len, cells)) for cells in zip(*self.rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if i and self.numbers else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in self.rows
        ]
        notes = ["", *self.notes] if self.notes else []
        return "\n".join(line.rstrip() for line in (*lines, *notes))


@dataclass(frozen=True, slots=True)
class Table:
    """Methods and their estimates, one per column; `None` where a method was not evaluated so.

    `str` of it is the table for a terminal.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Estimate | None, ...]], ...]

    def __str__(self) -> str:
        return f"{self._grid()}\n"

    def markdown(self) -> str:
        """Return the table and its notes as Markdown."""
        return self._grid().markdown()

    def csv(self) -> str:
        """Return one line per estimate with all its fields in full precision; a missing one has no line."""
        names = [field.name for field in (*fields(Column), *fields(Estimate))]
        out = io.StringIO()
        writer = csv.DictWriter(out, ["method", *names], lineterminator="\n")
        writer.writeheader()
        for method, column, cell in self._cells():
            writer.writerow({"method": method, **asdict(column), **asdict(cell)})
        return out.getvalue()

    def notes(self) -> tuple[str, ...]:
        """Return what a reader must know beside the numbers, one sentence or two per line."""
        cells = [(column, cell) for _, column, cell in self._cells()]
        noisy = sorted({column.k for column, cell in cells if column.k == cell.samples})
        left_out = max((cell.left_out for _, cell in cells), default=0)
        sizes = ", ".join(
            f"{name}: {_span(e.problems + e.left_out for c, e in cells if c.stratum == name)} problems"
            for name in dict.fromkeys(column.stratum for column in self.columns)
        )
        samples = _span(cell.samples for _, cell in cells if cell.problems)
        seeds = _span(cell.seeds for _, cell in cells)
        return (
            f"{sizes}; {samples} graded samples per problem; training seeds: {seeds}.",
            "[ ]: 95 % interval, bootstrap over problems and, from 2 on, seeds.",
            "An interval of width 0 means no variation seen, not certainty.",
            *(f"pass@{k} of {k} samples is one draw per problem: unbiased, noisy." for k in noisy),
            *(
                [f"Up to {left_out} problems with fewer than k graded samples are left out."]
                if left_out
                else []
            ),
        )

    def _cells(self) -> Iterator[tuple[str, Column, Estimate]]:
        for method, cells in self.rows:
            yield from (
                (method, c, cell) for c, cell in zip(self.columns, cells, strict=True) if cell is not None
            )

    def _grid(self) -> Grid:
        head = ["method", *(f"{column.stratum}, {column.mode}, pass@{column.k}" for column in self.columns)]
        body = [[method, *map(format_estimate, cells)] for method, cells in self.rows]
        return Grid([head, *body], self.notes(), numbers=False)


def results_table(
    records: Sequence[EvaluationRecord],
    pass_at: Sequence[int] | Mapping[str, Sequence[int]],
    strata: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
    rng_seed: int = 0,
) -> Table:
    """Return the table of `records`, methods in order of first appearance.

    `pass_at` are the k of every stratum, or of each by name. `strata` and `modes` choose and order the
    columns; none of them: all there are, in order of first appearance. Raises `ValueError` as
    `statistics.estimate` does, for instance for two steps of one run (choose with `records.at_last_step`).
    """
    if strata is None:
        strata = tuple(dict.fromkeys(stratum for record in records for stratum in record.strata))
    if modes is None:
        modes = tuple(dict.fromkeys(record.mode for record in records))
    columns = tuple(
        Column(stratum, mode, k)
        for stratum in strata
        for mode in modes
        for k in (pass_at[stratum] if isinstance(pass_at, Mapping) else pass_at)
    )
    rows = []
    for method in methods_of(records):
        own = [record for record in records if record.method == method]
        rows.append((method, tuple(_cell(own, column, rng_seed) for column in columns)))
    return Table(columns, tuple(rows))


def reward_grid(records: Sequence[EvaluationRecord]) -> Grid | None:
    """Return the mean of rewards of one's own by method, stratum and mode; None where there are none.

    Raises `ValueError` as `statistics.mean_reward` does.
    """
    places = dict.fromkeys((stratum, r.mode) for r in records for stratum in r.strata)
    body: dict[str, list[str]] = {method: [method] for method in methods_of(records)}
    for (stratum, mode), (method, cells) in product(places, body.items()):
        own = [r for r in records if (r.method, r.mode) == (method, mode) and stratum in r.strata]
        found = mean_reward(own, stratum) if own else None
        cells.append(MISSING if found is None else f"{found[0]:.4g} [{found[1]:.4g}, {found[2]:.4g}]")
    if all(cell == MISSING for cells in body.values() for cell in cells[1:]):
        return None
    head = ["method", *(f"{stratum}, {mode}, reward" for stratum, mode in places)]
    note = "Mean of task.reward over graded samples. [ ]: 95 % interval, as of pass@k."
    return Grid([head, *body.values()], (note,), numbers=False)


def format_estimate(cell: Estimate | None) -> str:
    """Return an estimate as the tables show it.

    >>> counts = {"problems": 64, "left_out": 0, "samples": 64, "seeds": 3}
    >>> format_estimate(
    ...     Estimate(value=0.976, low=0.95, high=0.999, sampling_se=0.0, question_se=0.0, **counts)
    ... )
    '.98 [.95, 1.0]'
    >>> format_estimate(None)
    '–'
    """
    if cell is None or isnan(cell.value):
        return MISSING
    return f"{format_share(cell.value)} [{format_share(cell.low)}, {format_share(cell.high)}]"


def format_share(share: float) -> str:
    """Return a share with two decimals and no leading zero.

    >>> [format_share(share) for share in (0.0, 0.004, 0.985, 0.996, 1.0, -0.052, -0.001, float("nan"))]
    ['.00', '.00', '.98', '1.0', '1.0', '-.05', '.00', '–']
    """
    if isnan(share):
        return MISSING
    digits = f"{abs(share):.2f}"
    sign = "-" if share < 0 and digits != "0.00" else ""
    return sign + ("1.0" if digits == "1.00" else digits.removeprefix("0"))


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


def _cell(records: Sequence[EvaluationRecord], column: Column, rng_seed: int) -> Estimate | None:
    chosen = [record for record in records if record.mode == column.mode and column.stratum in record.strata]
    return estimate(chosen, column.stratum, column.k, rng_seed) if chosen else None


def _span(counts: Iterable[int]) -> str:
    """Return `64`, or `60-64` where counts differ."""
    known = sorted(set(counts))
    return "-".join(str(count) for count in dict.fromkeys(known[:1] + known[-1:])) or MISSING
