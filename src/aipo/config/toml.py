"""Writing TOML, which the standard library only reads.

Owns the spelling of keys, values and tables. Must not know any setting.
Invariant: `tomllib.loads(toml_text(table)) == table` for strings, numbers, booleans, lists, tables.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def toml_key(name: str) -> str:
    """Return a key, quoted where it must be."""
    return name if _BARE_KEY.fullmatch(name) else _string(name)


def toml_value(value: Any) -> str:
    """Return one value on one line; a table becomes an inline table.

    >>> toml_value({"shares": [0.5, 1e-6], "name": 'toy', "on": True})
    '{ shares = [0.5, 1e-06], name = "toy", on = true }'
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{toml_key(name)} = {toml_value(item)}" for name, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return repr(value)


def toml_text(table: Mapping[str, Any]) -> str:
    """Return a document: plain values first, then one `[table]` for each table of the top level.

    >>> print(toml_text({"train": {"steps": 3, "mix": {}}, "base": "a.toml"}), end="")
    base = "a.toml"
    <BLANKLINE>
    [train]
    steps = 3
    mix = {}
    """
    return "\n".join(_lines(table)).lstrip("\n") + "\n"


def _lines(table: Mapping[str, Any]) -> Iterator[str]:
    for name, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{toml_key(name)} = {toml_value(value)}"
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield f"\n[{toml_key(name)}]"
            yield from (f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items())


def _string(text: str) -> str:
    """JSON's escapes are TOML's, but for DEL, which TOML wants escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
