"""What is wrong with settings, said so that it can be put right: where, which key, why, and the fix.

Owns the error, the search for the nearest key and the wording. Must not read files.
Invariant: one load raises at most one `SettingsError`, and it holds every problem that the load met.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined, to_jsonable_python

from aipo.config.toml import toml_value

Key = tuple[str | int, ...]
"""A path into settings: names, and positions inside tuples."""


class SettingsError(ValueError):
    """Settings cannot be used. `problems` has one line for each thing to put right."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n  - ".join([f"cannot load settings from {source}: {count}", *self.problems]))


def dotted(key: Key) -> str:
    """Return a key as it is written in an override.

    >>> dotted(("compare", "methods", 0, "name"))
    'compare.methods.0.name'
    """
    return ".".join(map(str, key))


def section_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the section behind field `name` (also inside `tuple[...]` or `... | None`); none for plain values."""
    field = model.model_fields.get(name)
    return None if field is None else next(_models(field.annotation), None)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a model, sections included."""
    for name in model.model_fields:
        yield prefix + name
        section = section_of(model, name)
        if section is not None:
            yield from keys_of(section, f"{prefix}{name}.")


def field_at(model: type[BaseModel], key: Key) -> FieldInfo | None:
    """Return the field a key names; a key into a dict or tuple of plain values names its field."""
    field = None
    for name in (part for part in key if isinstance(part, str)):
        if name not in model.model_fields:
            return field
        field = model.model_fields[name]
        section = section_of(model, name)
        if section is None:
            return field
        model = section
    return field


def nearest_key(model: type[BaseModel], key: Key) -> str | None:
    """Return the existing key that was most likely meant, or none.

    Looked for in this order: beside it, under the same name in another section, then anywhere.
    """
    wanted = dotted(tuple(part for part in key if isinstance(part, str)))
    section, _, name = wanted.rpartition(".")
    known = list(keys_of(model))
    beside = [k for k in known if k.rpartition(".")[0] == section]
    same_name = [k for k in known if k.rpartition(".")[2] == name]
    found = get_close_matches(wanted, beside, 1, 0.8) or get_close_matches(wanted, same_name, 1, 0.0)
    return next(iter(found or get_close_matches(wanted, known, 1, 0.6)), None)


def unknown_key(model: type[BaseModel], key: Key) -> str:
    """Say that a key does not exist, and which one may have been meant."""
    near = nearest_key(model, key)
    hint = f"did you mean `{near}`?" if near else f"there are: {', '.join(model.model_fields)}"
    return f"`{dotted(key)}`: unknown key; {hint}"


def describe_error(model: type[BaseModel], error: ErrorDetails) -> str:
    """Say what pydantic found: the key, the value, the constraint and a line that would be accepted."""
    key: Key = error["loc"]
    if error["type"] == "extra_forbidden":
        return unknown_key(model, key)
    constraint = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if error["type"] == "value_error":
        return f"`{dotted(key)}`: {constraint}"
    field = field_at(model, key)
    if error["type"] == "missing":
        about = f" ({field.description})" if field is not None and field.description else ""
        return f"`{dotted(key)}`: required but not set{about}"
    given = json.dumps(error["input"], default=str, ensure_ascii=False)
    return f"`{dotted(key)}` = {given}: {constraint}{_fix(key, field)}"


def _fix(key: Key, field: FieldInfo | None) -> str:
    """Return an assignment that would be accepted: the default."""
    if field is None or field.default in (PydanticUndefined, None) or isinstance(field.default, BaseModel):
        return ""
    name = dotted(tuple(part for part in key if isinstance(part, str)))
    default = to_jsonable_python(field.default)
    if isinstance(default, Mapping) and name.rpartition(".")[2] in default:
        default = default[name.rpartition(".")[2]]
    return f"; the default is `{name} = {toml_value(default)}`"
