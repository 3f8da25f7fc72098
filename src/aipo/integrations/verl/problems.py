"""A problem as a row of verl's data holds it, and the problem of a row again.

What most problems have stands in columns of its own, the rest as JSON: columns of Parquet are the same for
all rows, and rows of a user's file need not be.
"""

import json
from collections.abc import Mapping
from typing import Any

from aipo.tasks.base import Problem

_MORE = ("solution", "turns", "tools", "alternatives", "place", "row")


def table_of_problem(problem: Problem, with_row: bool) -> dict[str, str]:
    """Return plain text. `with_row`: also the columns of the user's file, which rewards may read.

    Raises `ValueError` for a column that JSON cannot hold.
    """
    wanted = [name for name in _MORE if with_row or name != "row"]
    rest = {name: getattr(problem, name) for name in wanted if getattr(problem, name)}
    try:
        more = json.dumps({name: dict(v) if name == "row" else v for name, v in rest.items()})
    except TypeError as error:
        raise ValueError(
            f"{problem.place or problem.id}: a column holds what JSON has no word for ({error}); rows for "
            "verl are numbers, text, lists and tables"
        ) from error
    return {
        "id": problem.id,
        "text": problem.text,
        "gold": problem.gold,
        "stratum": problem.stratum,
        "more": more,
    }


def problem_of(row: Mapping[str, Any]) -> Problem:
    """Return the problem of a dataset's row. Raises `ValueError` for a row of another dataset."""
    info = row.get("extra_info")
    try:
        said = dict(info or {})["problem"]
        more = json.loads(said["more"]) if said.get("more") else {}
        more["turns"] = tuple((str(role), str(text)) for role, text in more.get("turns", ()))
        more["alternatives"] = tuple(map(str, more.get("alternatives", ())))
        return Problem(
            id=str(said["id"]),
            text=str(said["text"]),
            gold=str(said["gold"]),
            stratum=str(said["stratum"]),
            **more,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"extra_info = {info!r} holds no problem ({error!r}); write the dataset with `aipo data export`"
        ) from error


def place_of(row: Mapping[str, Any]) -> int:
    """Return where a row stands in the file, counted from 0."""
    return int(dict(row["extra_info"])["index"])
