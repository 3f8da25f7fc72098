"""The base of every table of settings, and what is wrong with one: where, which key, why, and the fix.

One load raises at most one `SettingsError`, and it holds every problem that the load met.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, ClassVar, get_args, get_type_hints
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined, to_jsonable_python

from aipo.config.toml import toml_value
from aipo.core.registry import Registry

Key = tuple[str | int, ...]
"""A path into settings: names, and positions inside tuples."""

_NOISE = re.compile(r"^(Value error, |Input |String |Tuple )| after validation")
_CONSTRAINTS = {
    "model_type": "should be a table",
    "dict_type": "should be a table",
    "tuple_type": "should be a list",
    "string_type": "should be a string, in quotes",
    "bool_type": "should be true or false",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "path_type": "should be a path, in quotes",
}
"""Pydantic's words for wrong types where they speak of Python or JSON instead of TOML."""


@dataclass(frozen=True, slots=True)
class NameIn:
    """Metadata of a field that holds a name of one of `core`'s registries, as in `Annotated[str, NameIn(…)]`.

    The registry is named as `module:attribute` and imported when it is asked for, because torch, which the
    method needs, takes seconds that `aipo --help` does not have.
    """

    path: str

    @property
    def registry(self) -> Registry[Any]:
        """The registry itself."""
        module, _, attribute = self.path.partition(":")
        found: Registry[Any] = getattr(import_module(module), attribute)
        return found


class MayBeAuto:
    """Metadata of a field whose `auto` is decided when a run begins, and recorded as what it became."""


def auto_in_either(model: type[BaseModel], key: Key, *values: object) -> bool:
    """Say whether one of a field's values is an `auto` that stands for the others."""
    field = field_at(model, key)
    marked = field is not None and any(isinstance(each, MayBeAuto) for each in field.metadata)
    return marked and toml_value("auto") in values


class Section(BaseModel):
    """Base of every section: unknown keys and names are refused, values are immutable."""

    renamed: ClassVar[Mapping[str, str]] = {}
    """Earlier names of fields: recipes, and the settings of finished runs, are read with them."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _known_name(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a name that its registry does not have; the default is known without looking."""
        field = cls.model_fields[info.field_name or ""]
        if value is not None and value != field.default:
            for each in field.metadata:
                if isinstance(each, NameIn):
                    for name in [value] if isinstance(value, str) else value:
                        each.registry.check(name)
        return value


def plain_url(value: str, example: str) -> str:
    """Return an http(s) address without credentials. Raises `ValueError` for anything else."""
    parts = urlsplit(value)
    if parts.username or parts.password:
        # The value itself is not repeated: it holds a secret.
        raise ValueError(
            "holds credentials, which would stand in the run's records; take them out and name the key's "
            "environment variable in api_key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{value!r} is no http(s) address; write it as in {example}")
    return value


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


def _named(key: Key) -> tuple[str, ...]:
    """Return a key without the positions inside tuples."""
    return tuple(part for part in key if isinstance(part, str))


def section_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the section behind a field, also inside `tuple[...]` or `... | None`; none for plain values.

    A model that has tables by names of the user's choice has the same section behind each of them.
    """
    field = model.model_fields.get(name)
    return extra_section(model) if field is None else next(_models(field.annotation), None)


def extra_section(model: type[BaseModel]) -> type[BaseModel] | None:
    """Return the section of a model's tables by names of the user's choice; none where it has no such."""
    if model.model_config.get("extra") != "allow":
        return None
    return next(_models(get_type_hints(model)["__pydantic_extra__"]), None)


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
    for name in _named(key):
        section = section_of(model, name)
        if name not in model.model_fields and section is None:
            return field
        field = model.model_fields.get(name)
        if section is None:
            return field
        model = section
    return field


def nearest_keys(model: type[BaseModel], key: Key) -> list[str]:
    """Return the existing keys that may have been meant, the likeliest first.

    Looked for in this order: beside it, under the same name in other sections, then anywhere.
    """
    wanted = dotted(_named(key))
    section, _, name = wanted.rpartition(".")
    known = list(keys_of(model))
    within: type[BaseModel] | None = model
    for part in _named(key)[:-1]:
        within = section_of(within, part) if within else None
    beside = list(within.model_fields) if within else []
    if near := get_close_matches(name, beside, 1):
        return [f"{section}.{near[0]}".lstrip(".")]
    same_name = sorted((k for k in known if k.rpartition(".")[2] == name), key=lambda k: k.count("."))
    typo_in_section = get_close_matches(wanted, same_name, 1, 0.8)
    return typo_in_section or same_name[:3] or get_close_matches(wanted, known, 1)


def unknown_key(model: type[BaseModel], key: Key) -> str:
    """Say that a key does not exist, and which one may have been meant."""
    near = " or ".join(f"`{k}`" for k in nearest_keys(model, key))
    hint = f"did you mean {near}?" if near else f"there are: {', '.join(model.model_fields)}"
    return f"`{dotted(key)}`: unknown key; {hint}"


def describe_errors(model: type[BaseModel], errors: Sequence[ErrorDetails]) -> Iterator[tuple[Key, str]]:
    """Yield (key, what is wrong) for what pydantic found.

    A list that is called too short only because its items are wrong is left out: the items are there.
    """
    inside = {error["loc"][:depth] for error in errors for depth in range(len(error["loc"]))}
    for error in errors:
        if error["type"] != "too_short" or error["loc"] not in inside:
            yield error["loc"], _describe_error(model, error)


def _describe_error(model: type[BaseModel], error: ErrorDetails) -> str:
    """Say what pydantic found: the key, the value, the constraint and a line that would be accepted."""
    key: Key = tuple(part for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        return unknown_key(model, key)
    constraint = _CONSTRAINTS.get(error["type"]) or _NOISE.sub("", error["msg"])
    if error["type"] == "value_error":
        about = f"{dotted(key)} = "  # a registry names the field itself
        said = f"`{dotted(key)}` = {constraint[len(about) :]}" if constraint.startswith(about) else None
        return said or f"`{dotted(key)}`: {constraint}"
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
    *path, name = _named(key)
    default = to_jsonable_python(field.default)
    if isinstance(default, Mapping) and path and name not in default:
        name = path.pop()  # an entry that the default does not have: show the whole table
    elif isinstance(default, Mapping) and path:
        default = default[name]
    return f"; the default is `{dotted((*path, name))} = {toml_value(default)}`"
