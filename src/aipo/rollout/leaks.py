"""The leak guard: counts feedback that states the final answer and, if asked to, keeps it from the policy.

A leak is counted under every policy, and the gold answer itself never reaches an agent: the task supplies a
function that finds its answer in a text. It matters because feedback that hands over the answer earns reward
1 for a wrong chain of reasoning.
"""

from collections.abc import Callable
from dataclasses import dataclass

from aipo.core.types import LeakPolicy

Hide = Callable[[str], str | None]
"""A reply to the same reply without the final answer, or None where it does not state it."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """What the policy may read of a reply."""

    text: str
    leaked: bool


def guarded(reply: str, hide: Hide | None, policy: LeakPolicy) -> Guarded:
    """Apply the policy to a reply; an empty text means that nothing of it may be read.

    >>> guarded("12, so far 28", lambda reply: reply.replace("28", "?"), LeakPolicy.MASK)
    Guarded(text='12, so far ?', leaked=True)
    """
    hidden = hide(reply) if hide else None
    if hidden is None:
        return Guarded(reply, False)
    return Guarded({LeakPolicy.ALLOW: reply, LeakPolicy.MASK: hidden, LeakPolicy.DROP: ""}[policy], True)
