"""Reading settings in layers: recipes, the recipes they are based on, and overrides.

A later layer wins field by field, and every problem names the layer that it came from. A field that is a
table (`train.stratum_mix`) is replaced as a whole, except by an override of one of its entries.

`pydantic-settings` was tried: it merges tables instead of replacing them, takes "10" for a number, knows no
`base`, and its errors name neither the file, nor the nearest key, nor the default.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from aipo.config.problems import Key, SettingsError, describe_errors, field_at, section_of, unknown_key

Model = TypeVar("Model", bound=BaseModel)
Table = dict[str, Any]
Found = tuple[tuple[str, ...], Any, bool]
"""A key, the value for it, and whether the key exists."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One value for one field, and the layer that set it."""

    key: tuple[str, ...]
    value: Any
    layer: str


@dataclass(kw_only=True)
class Layers:
    """The assignments of one load in the order of their precedence, and the problems met on the way."""

    source: str
    assignments: list[Assignment] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unread: bool = False
    """Whether a recipe could not be read at all."""

    def add_table(self, model: type[BaseModel], table: Mapping[str, Any], layer: str) -> None:
        """Add one layer; unknown keys become problems."""
        self._add(model, flatten(model, table), layer)

    def add_overrides(self, model: type[BaseModel], overrides: Sequence[str]) -> None:
        """Add overrides, one layer each."""
        for override in overrides:
            layer = f"override `{override}`"
            try:
                key, value = parse_override(override)
            except ValueError as error:
                self.problems.append(f"{layer}: {error}")
            else:
                self._add(model, _assigned(model, key, value), layer)

    def _add(self, model: type[BaseModel], found: Iterable[Found], layer: str) -> None:
        others = set(getattr(model, "other_tables", ())) - set(model.model_fields)
        for key, value, known in found:
            if key[0] in others:
                continue
            if known:
                self.assignments.append(Assignment(key, value, layer))
            else:
                self.problems.append(f"{layer}: {unknown_key(model, key)}")

    def add_recipe(self, model: type[BaseModel], path: Path, children: tuple[Path, ...] = ()) -> None:
        """Add a recipe on top of the recipe its `base` names."""
        if path.resolve() in children:
            circle = " -> ".join(str(child) for child in (*children, path.resolve()))
            self.problems.append(f"{path}: `base` leads in a circle: {circle}")
            return
        try:
            table = read_recipe(path)
        except ValueError as error:
            self.problems.append(str(error))
            self.unread = True
            return
        base = table.pop("base", None)
        if isinstance(base, str):
            self.add_recipe(model, path.parent / base, (*children, path.resolve()))
        elif base is not None:
            self.problems.append(f'{path}: `base` = {base!r}: must be a path, as in base = "other.toml"')
        self.add_table(model, table, str(path))

    def validate(self, model: type[Model]) -> Model:
        """Return the model of all layers together. Raises `SettingsError` with every problem."""
        text = json.dumps(_merge(model, self.assignments), default=str)
        try:
            loaded = model.model_validate_json(text, strict=True)  # strict: "10" is no number, 1 no boolean
        except ValidationError as error:
            # What a file that could not be read leaves out is no further problem.
            errors = [
                e for e in error.errors(include_url=False) if not (self.unread and e["type"] == "missing")
            ]
            found = describe_errors(model, errors)
            self.problems += [f"{self._origin(key)}: {problem}" for key, problem in found]
        if self.problems:
            raise SettingsError(self.source, self.problems)
        return loaded

    def _origin(self, loc: Key) -> str:
        """Return the layer to change: the last that set this key or a table around it, else one inside it."""
        latest = self.assignments[::-1]
        around = (a.layer for a in latest if a.key == loc[: len(a.key)])
        inside = (a.layer for a in latest if loc and a.key[: len(loc)] == loc)
        return next(chain(around, inside), self.source)


