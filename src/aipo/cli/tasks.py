"""`aipo tasks`: the verbs about benchmarks and data files.

`--help` is quick: what works behind a verb is imported when it is called. A verb ends with an exit code that
says what happened: 0 as it must be, 1 not so, 2 bad input.
"""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="tasks",
    help="List, check and compare benchmarks and data files.",
    no_args_is_help=True,
    add_completion=False,
)
Name = Annotated[str, typer.Argument(help="Name of a benchmark, as `aipo tasks list` prints it.")]
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
    from aipo.cli.task_tables import list_benchmarks as run

    run(data)


@app.command()
def validate(name: Name, file: File = None, data: Data = None, workers: Workers = 1) -> None:
    """Check on every row: its gold is CORRECT, another row's gold and an empty answer INCORRECT.

    Prints the counts. The exit code is 1 when a verdict is not as it must be, 2 when a row cannot be used.
    """
    from aipo.cli.task_tables import validate as run

    run(name, file, data, workers)


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
    from aipo.cli.task_tables import generate as run

    run(name, output, train_per_task, validation_per_task, only or [])


@app.command()
def contamination(
    train: Train,
    evaluation: Eval,
    train_column: TrainColumn = "",
    eval_column: EvalColumn = "",
    show: Shown = 10,
) -> None:
    """Count the evaluation questions that a training file holds: whole, and by a shared run of 13 words.

    Case, space and punctuation do not count. The exit code is 1 when one is found.
    """
    from aipo.cli.task_tables import contamination as run

    run(train, evaluation, (train_column, eval_column), show)
