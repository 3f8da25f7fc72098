"""What a rollout needs in a process of verl: the consult, the task, the prompts. Built once a process.

Owns the seam to whatever builds them: `aipo.parts` of verl's configuration names a function, by default the
package's own, which reads the recipe; yours may bring agents of your own. Must not know which agents, tasks
or prompts there are. Invariant: one process builds one set, so that its agents share their limits and cache.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from aipo.core.types import SoloMode
from aipo.rollout.episode import ConsultContext
from aipo.rollout.group import Prompts
from aipo.tasks.base import Task


class PartsError(ValueError):
    """The parts of a rollout cannot be built; the message names the key and the fix."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that a rollout needs but the engine."""

    consult: ConsultContext
    task: Task
    prompts: Prompts
    end_ids: frozenset[int]
    """Ids that end a turn."""
    solo_mode: SoloMode = SoloMode.UNANSWERED


Builder = Callable[[Mapping[str, Any], Any, int], Parts]
"""(the table `aipo` of verl's configuration, the tokenizer, agent-loop processes that share the agents)."""

_BUILT: dict[int, tuple[object, Parts]] = {}
_LOCK = threading.Lock()


def parts_of(table: Mapping[str, Any], tokenizer: Any, processes: int) -> Parts:
    """Return this process's parts, built by `table["parts"]` at the first call with this tokenizer.

    Raises `PartsError` for a name that leads to no function, and what the function raises.
    """
    with _LOCK:
        if id(tokenizer) not in _BUILT:
            # The tokenizer is kept with them: an id may be given again to another object.
            _BUILT[id(tokenizer)] = (tokenizer, _builder(str(table["parts"]))(table, tokenizer, processes))
        return _BUILT[id(tokenizer)][1]


def _builder(name: str) -> Builder:
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise PartsError(
            f"aipo.parts = {name!r}: {error}; name a function as in 'my_package.parts:build'"
        ) from error
    return partial(found)
