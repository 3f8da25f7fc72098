"""Options of `aipo evaluate` and how they become values: lists of names, and numbers by benchmark.

Nothing is loaded here: the help is quick. A value that cannot be used is a `ValueError` that names option,
value and fix.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

DEFAULT = "default"


def _option(help_: str, *names: str, **limits: Any) -> Any:
    return typer.Option(*names, help=help_, rich_help_panel="With a checkpoint", **limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """What `aipo evaluate CHECKPOINT` takes beside it; each field is an option of the command line."""

    benchmarks: Annotated[
        str,
        _option(
            "all: the paper's eight; or names with commas between, as `aipo tasks list` prints them; any "
            "task.name too, also your own as module:attribute. Without: all."
        ),
    ] = ""
    samples: Annotated[
        str,
        _option("n of Avg@n: 4, or by benchmark: aime24=32,default=4. Without: each benchmark's own."),
    ] = ""
    data: Annotated[
        Path | None, _option("Folder with local files, named as in docs/benchmarks.md: math500.jsonl.")
    ] = None
    files: Annotated[
        str, _option("Local files by benchmark: math500=FILE,aime24=FILE. Without a file: the hub.")
    ] = ""
    output: Annotated[Path | None, _option("Folder of the evaluation; the same command continues it.")] = None
    with_agents: Annotated[
        Path | None,
        _option("Recipe whose agents are consulted in a second condition, to see what they are worth."),
    ] = None
    temperature: Annotated[float, _option("Of the samples; 0: greedy.", min=0)] = 1.0
    top_p: Annotated[float, _option("1: all tokens.", min=0, max=1)] = 1.0
    max_response_tokens: Annotated[
        str, _option("Limit of a response: 8192, or by benchmark, as for --samples.")
    ] = ""
    problems: Annotated[int, _option("Use only the first N questions of each stratum; 0: all.", min=0)] = 0
    seed: Annotated[int, _option("Of the samples.", min=0)] = 0
    solo_mode: Annotated[
        str, _option("Alone: a request gets no reply (unanswered), or cannot be sampled (banned).")
    ] = "unanswered"
    max_ungraded_share: Annotated[
        float, _option("Above this share of samples without a verdict it stops.", min=0, max=1)
    ] = 0.05
    retry_ungraded: Annotated[
        bool, _option("Make samples without a verdict once more.", "--retry-ungraded")
    ] = False

    def given(self) -> list[str]:
        """Return the options that differ from their defaults, as they are written."""
        return [
            f"--{each.name.replace('_', '-')}"
            for each in fields(self)
            if getattr(self, each.name) != each.default
        ]


NO_OPTIONS = EvaluationOptions()


def evaluation_parameters() -> list[inspect.Parameter]:
    """Return each field of `EvaluationOptions` as a parameter of a command."""
    hints, place = get_type_hints(EvaluationOptions, include_extras=True), inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(each.name, place, annotation=hints[each.name], default=each.default)
        for each in fields(EvaluationOptions)
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
