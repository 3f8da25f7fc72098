"""`aipo tasks`: the verbs about benchmarks and data files.

`--help` is quick: what works behind a verb is imported when it is called. A verb ends with an exit code that
says what happened: 0 as it must be, 1 not so, 2 bad input.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aipo.cli.options import Overrides
from aipo.config.toml import toml_value

if TYPE_CHECKING:
    from aipo.tasks.benchmarks.benchmark import Benchmark

EXIT_VIOLATION = 1
SHOWN_VIOLATIONS = 20
MOST_STRATA = 8

app = typer.Typer(
    name="tasks",
    help="List, check and compare benchmarks and data files.",
    no_args_is_help=True,
    add_completion=False,
)
Name = Annotated[str, typer.Argument(help="Name of a benchmark, as `aipo tasks list` prints it.")]
What = Annotated[
    str, typer.Argument(help="A file of problems, a recipe (.toml), or the name of a benchmark.")
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Folder with local files, named as in docs/benchmarks.md: math500.jsonl."),
]
File = Annotated[
    Path | None,
    typer.Option("--file", help="The rows: JSON lines, a JSON list, Parquet or CSV; else the hub."),
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Grader processes.")]
Output = Annotated[Path, typer.Option("--output", help="Folder for the items and their manifest.")]
PerTask = Annotated[int, typer.Option("--train-per-task", min=1, help="Training items of each generator.")]
HeldOut = Annotated[int, typer.Option("--validation-per-task", min=1, help="Validation items of each.")]
Only = Annotated[
    list[str] | None, typer.Option("--only", help="Only this generator; may be given several times.")
]
Train = Annotated[Path, typer.Argument(help="Training file: JSON lines, a JSON list, Parquet or CSV.")]
Eval = Annotated[Path, typer.Argument(help="Evaluation file, in one of the same forms.")]
TrainColumn = Annotated[str, typer.Option("--train-column", help="Column of the training questions.")]
EvalColumn = Annotated[str, typer.Option("--eval-column", help="Column of the evaluation questions.")]
Shown = Annotated[int, typer.Option("--show", min=0, help="How many overlaps are printed.")]


@app.callback()
def tasks() -> None:
    """List, check and compare benchmarks and data files."""


@app.command("list")
def list_(data: Data = None) -> None:
    """List the benchmarks: kind, rows, licence, where each comes from and which local file is used.

    With --data, the files of a folder are found by name; nothing is read or fetched.
    """
    from rich.table import Table

    from aipo.cli.console import console, plain_errors
    from aipo.tasks.base import TaskError
    from aipo.tasks.benchmarks.catalogue import BENCHMARKS

    with plain_errors():
        if data is not None and not data.is_dir():
            raise TaskError(f"--data {data}: no such folder")
        table = Table(box=None, pad_edge=False)
        for column in ("name", "kind", "use", "rows", "Avg@n", "licence", "from", "local file"):
            table.add_column(column, overflow="fold")
        for _, benchmark in BENCHMARKS.items():
            table.add_row(*_cells(benchmark, data))
        console.print(table)


@app.command("validate")
def validate_(
    what: What, overrides: Overrides = None, file: File = None, data: Data = None, workers: Workers = 1
) -> None:
    """Look at problems before a run: a file of your own, the files of a recipe, or a benchmark.

    Of a file or a recipe (with changes such as task.answer_field=solution): rows that cannot be used, golds
    that the grader cannot read, prompts that are too long where policy.model is set, duplicates, and how many
    task.on_bad_row = 'drop' leaves out. Of a benchmark, on every row: its gold is CORRECT, another row's gold
    and an empty answer INCORRECT. The exit code is 1 when something is not as it must be, 2 for bad input.
    """
    from aipo.cli.console import plain_errors
    from aipo.tasks.base import TaskError

    path = Path(what)
    by_name = ":" in what and not path.exists()  # a benchmark from outside the package, `module:attribute`
    own = not by_name and (path.exists() or len(path.parts) > 1 or path.suffix != "")
    with plain_errors():
        if own and (file or data):
            raise TaskError("--file and --data are for benchmarks; a file of your own is the argument itself")
        if not own and overrides:
            raise TaskError(f"{what}: changes such as {overrides[0]} are for a file or a recipe")
    if own:
        _validate_own(path, overrides or [])
    else:
        _validate_benchmark(what, file, data, workers)


def _validate_own(path: Path, overrides: list[str]) -> None:
    """Print what there is to say of a file, or of the files of a recipe."""
    from rich.table import Table

    from aipo.assembly.checking import check_problems
    from aipo.cli.console import console, plain_errors
    from aipo.config.loader import load_settings

    with plain_errors():
        if path.suffix == ".toml":
            settings = load_settings(path, overrides)
        else:
            named = ["task.name=jsonl", f"task.train_file={toml_value(str(path))}"]
            settings = load_settings(None, [*named, *overrides])
        checked, overlaps = check_problems(settings)
    table = Table(box=None, pad_edge=False)
    for column in ("problems", "to", "rows", "usable", "cannot be used", "too long", "repeated", "strata"):
        table.add_column(column, overflow="fold")
    measured = bool(settings.policy.model)
    for each in checked:
        strata = ", ".join(f"{name} {count}" for name, count in sorted(each.strata.items())[:MOST_STRATA])
        numbers = (each.rows, each.rows - each.left_out, len(each.bad))
        long = str(len(each.long)) if measured else "not measured"
        cells = (each.where, each.split.value, *map(str, numbers), long, str(len(each.repeated)), strata)
        table.add_row(*cells)
    console.print(table)
    for each in checked:
        for lines, style in ((each.bad, "red"), (each.long, "red"), (each.repeated, "yellow")):
            for line in lines[:SHOWN_VIOLATIONS]:
                console.print(line, style=style, markup=False)
            if len(lines) > SHOWN_VIOLATIONS:
                console.print(f"… and {len(lines) - SHOWN_VIOLATIONS} more", style=style)
    if overlaps:
        console.print(f"{overlaps} rows also stand in a held-out file and are left out of the others")
    if not measured:
        console.print("prompts were not measured: add policy.model=FOLDER to measure them in tokens")
    if left_out := sum(each.left_out for each in checked):
        console.print(
            f"task.on_bad_row = 'refuse', the default: a run does not begin; 'drop' leaves out {left_out} of "
            f"{sum(each.rows for each in checked)} rows",
            style="bold red",
        )
        raise typer.Exit(EXIT_VIOLATION)


def _validate_benchmark(name: str, file: Path | None, data: Path | None, workers: int) -> None:
    """Put golds and wrong answers of every row to the grader, and print the counts."""
    import asyncio

    from rich.table import Table

    from aipo.cli.console import console, plain_errors
    from aipo.tasks.base import Split, TaskError
    from aipo.tasks.benchmarks.catalogue import BENCHMARKS
    from aipo.tasks.benchmarks.load import load, load_whole, local_file, packaged
    from aipo.tasks.benchmarks.task import Graders, GradingLimits
    from aipo.tasks.benchmarks.validate import Check, validate
    from aipo.training.events import duration

    with plain_errors():
        benchmark = BENCHMARKS[name]
        split = Split.TEST if Split.TEST in benchmark.parts else Split.TRAIN
        path = file or (local_file(benchmark, split, data) if data else None)
        if data and not file and not path:
            raise TaskError(f"--data {data}: no file {benchmark.parts[split].stem}.* for {name} in it")
        rows = load_whole(benchmark, path) if path else load(benchmark, split)
        graders = Graders(benchmark.kind, GradingLimits(workers=workers))
        began = time.monotonic()
        try:
            result = asyncio.run(validate(rows, graders))
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


@app.command()
def generate(
    name: Name,
    output: Output,
    train_per_task: PerTask = 1000,
    validation_per_task: HeldOut = 10,
    only: Only = None,
) -> None:
    """Draw training and validation items of reasoning_gym once, and freeze them with a manifest of hashes.

    No question of the packaged test items, nor of each other, is among them. Slow generators take long: a
    zebra puzzle of 7 houses about 20 s, so that 1,000 of them take hours; --only draws a part.
    """
    from aipo.cli.console import console, plain_errors
    from aipo.tasks.base import Split, TaskError
    from aipo.tasks.benchmarks.catalogue import BENCHMARKS
    from aipo.tasks.benchmarks.gym_freeze import freeze, rows_of
    from aipo.tasks.benchmarks.gym_tasks import TASKS, known
    from aipo.tasks.benchmarks.load import load

    with plain_errors():
        if name != "reasoning_gym":
            raise TaskError(f"{name!r}: only reasoning_gym is generated; the others are files or on the hub")
        names = [known(each).name for each in only or []] or list(TASKS)
        held_out = [row.problem for row in load(BENCHMARKS[name], Split.TEST)]
        for split, items in ((Split.VALIDATION, validation_per_task), (Split.TRAIN, train_per_task)):
            drawn = rows_of(split, items, held_out, names)
            held_out += [row["question"] for row in drawn]
            console.print(f"wrote {freeze(output, split, drawn)}: {len(drawn)} items", markup=False)


@app.command("contamination")
def contamination_(
    train: Train,
    evaluation: Eval,
    train_column: TrainColumn = "",
    eval_column: EvalColumn = "",
    show: Shown = 10,
) -> None:
    """Count the evaluation questions that a training file holds: whole, and by a shared run of 13 words.

    Case, space and punctuation do not count. The exit code is 1 when one is found.
    """
    from aipo.cli.console import console, plain_errors
    from aipo.tasks.contamination import Match, contamination, questions

    with plain_errors():
        found = contamination(questions(train, train_column), questions(evaluation, eval_column))
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


def _cells(benchmark: "Benchmark", data: Path | None) -> list[str]:
    from aipo.tasks.benchmarks.load import local_file, packaged
    from aipo.tasks.benchmarks.page import rows_said

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
