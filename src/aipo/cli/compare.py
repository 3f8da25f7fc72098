"""`aipo compare`: several methods from one warm start, one table, one plot."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

from aipo.cli.console import console, plain_errors
from aipo.cli.evaluate import are_evaluations, compare_evaluations
from aipo.cli.screen import Terminal
from aipo.comparison.jobs import Pace
from aipo.comparison.run import compare as run_comparison
from aipo.config.comparison import comparison_recipes, load_comparison
from aipo.evaluation.plots import boundary_plot
from aipo.evaluation.records import at_last_step, read_records
from aipo.evaluation.table import results_table
from aipo.training.journal import EVALUATION


def compare(
    recipe: Path, overrides: Sequence[str], at_once: int, minutes: float, records: Path | None
) -> None:
    """Run what is missing of a comparison and report it; see `aipo compare --help`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the runs too, as Ctrl-C does
    pace = Pace(at_once or max(1, os.cpu_count() or 1), time.monotonic() + (60 * minutes or inf))
    with plain_errors():
        if recipes := comparison_recipes(recipe):
            for each in recipes:
                _compare(each, overrides, pace, records)
        else:
            folders = [recipe, *map(Path, overrides)]
            read = compare_evaluations if are_evaluations(folders) else _read_runs
            read(folders)


def _compare(recipe: Path, overrides: Sequence[str], pace: Pace, records: Path | None) -> None:
    comparison = load_comparison(recipe, overrides)
    command = " ".join(["aipo", *sys.argv[1:]])
    report = run_comparison(comparison, pace=pace, records=records, command=command, reporter=Terminal())
    if report is None:
        return
    output = comparison.output
    console.print(str(report.summary()), markup=False)
    console.print(
        f"report: {output}/results.md\nfigures: {output}/*.svg\nrecords: {report.records}", markup=False
    )


def _read_runs(folders: list[Path]) -> None:
    """Print one table of finished runs and write one plot beside the first."""
    evaluated = [folder / EVALUATION for folder in folders]
    if missing := [str(path.parent) for path in evaluated if not path.exists()]:
        raise ValueError(
            f"{', '.join(missing)}: no {EVALUATION}; first run `aipo evaluate` with this run.output"
        )
    # Runs of one comparison share names such as seed-0: what tells them apart is the folder.
    records = [
        replace(record, method=str(folder), run=str(folder))
        for folder, path in zip(folders, evaluated, strict=True)
        for record in at_last_step(read_records(path))
    ]
    smallest = min(result.samples for record in records for result in record.results)
    console.print(str(results_table(records, sorted({1, smallest}))), markup=False)
    _, png = boundary_plot(records, folders[0].parent / "boundary")
    console.print(f"plot: {png}", markup=False)
