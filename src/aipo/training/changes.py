"""Settings that change within a run: which may, who allowed it, and from which step they hold.

A setting that differs from the run's is named by `--allow-change` and written down in `changes.json`, or
refused.
"""

import json
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Any

from aipo.config.layers import flatten
from aipo.config.loader import diff_settings, dump_settings, load_settings
from aipo.config.problems import dotted
from aipo.config.settings import Settings
from aipo.training.durable import write_whole

SETTINGS, CHANGES = "settings.toml", "changes.json"
_WEIGHTS = "the checkpoint's weights are those of this policy"
_CURSOR = "the checkpoint's place in the data counts batches of these problems"
FIXED = {
    "policy.model": _WEIGHTS,
    "policy.precision": _WEIGHTS,
    "policy.lora": _WEIGHTS,
    "run.seed": "every draw of the run so far hangs on it",
    "task.name": _CURSOR,
    "task.train_file": _CURSOR,
    "task.validation_file": _CURSOR,
    "task.problem_field": _CURSOR,
    "rollout.max_staleness_steps": "rollouts under way are due by a step that hangs on it",
    "train.prompts_per_step": _CURSOR,
    "train.stratum_mix": _CURSOR,
}
"""Fields, or beginnings of their names, that no run can change, and why."""


class RunFolderError(ValueError):
    """The output folder cannot be used; the message names the difference and the fix."""


class Changes:
    """What differs between the settings of a run's folder and those that it is to go on with."""

    def __init__(self, settings: Settings, allowed: Collection[str] = ()) -> None:
        """Raises `RunFolderError` for a difference that is not allowed, and for a name that is no setting."""
        self._settings, self._folder = settings, settings.run.output
        _refuse_unknown(allowed)
        stored = load_settings(self._folder / SETTINGS, [])
        self.lines = diff_settings(stored, settings)
        """`key: old -> new` of each."""
        refused = [line for line in self.lines if not _covered(_key(line), allowed)]
        if refused:
            raise RunFolderError(
                f"run.output = {str(self._folder)!r} holds a run with other settings; choose another "
                "folder, go back to its settings, or let it go on with these from here on (--allow-change "
                f"{','.join(map(_key, refused))}):\n  " + "\n  ".join(refused)
            )
        for line in self.lines:
            if reason := _fixed(_key(line)):
                raise RunFolderError(
                    f"{line}: cannot change within a run, whatever --allow-change says: {reason}; go back to "
                    "the old value or choose another run.output"
                )

    def hold_from(self, step: int) -> None:
        """Write down that they hold from the step after `step`.

        The record comes before the settings: one that was cut short between the two has a hash that is not
        that of the settings, and is dropped. What was written for steps that are run again now holds from the
        first of those.
        """
        now = settings_digest(self._folder)
        entries = [
            {**entry, "from_step": min(entry["from_step"], step + 1)} for entry in read_changes(self._folder)
        ]
        while entries and entries[-1]["after"] != now:
            entries.pop()
        if self.lines:
            text = dump_settings(self._settings)
            entry = {"from_step": step + 1, "changes": self.lines, "before": now, "after": _digest(text)}
            entries.append(entry)
        if entries != read_changes(self._folder):
            write_whole(self._folder / CHANGES, json.dumps(entries, indent=1) + "\n")
        if self.lines:
            write_whole(self._folder / SETTINGS, text)


def read_changes(folder: Path) -> list[dict[str, Any]]:
    """Return the changes of a run so far, oldest first; [] for a run whose settings never changed."""
    path = folder / CHANGES
    entries: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return entries


def settings_digest(folder: Path) -> str:
    """Return 16 hexadecimal digits of the settings that a run's folder holds, as they are written there."""
    return _digest((folder / SETTINGS).read_text())


def known_digests(folder: Path) -> set[str]:
    """Return the digests of all settings that a run's steps were made with."""
    entries = read_changes(folder)
    return {settings_digest(folder), *(entry[side] for entry in entries for side in ("before", "after"))}


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


def _key(line: str) -> str:
    return line.partition(": ")[0]


def _covered(key: str, names: Collection[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _fixed(key: str) -> str:
    return next(
        (reason for name, reason in FIXED.items() if key == name or key.startswith((f"{name}.", f"{name}_"))),
        "",
    )


def _refuse_unknown(names: Collection[str]) -> None:
    keys = _all_keys()
    for name in names:
        if any(_covered(key, [name]) for key in keys) or _covered(name, keys):
            continue
        near = get_close_matches(name, keys, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "; all fields: docs/settings.md"
        raise RunFolderError(f"--allow-change {name!r}: no such setting{hint}")


def _all_keys() -> Sequence[str]:
    """Return each field's dotted name, those without a value included."""
    table = Settings().model_dump(mode="json")
    return [dotted(key) for key, _, _ in flatten(Settings, table)]
