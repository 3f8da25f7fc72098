"""What users extend by name: one entry each, from this package or from outside it.

A name is a built-in entry, an entry point that an installed package declares in the registry's group, or
`module:attribute`, which is imported when it is looked up. One registry stands for one setting, so that its
errors can name the field, the value and the fix. Nothing else may list the names a second time.
"""

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar, cast

Entry = TypeVar("Entry")


class RegistryError(ValueError):
    """A name stands for nothing, or for another kind of thing; the message names field, value and fix."""


class Registry(Generic[Entry]):
    """Entries by name, in the order in which they were registered.

    >>> colours = Registry[str]("plot.colour", str)
    >>> colours.register("red", "#f00")
    '#f00'
    >>> list(colours), colours["red"], "blue" in colours
    (['red'], '#f00', False)
    >>> colours["string:digits"]
    '0123456789'
    >>> colours["rad"]
    Traceback (most recent call last):
    ...
    aipo.core.registry.RegistryError: plot.colour = 'rad' is not known; did you mean 'red'? Choose one of \
red, or name your own as 'module:attribute'
    """

    def __init__(self, field: str, kind: type[Entry] | Callable[[object], bool], group: str = "") -> None:
        """`field`: the setting that holds the names. `kind`: the entries' type, or a test of an entry where a
        type cannot say it. `group`: the group of entry points; '': there is none."""
        self.field, self._kind, self._group = field, kind, group
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, entry: Entry) -> Entry:
        """Add a built-in entry and return it. Raises `RegistryError` for a name that is taken."""
        if name in self._entries:
            raise RegistryError(f"{self.field} = {name!r} is registered twice; choose another name")
        self._entries[name] = entry
        return entry

    def __iter__(self) -> Iterator[str]:
        """Yield the built-in names."""
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        """Say whether a name is a built-in one."""
        return name in self._entries

    def items(self) -> Iterator[tuple[str, Entry]]:
        """Yield the built-in names with their entries."""
        return iter(self._entries.items())

    def check(self, name: str) -> str:
        """Return the name if it can be looked up, without importing anything. Raises `RegistryError`."""
        if name not in self._entries and ":" not in name and name not in self._points():
            raise self._unknown(name)
        return name

    def __getitem__(self, name: str) -> Entry:
        """Return the entry of a name, importing it where it is from outside. Raises `RegistryError`."""
        if name in self._entries:
            return self._entries[name]
        point = self._points().get(self.check(name))
        found = point.load() if point else self._imported(name)
        fits = isinstance(found, self._kind) if isinstance(self._kind, type) else self._kind(found)
        if not fits:
            kind = getattr(self._kind, "__name__", "entry")
            raise RegistryError(f"{self.field} = {name!r} is a {type(found).__name__}, not a {kind}")
        return cast(Entry, found)

    def _points(self) -> Mapping[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self._group)} if self._group else {}

    def _imported(self, name: str) -> object:
        module, _, attribute = name.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise RegistryError(
                f"{self.field} = {name!r} cannot be imported ({error}); the module must be installed or be "
                "in the folder that the command is started in"
            ) from error

    def _unknown(self, name: str) -> RegistryError:
        known = [*self._entries, *self._points()]
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? Choose" if near else "choose"
        return RegistryError(
            f"{self.field} = {name!r} is not known; {hint} one of {', '.join(known)}, or name your "
            "own as 'module:attribute'"
        )