def load_layers(model: type[Model], recipe: Path | None, overrides: Sequence[str] = ()) -> Model:
    """Return the defaults, changed by a recipe, changed by overrides. Raises `SettingsError`."""
    layers = Layers(source=str(recipe) if recipe is not None else "overrides")
    if recipe is not None:
        layers.add_recipe(model, recipe)
    layers.add_overrides(model, overrides)
    return layers.validate(model)


def read_recipe(path: Path) -> Table:
    """Parse a TOML file. Raises `ValueError` that names the file and the line, or the recipes nearby."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {_nearby(path)}")
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else max(1, len(text.splitlines()))
        raise ValueError(f"{path}:{line}: malformed TOML: {error}") from None


def _nearby(path: Path) -> str:
    """Say which recipes stand where the missing one was looked for, the likeliest first."""
    folder = path.parent if path.parent.is_dir() else Path("recipes")
    names = sorted(recipe.name for recipe in folder.glob("*.toml"))
    likely = get_close_matches(path.name, names, 3, 0.5)
    ordered = likely + [name for name in names if name not in likely]
    if not ordered:
        return f"there are no recipes in {folder}; `aipo recipes list` names those that come with the package"
    return f"recipes in {folder}: {', '.join(ordered)}"


def parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    """Return the key and the value of `a.b=value`; the value is TOML, and a bare word is a string.

    >>> parse_override("train.steps=10"), parse_override("run.device=cuda")
    ((('train', 'steps'), 10), (('run', 'device'), 'cuda'))
    """
    name, equals, text = override.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    if not equals or not all(key):
        raise ValueError("not of the form section.field=value, as in train.steps=10")
    return key, _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text.startswith(("[", "{", '"', "'")):
            raise ValueError(f"the value is malformed TOML: {error}") from None
        return text
    return parsed["value"] if len(parsed) == 1 else text


def flatten(
    model: type[BaseModel] | None, table: Mapping[str, Any], prefix: tuple[str, ...] = ()
) -> Iterator[Found]:
    """Yield (key, value, whether the key exists) for every field a table sets, sections resolved."""
    for written, value in table.items():
        name = _present_name(model, written)
        known = model is not None and name in model.model_fields
        section = section_of(model, name) if model is not None else None
        if isinstance(value, Mapping) and (section is not None or (value and not known)):
            yield from flatten(section, value, (*prefix, name))
        else:
            yield (*prefix, name), value, known


def _assigned(model: type[BaseModel], key: tuple[str, ...], value: Any) -> Iterator[Found]:
    """Like `flatten` for one override, which may also name one entry of a table-valued field."""
    within: type[BaseModel] | None = model
    for depth, name in enumerate(key):
        name = _present_name(within, name)
        key = (*key[:depth], name, *key[depth + 1 :])
        section = section_of(within, name) if within else None
        is_table = section is not None and (depth + 1 < len(key) or isinstance(value, Mapping))
        if within is None or (name not in within.model_fields and not is_table):
            holder = field_at(model, key[:depth]) if within is None else None
            yield key, value, holder is not None and isinstance(holder.default, dict)
            return
        within = section
    if within is not None and isinstance(value, Mapping):
        yield from flatten(within, value, key)
    else:
        yield key, value, True


def _present_name(model: type[BaseModel] | None, name: str) -> str:
    """Return what a field is called today."""
    renamed: Mapping[str, str] = getattr(model, "renamed", {})
    return renamed.get(name, name)


def _defaults(model: type[BaseModel]) -> Table:
    """Return every default as nested tables; a required section is there too, a required value is not."""
    table: Table = {}
    for name, info in model.model_fields.items():
        if not info.is_required():
            table[name] = to_jsonable_python(info.get_default(call_default_factory=True))
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            table[name] = _defaults(info.annotation)
    return table


def _merge(model: type[BaseModel], assignments: Sequence[Assignment]) -> Table:
    """Return nested tables, complete, in which later assignments win."""
    merged = _defaults(model)
    for assignment in assignments:
        *path, name = assignment.key
        table: Any = merged
        for part in path:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                break  # a plain value stands where a table must: validation reports it
        else:
            table[name] = assignment.value
    return merged
