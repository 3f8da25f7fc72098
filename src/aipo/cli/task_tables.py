"""What `aipo tasks` prints: the list of benchmarks, a validation, a comparison of two files.

The exit code is 1 exactly when a printed count says that something is not as it must be.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.table import Table

from aipo.console import console, duration, plain_errors
from aipo.tasks.base import Split, TaskError
from aipo.tasks.benchmarks.benchmark import Benchmark
from aipo.tasks.benchmarks.catalogue import BENCHMARKS
from aipo.tasks.benchmarks.load import load, load_whole, local_file, packaged
from aipo.tasks.benchmarks.page import rows_said

EXIT_VIOLATION = 1
SHOWN_VIOLATIONS = 20


def list_benchmarks(data: Path | None) -> None:
    """Print the table of benchmarks."""
    with plain_errors():
        if data is not None and not data.is_dir():
            raise TaskError(f"--data {data}: no such folder")
        table = Table(box=None, pad_edge=False)
        for column in ("name", "kind", "use", "rows", "Avg@n", "licence", "from", "local file"):
            table.add_column(column, overflow="fold")
        for _, benchmark in BENCHMARKS.items():
            table.add_row(*_cells(benchmark, data))
        console.print(table)


def validate(name: str, file: Path | None, data: Path | None, workers: int) -> None:
    """Check the grading of one benchmark over a whole file; exit code 1 on a violation."""
    from aipo.tasks.benchmarks.task import Graders, GradingLimits
    from aipo.tasks.benchmarks.validate import Check
    from aipo.tasks.benchmarks.validate import validate as run

    with plain_errors():
        benchmark = _named(name)
        split = Split.TEST if Split.TEST in benchmark.parts else Split.TRAIN
        path = file or (local_file(benchmark, split, data) if data else None)
        if data and not file and not path:
            raise TaskError(f"--data {data}: no file {benchmark.parts[split].stem}.* for {name} in it")
        rows = load_whole(benchmark, path) if path else load(benchmark, split)
        graders = Graders(benchmark.kind, GradingLimits(workers=workers))
        began = time.monotonic()
        try:
            result = asyncio.run(run(rows, graders))
        finally:
            graders.close()
    table = Table(box=None, pad_edge=False)
    for column in ("check", "as expected", "not as expected", "not checked"):
        table.add_column(column, justify="left" if column == "check" else "right")
    for check in Check:
        wrong = sum(violation.check is check for violation in result.violations)
        table.add_row(check, str(result.as_expected[check]), str(wrong), str(result.not_checked[check]))
    source = path or packaged(benchmark, split) or benchmark.hub
    console.print(f"{benchmark.title}: {result.rows} rows of {source}", markup=False)
    console.print(table)
    console.print(f"{duration(time.monotonic() - began)}, {workers} grader process(es)")
    for violation in result.violations[:SHOWN_VIOLATIONS]:
        grade = violation.grade
        console.print(
            f"{violation.row}: {violation.check}: {grade.verdict} ({grade.reason})", style="red", markup=False
        )
    if result.violations:
        raise typer.Exit(EXIT_VIOLATION)


def generate(
    name: str, output: Path, train_per_task: int, validation_per_task: int, only: Sequence[str]
) -> None:
    """Draw and freeze reasoning-gym's training and validation items."""
    from aipo.tasks.benchmarks.gym_freeze import freeze, rows_of
    from aipo.tasks.benchmarks.gym_tasks import TASKS, known

    with plain_errors():
        if name != "reasoning_gym":
            raise TaskError(f"{name!r}: only reasoning_gym is generated; the others are files or on the hub")
        names = [known(each).name for each in only] or list(TASKS)
        held_out = [row.problem for row in load(BENCHMARKS[name], Split.TEST)]
        for split, items in ((Split.VALIDATION, validation_per_task), (Split.TRAIN, train_per_task)):
            drawn = rows_of(split, items, held_out, names)
            held_out += [row["question"] for row in drawn]
            console.print(f"wrote {freeze(output, split, drawn)}: {len(drawn)} items", markup=False)


def contamination(train: Path, evaluation: Path, columns: tuple[str, str], show: int) -> None:
    """Print how many evaluation questions a training file holds; exit code 1 when there is one."""
    from aipo.tasks.contamination import Match, questions
    from aipo.tasks.contamination import contamination as run

    with plain_errors():
        found = run(questions(train, columns[0]), questions(evaluation, columns[1]))
    console.print(f"training rows    {found.training_rows}  {train}", markup=False)
    console.print(f"evaluation rows  {found.evaluation_rows}  {evaluation}", markup=False)
    share = len(found.overlaps) / found.evaluation_rows if found.evaluation_rows else 0.0
    console.print(f"exact            {found.count(Match.EXACT)}")
    console.print(f"13-gram          {found.count(Match.RUN)} more")
    console.print(f"in all           {len(found.overlaps)}, {share:.1%} of the evaluation questions")
    console.print(f"shorter than 13 words, compared whole only: {found.too_short}")
    for overlap in found.overlaps[:show]:
        console.print(
            f"evaluation row {overlap.evaluation_row}: {overlap.match} in training row "
            f"{overlap.training_row}: {overlap.words:.100}",
            markup=False,
        )
    if found.overlaps:
        raise typer.Exit(EXIT_VIOLATION)


def _named(name: str) -> Benchmark:
    return BENCHMARKS[name]


def _cells(benchmark: Benchmark, data: Path | None) -> list[str]:
    files = [local_file(benchmark, split, data) for split in benchmark.parts] if data else []
    given = ", ".join(path.name for path in files if path)
    if not given and any(packaged(benchmark, split) for split in benchmark.parts):
        given = "packaged (test)"
    return [
        benchmark.name,
        benchmark.kind.value,
        benchmark.use.value,
        rows_said(benchmark),
        str(benchmark.samples),
        benchmark.licence,
        benchmark.hub or "generated",
        given or "-",
    ]
