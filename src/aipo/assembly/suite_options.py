"""Options of `aipo evaluate` and how they become values: lists of names, and numbers by benchmark.

Owns their wording and their errors. Must not load anything: the help is quick. Invariant: a value that cannot
be used is a `ValueError` that names option, value and fix.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, get_type_hints

import typer

DEFAULT = "default"
_SUITE = "With a checkpoint"


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """What `aipo evaluate CHECKPOINT` takes beside it; each field is an option of the command line."""

    benchmarks: Annotated[
        str,
        typer.Option(
            help="all: the paper's eight; or names with commas between, as `aipo tasks list` prints them; "
            "any task.name too, also your own as module:attribute. Without: all.",
            rich_help_panel=_SUITE,
        ),
    ] = ""
    samples: Annotated[
        str,
        typer.Option(
            help="n of Avg@n: 4, or by benchmark: aime24=32,default=4. Without: each benchmark's own.",
            rich_help_panel=_SUITE,
        ),
    ] = ""
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with local files, named as in docs/benchmarks.md: math500.jsonl.",
            rich_help_panel=_SUITE,
        ),
    ] = None
    files: Annotated[
        str,
        typer.Option(
            help="Local files by benchmark: math500=FILE,aime24=FILE. Without a file: the hub.",
            rich_help_panel=_SUITE,
        ),
    ] = ""
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the evaluation; the same command continues it.", rich_help_panel=_SUITE),
    ] = None
    with_agents: Annotated[
        Path | None,
        typer.Option(
            help="Recipe whose agents are consulted in a second condition, to see what they are worth.",
            rich_help_panel=_SUITE,
        ),
    ] = None
    temperature: Annotated[
        float, typer.Option(min=0, help="Of the samples; 0: greedy.", rich_help_panel=_SUITE)
    ] = 1.0
    top_p: Annotated[float, typer.Option(min=0, max=1, help="1: all tokens.", rich_help_panel=_SUITE)] = 1.0
    max_response_tokens: Annotated[
        str,
        typer.Option(
            help="Limit of a response: 8192, or by benchmark, as for --samples.", rich_help_panel=_SUITE
        ),
    ] = ""
    problems: Annotated[
        int,
        typer.Option(
            min=0, help="Use only the first N questions of each stratum; 0: all.", rich_help_panel=_SUITE
        ),
    ] = 0
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.", rich_help_panel=_SUITE)] = 0
    solo_mode: Annotated[
        str,
        typer.Option(
            help="Alone: a request gets no reply (unanswered), or cannot be sampled (banned).",
            rich_help_panel=_SUITE,
        ),
    ] = "unanswered"
    max_ungraded_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Above this share of samples without a verdict it stops.",
            rich_help_panel=_SUITE,
        ),
    ] = 0.05
    retry_ungraded: Annotated[
        bool,
        typer.Option(
            "--retry-ungraded", help="Make samples without a verdict once more.", rich_help_panel=_SUITE
        ),
    ] = False

    def given(self) -> list[str]:
        """Return the options that differ from their defaults, as they are written."""
        return [
            f"--{each.name.replace('_', '-')}"
            for each in fields(self)
            if getattr(self, each.name) != each.default
        ]


NO_OPTIONS = SuiteOptions()


def suite_parameters() -> list[inspect.Parameter]:
    """Return each field of `SuiteOptions` as a parameter of a command."""
    hints, place = get_type_hints(SuiteOptions, include_extras=True), inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(each.name, place, annotation=hints[each.name], default=each.default)
        for each in fields(SuiteOptions)
    ]


def chosen_names(text: str, everything: Sequence[str]) -> tuple[str, ...]:
    """Return the names that `--benchmarks` lists, each once; `all` stands for `everything`.

    >>> chosen_names("mbpp, all", ("aime24", "mbpp"))
    ('mbpp', 'aime24')
    """
    parts = filter(None, (part.strip() for part in text.split(",")))
    names = [name for part in parts for name in (everything if part == "all" else (part,))]
    if not names:
        raise ValueError("--benchmarks names none; give all, or names as `aipo tasks list` prints them")
    return tuple(dict.fromkeys(names))


def counts_of(text: str, option: str, names: Sequence[str]) -> dict[str, int]:
    """Return a number for each benchmark that `text` gives one for.

    >>> counts_of("4", "--samples", ["aime24", "mbpp"])
    {'aime24': 4, 'mbpp': 4}
    >>> counts_of("aime24=32,default=4", "--samples", ["aime24", "mbpp"])
    {'aime24': 32, 'mbpp': 4}
    >>> counts_of("", "--samples", ["aime24"])
    {}
    """
    if not text:
        return {}
    given = {DEFAULT: text} if "=" not in text else _pairs(text, option, (*names, DEFAULT))
    numbers = {name: _count(value, option) for name, value in given.items()}
    return {name: numbers[key] for name in names if (key := name if name in numbers else DEFAULT) in numbers}


def files_of(text: str, names: Sequence[str]) -> dict[str, Path]:
    """Return the files that `--files` gives, by benchmark."""
    return {name: Path(value).expanduser() for name, value in _pairs(text, "--files", names).items()}


def _pairs(text: str, option: str, names: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, sign, value = part.partition("=")
        if not sign or not value:
            raise ValueError(f"{option}: {part!r} is not NAME=VALUE; write for example {names[0]}=…")
        if name not in names:
            raise ValueError(
                f"{option}: {name!r} is no benchmark of this evaluation; there are {', '.join(names)}"
            )
        if name in found:
            raise ValueError(f"{option}: {name} is given twice; give it once")
        found[name] = value
    return found


def _count(value: str, option: str) -> int:
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise ValueError(f"{option}: {value!r} is not a whole number from 1; write for example {option} 4")
    return int(value)
