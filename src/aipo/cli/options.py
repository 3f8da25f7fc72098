"""Arguments and options of the verbs: the same word means the same in every verb. Nothing else is loaded."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

Recipe = Annotated[
    Path, typer.Argument(help="TOML recipe, for example recipes/tiny.toml. All fields: docs/settings.md.")
]
RecipeOrCheckpoint = Annotated[
    Path,
    typer.Argument(
        help="Model folder or hub id, evaluated on --benchmarks; or a TOML recipe, evaluated on its own task."
    ),
]
OptionalRecipe = Annotated[
    Path | None, typer.Argument(help="TOML recipe; without one, only the machine is looked at.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the recipe, as section.field=value, for example train.steps=50."),
]
ComparisonRecipe = Annotated[
    Path,
    typer.Argument(help="Recipe with a table `compare`, for example recipes/main.toml; or folders of runs."),
]
AtOnce = Annotated[
    int, typer.Option("--at-once", min=0, help="Runs at the same time; 0: as many as there are cores.")
]
Minutes = Annotated[
    float,
    typer.Option(
        min=0, help="Start no further run after this time; the same command continues. 0: no limit."
    ),
]
Records = Annotated[
    Path | None, typer.Option(help="Only write the report, from the compact records in this folder.")
]
Method = Annotated[str, typer.Option(help="What tables call this policy.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="The policy to evaluate; without it, policy.model of the recipe.")
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Ask agents again what they were asked before; keep no reply.")
]
AllowChange = Annotated[
    str,
    typer.Option(
        help="Settings, separated by commas, that may differ from those that the run began with "
        "(docs/recovery.md), for example train.steps,agents.base_url."
    ),
]
Problems = Annotated[int, typer.Option("--problems", "-n", min=1, help="How many problems.")]
Stratum = Annotated[str, typer.Option(help="Only problems of this stratum, for example hard.")]
Runs = Annotated[
    list[Path],
    typer.Argument(help="Folders of runs (run.output of `aipo train`), or of a comparison with runs in it."),
]
ReportFile = Annotated[
    Path | None, typer.Option("--output", "-o", help="The file; without it, report.html in the first folder.")
]
RolloutsShown = Annotated[
    int, typer.Option("--rollouts", min=1, help="About how many rollouts it shows, of all runs together.")
]
Baseline = Annotated[
    str, typer.Option(help="The method that the others are compared with; without it, the first run's.")
]


def with_options(
    name: str, options: Sequence[inspect.Parameter], made: Callable[..., Any] = dict
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these options; its parameter `name` takes what `made` makes of their values."""

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = [
            each.replace(kind=each.KEYWORD_ONLY, annotation=hints[each.name])
            for each in inspect.signature(command).parameters.values()
            if each.name != name
        ]

        def run(**values: Any) -> None:
            given = {each.name: values.pop(each.name) for each in options}
            command(**values, **{name: made(**given)})

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in [*own, *options]}
        return run

    return decorated
