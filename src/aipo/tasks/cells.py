"""From a row's cells to texts: problems, conversations, golds, ids.

A cell that cannot be used raises `ValueError` with field, value and fix. What is returned can be encoded: it
holds no half of a character and no NUL.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

from aipo.tasks.files import shown

Turn = tuple[str, str]
"""Who speaks (`system`, `user`, `assistant`, `tool`), and what is said."""

_THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_SCIENTIFIC = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]{1,4}")
_UNUSABLE = re.compile("[\ud800-\udfff\0]")
_PLAIN_DIGITS = 25
"""A number of more digits is written as m x 10^k."""
_NAMED = 12
"""Columns that an error lists."""
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
"""What others call who speaks."""


def found(row: Mapping[str, Any], field: str, setting: str = "") -> Any:
    """Return a cell by its column; `reward_model.ground_truth` and `answers.0` look inside one.

    Raises `ValueError` that lists the columns.
    """
    if field in row:
        return row[field]
    value: Any = row
    for name in field.split("."):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        else:
            fix = f"; set {setting}" if setting else ""
            raise ValueError(f"no field {field!r}; the row has {_listed(names(row))}{fix}")
    return value


def _listed(columns: Sequence[str]) -> str:
    """Return names for an error message: a file that is no table may have one of a megabyte, or thousands."""
    more = f" and {len(columns) - _NAMED} more" if len(columns) > _NAMED else ""
    return ", ".join(map(shown, columns[:_NAMED])) + more


def names(row: Mapping[str, Any]) -> list[str]:
    """Return the columns of a row, with those inside a cell as they are named in a setting."""
    inside = [[f"{name}.{key}" for key in cell] for name, cell in row.items() if isinstance(cell, Mapping)]
    return [*map(str, row), *(name for each in inside for name in each)]


def missing(value: Any) -> bool:
    """Say whether a cell is empty, as None or as the NaN that pandas puts there."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_of(row: Mapping[str, Any], field: str) -> str:
    """Return a column that holds a text with something in it, without space around. Raises `ValueError`."""
    return _text(found(row, field), field).strip()


def _text(value: Any, field: str) -> str:
    value = _alone(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {field!r}: {shown(value)}; must be a string with text in it")
    return usable(value, field)


def usable(text: str, field: str) -> str:
    """Return a text that a tokenizer can take. Raises `ValueError`."""
    if bad := _UNUSABLE.search(text):
        what = "a NUL" if bad[0] == "\0" else "half of a character"
        around = text[max(0, bad.start() - 10) : bad.end() + 10]
        raise ValueError(f"field {field!r}: {around!a} holds {what}, which no model reads; take it out")
    return text


def turns_of(row: Mapping[str, Any], field: str, setting: str = "") -> tuple[Turn, ...]:
    """Return a column's conversation, which ends with the user's turn; a plain text is one such turn.

    Messages are read with `role` and `content`, or `from` and `value`; content may be a list of parts, of
    which those with text count. Raises `ValueError`.
    """
    value = found(row, field, setting)
    if not (isinstance(value, Sequence) and value and all(isinstance(each, Mapping) for each in value)):
        return (("user", _text(value, field)),)
    turns = tuple(_turn(message, field) for message in value)
    if turns[-1][0] != "user":
        raise ValueError(
            f"field {field!r}: its last message is of {turns[-1][0]!r}; it must be the user's. Leave out the "
            "answer; an expert's goes into the column of task.solution_field"
        )
    if any(role == "system" for role, _ in turns[1:]):
        raise ValueError(f"field {field!r}: a system message that is not the first; put it first")
    return turns


def _turn(message: Mapping[str, Any], field: str) -> Turn:
    role = message.get("role", message.get("from"))
    role = _ROLES.get(str(role), role)
    if role not in ("system", "user", "assistant", "tool"):
        raise ValueError(
            f"field {field!r}: a message of role {role!r}; must be system, user, assistant or tool"
        )
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("text")]
        if len(parts) < len(content):
            raise ValueError(f"field {field!r}: {shown(content)}: a part without text; only texts are read")
        content = "\n".join(map(str, parts))
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"field {field!r}: message {shown(dict(message))} has no text; give its content")
    return str(role), usable(content.strip(), field)


