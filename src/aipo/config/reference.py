"""The reference of all settings as Markdown, written from the models themselves.

The text depends on the models only, so a test can tell when docs/settings.md is out of date.
"""

import re
from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from aipo.config.comparison import ComparisonRecipe
from aipo.config.problems import NameIn, extra_section, section_of
from aipo.config.settings import Settings
from aipo.config.toml import toml_value

_HEAD = """# Settings

<!-- Written by scripts/settings_reference.py from src/aipo/config; do not edit. -->

A recipe is a TOML file with these tables; a field that it does not set keeps its default.
`base = "other.toml"` at the top of a recipe builds on another one, found relative to it. On the command line
a field is written `section.field=value`; the value is TOML, and a bare word is a string.
"""

_COMPARE_HEAD = """# The recipe of a comparison

Read by `aipo compare`. Overrides that begin with `compare.` change the comparison, all others change every
method.
"""


def describe(*starts: type[Settings]) -> str:
    """Return the Markdown reference of every setting: name, type, default, description.

    Of `starts`, the settings of a first policy, only the tables that are their own.
    """
    own = [line for start in starts for line in _sections(start, known=tuple(Settings.model_fields))]
    sections = [*_sections(Settings), *own]
    return "\n".join([_HEAD, *sections, _COMPARE_HEAD, *_sections(ComparisonRecipe)]).rstrip() + "\n"


def _sections(model: type[BaseModel], prefix: str = "", known: tuple[str, ...] = ()) -> Iterator[str]:
    names = [*model.model_fields, *(["NAME"] if extra_section(model) else [])]
    for name in names:
        if name in known:
            continue
        section = section_of(model, name)
        if section is None:
            continue
        info = model.model_fields.get(name)
        many = info is not None and get_origin(info.annotation) is tuple
        yield f"## [[{prefix}{name}]]\n" if many else f"## [{prefix}{name}]\n"
        yield f"{_first_line(section)}\n"
        yield "| field | type | default | description |\n|---|---|---|---|"
        yield from (
            f"| `{field}` | {_cell(_type(info))} | {_default(info)} | {_escape(info.description or '')} |"
            for field, info in section.model_fields.items()
        )
        yield ""
        yield from _sections(section, f"{prefix}{name}.")


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]


def _type(info: FieldInfo) -> str:
    """Return a field's type with its bounds, as in `int >= 1`.

    >>> from pydantic import Field
    >>> _type(FieldInfo.from_annotation(Literal["a", "b"])), _type(Settings.model_fields["train"])
    ('"a" or "b"', 'table')
    """
    for each in info.metadata:
        if isinstance(each, NameIn):
            names = " or ".join([*map(toml_value, each.registry), "module:attribute"])
            return names if get_origin(info.annotation) is not dict else f"{names}, or a table of weights"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{signs[n]} {v:g}" for m in info.metadata for n in signs if (v := getattr(m, n, None)) is not None
    ]
    return " ".join([_type_name(info.annotation), ", ".join(bounds)]).strip()


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(map(toml_value, arguments))
    if origin in (Union, UnionType):
        return " or ".join(_type_name(a) for a in arguments if a is not type(None))
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"table of {_type_name(arguments[1])}"
    if hasattr(annotation, "__metadata__"):
        return _type(FieldInfo.from_annotation(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    if hasattr(annotation, "__members__"):
        return " or ".join(toml_value(member.value) for member in annotation)
    return {"Path": "path", "str": "string"}.get(annotation.__name__, annotation.__name__)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = to_jsonable_python(info.get_default(call_default_factory=True), exclude_none=True)
    return "none" if value is None else _cell(toml_value(value))


def _cell(text: str) -> str:
    return f"`{_escape(text)}`"


def _escape(text: str) -> str:
    """Keep a text on one line and its bars out of the table's."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
