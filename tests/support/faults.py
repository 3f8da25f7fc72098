"""Faults of one step of a run, put into the functions that the run calls."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from aipo.training.experience import Experience


class Fault:
    """A fault of one step, switched on when that step begins to sample; the self-test is step 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch, self.step, self.calls = monkeypatch, 0, 0
        sample_step = Experience.sample_step

        async def counted(own: Experience, step: int, *rest: Any) -> Any:
            self.step, self.calls = step, 0
            return await sample_step(own, step, *rest)

        monkeypatch.setattr(Experience, "sample_step", counted)

    def into(
        self, owner: Any, name: str, change: Callable[[Any], Any], steps: Sequence[int] = (2,), call: int = 1
    ) -> None:
        """Change what `owner.name` returns, in the `call`-th call of these steps; call 0: in every one."""
        original = getattr(owner, name)

        def changed(*arguments: Any, **named: Any) -> Any:
            result = original(*arguments, **named)
            if self.step not in steps:
                return result
            self.calls += 1
            return change(result) if call in (0, self.calls) else result

        self._patch.setattr(owner, name, changed)