def gold_of(row: Mapping[str, Any], field: str, after: str = "", setting: str = "") -> str:
    """Return a gold answer: a text or a finite number; what stands after the last mark `after`.

    Raises `ValueError` for an empty one, and for a list of several.
    """
    golds = _golds(found(row, field, setting), field, after)
    if len(golds) > 1:
        raise ValueError(f"field {field!r}: {shown(list(golds))}: {len(golds)} golds; give one")
    return golds[0]


def golds_of(row: Mapping[str, Any], field: str, after: str = "", setting: str = "") -> tuple[str, ...]:
    """Return the gold answers of a column that holds one or a list of them. Raises `ValueError`.

    The JSON text of a list of one, as some data sets write it, is that one.
    """
    value = found(row, field, setting)
    if isinstance(value, str) and value.startswith('["'):
        with suppress(ValueError):  # a text that merely looks like a list
            (value,) = json.loads(value)
    return _golds(value, field, after)


def _golds(value: Any, field: str, after: str) -> tuple[str, ...]:
    several = value if isinstance(value, list | tuple) else [value]
    if not several:
        raise ValueError(f"field {field!r}: {shown(value)} is empty; give the gold answer")
    return tuple(_gold(_alone(each), field, after) for each in several)


def _gold(value: Any, field: str, after: str) -> str:
    where = f"field {field!r}: {shown(value)}"
    if isinstance(value, Mapping):
        inside = f"{field}.{next(iter(value), 'value')}"
        raise ValueError(f"{where}; must be a string or a number; name a field inside it: {inside!r}")
    if isinstance(value, bool):
        raise ValueError(f"{where}; must be a string or a number: the text that answers state, as in 'yes'")
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        raise ValueError(f"{where}; must be a finite number")
    if not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"{where}; must be a string or a number")
    text = usable(value if isinstance(value, str) else str(value), field)
    if after and after not in text:
        raise ValueError(f"{where} has no mark {after!r}; correct the row or task.answer_after")
    gold = (text.rpartition(after)[2] if after else text).strip()
    if len(gold) > 2 and gold.startswith("$") and gold.endswith("$") and "$" not in gold[1:-1]:
        gold = gold[1:-1].strip()
    if not gold:
        raise ValueError(
            f"{where} {f'has nothing after {after!r}' if after else 'is empty'}; give the gold answer"
        )
    return plain_number(gold.replace(",", "") if _THOUSANDS.fullmatch(gold) else gold)


def plain_number(text: str) -> str:
    r"""Return a number in scientific notation as LaTeX reads it; anything else as it is.

    >>> plain_number("1e-07"), plain_number("1e16"), plain_number("6.02e23"), plain_number("1.5e+300")
    ('0.0000001', '10000000000000000', '602000000000000000000000', '1.5 \\times 10^{300}')
    """
    if not _SCIENTIFIC.fullmatch(text):
        return text
    number = Decimal(text)
    plain = format(number, "f")
    if len(plain) <= _PLAIN_DIGITS or not number:
        return plain
    mantissa, _, power = f"{number:e}".partition("e")
    return rf"{mantissa} \times 10^{{{int(power)}}}"


def id_of(row: Mapping[str, Any], default: str, *fields: str) -> str:
    """Return the first of the id columns that a row has, as text; else, or where it is empty, `default`.

    Raises `ValueError` for an id that is no text and no whole number.
    """
    field = next((name for name in fields if name in row), None)
    value = None if field is None else row[field]
    if field is None or missing(value):
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of integers with a gap, as pandas writes it
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"field {field!r}: {shown(value)}; must be a string or an integer, or left out")
    return str(value) if str(value).isprintable() else ascii(value)


def _alone(value: Any) -> Any:
    """Return the one element of a list of one; bytes of a text as that text; anything else as it is."""
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value
