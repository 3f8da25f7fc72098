"""Values of `task.options` that are handed on to a library of others, checked."""

import json
from typing import Any

from aipo.tasks.base import TaskError


def listed(name: str, value: Any) -> Any:
    """Return a parameter's value; a text that is a JSON list or object is that list or table.

    >>> listed("a", "[1, 2]"), listed("b", "1, 2")
    ([1, 2], '1, 2')
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise TaskError(f"task.options.{name} = {value!r} is no JSON list or object: {error}") from error


def share_of(name: str, value: Any) -> float:
    """Return a score from above 0 to 1. Raises `TaskError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise TaskError(f"task.options.{name} = {value!r}: scores go from 0 to 1; write {name} = 1.0")
    return float(value)
