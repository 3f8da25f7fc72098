"""What is kept of rollouts that cross steps, so that a killed run loses no consultation that was paid for.

A line is written when a group begins, after each consultation, when a rollout is graded and when a step has
learnt from its groups: `under_way/step-NNNNNN.jsonl`, by the step in which that happened. A step that is made
again takes the groups that it had; what else was under way goes on where it was. Lines are read as data only.
"""

import json
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aipo.core.types import ConsultOutcome, Verdict
from aipo.rollout.episode import Begun, Consultation
from aipo.rollout.group import MemberRollout
from aipo.training.durable import sync
from aipo.training.journal import NotRecordedError

FOLDER = "under_way"
_FAILED = (ConsultOutcome.TIMEOUT, ConsultOutcome.AGENT_ERROR)
Place = tuple[int, int]
"""The number of a group, and which of its rollouts."""


@dataclass(slots=True, kw_only=True)
class Found:
    """What an earlier process has left."""

    began: dict[int, int] = field(default_factory=dict)
    """By the number of a group: the step in which it began."""
    begun: dict[Place, Begun] = field(default_factory=dict)
    done: dict[Place, MemberRollout] = field(default_factory=dict)
    learnt: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """By step: the groups that it learnt from, in order."""


class Kept:
    """Writes the lines, and reads them back."""

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder / FOLDER
        self._step = 0

    def in_step(self, step: int) -> None:
        """Write to the file of this step from now on, behind a line that a crash has torn if there is one."""
        self._folder.mkdir(exist_ok=True)
        self._step = step
        if self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
            with self._path.open("ab") as file:
                file.write(b"\n")

    def began(self, group: int, step: int) -> None:
        """Keep that a group has begun."""
        self._write({"group": group, "step": step})

    def begun(self, place: Place, state: Begun) -> None:
        """Keep where a rollout is."""
        self._write({"place": place, "begun": _plain(Begun, state)})

    def done(self, place: Place, made: MemberRollout) -> None:
        """Keep a rollout that is over, with its verdict."""
        self._write({"place": place, "done": _plain(MemberRollout, made)})

    def learnt(self, step: int, groups: Collection[int]) -> None:
        """Keep what a step that is over has learnt from."""
        self._write({"step": step, "learnt": list(groups)})

    @property
    def _path(self) -> Path:
        return self._folder / f"step-{self._step:06d}.jsonl"

    def _write(self, line: dict[str, Any]) -> None:
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise NotRecordedError(
                f"{str(self._path)!r} could not be written ({error}); make room. The same command "
                "continues from the newest checkpoint"
            ) from error

    def forget_before(self, step: int) -> None:
        """Remove what only steps before this one have written."""
        for path in self._files():
            if int(path.stem.removeprefix("step-")) < step:
                path.unlink(missing_ok=True)

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        for path in self._files():
            with suppress(FileNotFoundError):  # no longer needed
                sync(path)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("step-*.jsonl"))

    def read(self) -> Found:
        """Return what is there.

        No rollout goes on from a consultation that failed, but from the one before. A line that a crash has
        torn, and one of another version of the package, counts as not written.
        """
        found = Found()
        for line in self._lines():
            try:
                _take(line, found)
            except (ValidationError, KeyError, TypeError, ValueError):
                continue
        return found

    def _lines(self) -> Iterator[dict[str, Any]]:
        for path in self._files():
            for line in path.read_bytes().splitlines():
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


def whole(made: MemberRollout) -> bool:
    """Say whether a rollout was graded and no agent failed in it: else it is made again."""
    if made.rollout is None or made.grade.verdict is Verdict.UNGRADED:
        return False
    return not _failed(made.rollout.consultations)


def _take(line: dict[str, Any], found: Found) -> None:
    if "learnt" in line:
        found.learnt[int(line["step"])] = tuple(map(int, line["learnt"]))
    elif "place" in line:
        group, member = map(int, line["place"])
        if "done" in line:
            found.done[group, member] = _adapter(MemberRollout).validate_python(line["done"])
        elif not _failed((begun := _adapter(Begun).validate_python(line["begun"])).consultations):
            found.begun[group, member] = begun
    else:
        found.began[int(line["group"])] = int(line["step"])


def _failed(consultations: Collection[Consultation]) -> bool:
    return any(consultation.outcome in _FAILED for consultation in consultations)


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _plain(kind: type, value: object) -> Any:
    return _adapter(kind).dump_python(value, mode="json")
