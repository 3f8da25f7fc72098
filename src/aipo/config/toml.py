"""Writing TOML, which the standard library only reads.

`tomllib.loads(toml_text(table)) == table` for strings, numbers, booleans, lists and tables. `tomli-w` was
tried: it has no value on one line, which messages, differences and docs/settings.md need.
"""

import json
import re
from collections.abc import Mapping
from typing import Any


def toml_value(value: Any) -> str:
    """Return one value on one line; a table becomes an inline table.

    >>> toml_value({"shares": [0.5, 1e-6], "name": 'toy', "on": True})
    '{ shares = [0.5, 1e-06], name = "toy", on = true }'
    """
    if isinstance(value, Mapping):
        return f"{{ {', '.join(_pairs(value))} }}" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    # JSON's numbers, booleans and escapes are TOML's, but for DEL, which TOML wants escaped too.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_text(table: Mapping[str, Any]) -> str:
    """Return a document: plain values first, then one `[table]` for each table of the top level.

    >>> print(toml_text({"train": {"steps": 3, "mix": {}}, "base": "a.toml"}), end="")
    base = "a.toml"
    <BLANKLINE>
    [train]
    steps = 3
    mix = {}
    """
    lines = _pairs({name: value for name, value in table.items() if not isinstance(value, Mapping)})
    for name, value in table.items():
        if isinstance(value, Mapping):
            lines += [f"\n[{_key(name)}]", *_pairs(value)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(name)} = {toml_value(value)}" for name, value in table.items()]


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)
