"""The evaluation record: what one run scored in one mode, one JSON object a line; and files of such lines.

A record that is read back equals the one that was written, or reading fails with file and line.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")
SCHEMA = 1
"""Version of the record's fields; a change of their meaning raises it."""


class RecordError(ValueError):
    """A record cannot be used; the message names the place and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemResult:
    """How the samples of one problem were graded; all counts are rollouts.

    Raises `RecordError` for counts that cannot be.

    >>> ProblemResult(problem="p1", stratum="hard", samples=8, correct=3, ungraded=1, truncated=0).graded
    7
    """

    problem: str
    """The problem's id."""
    stratum: str
    samples: int
    correct: int
    ungraded: int
    """Samples without a verdict: an infrastructure failure. They leave the denominator."""
    truncated: int
    """Samples that reached the token limit, whatever their verdict."""
    reward: float | None = None
    """Mean reward of the graded samples, of one's own; None where there is none."""

    def __post_init__(self) -> None:
        counts = (self.samples, self.correct, self.ungraded, self.truncated)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise RecordError(f"problem {self.problem!r}: counts are whole numbers >= 0, not {counts}")
        if self.correct > self.graded or self.truncated > self.samples:
            raise RecordError(
                f"problem {self.problem!r}: {self.correct} correct, {self.ungraded} ungraded and "
                f"{self.truncated} truncated of {self.samples} samples"
            )

    @property
    def graded(self) -> int:
        """The n of pass@k: samples that got a verdict."""
        return self.samples - self.ungraded


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """One evaluation: one run (method and seed at a step), one split, one mode.

    Raises `RecordError` for another schema or a problem that occurs twice.
    """

    schema: int
    run: str
    """Name of the run's folder."""
    method: str
    """What the run is compared as; runs of one method differ in their seed only."""
    seed: int
    step: int
    """Policy updates before this evaluation."""
    split: str
    mode: str
    """A solo mode (`core.types.SoloMode`) or `agents`."""
    results: tuple[ProblemResult, ...]
    meta: dict[str, str | int | float] = field(default_factory=dict)
    """What else is known: expert tokens, wall seconds, temperature, versions."""

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise RecordError(f"schema {self.schema!r}; this version of aipo reads schema {SCHEMA}")
        if len({result.problem for result in self.results}) < len(self.results):
            raise RecordError(f"run {self.run!r}, mode {self.mode!r}: a problem occurs twice")

    @property
    def strata(self) -> tuple[str, ...]:
        """The strata of its problems, in order of appearance."""
        return tuple(dict.fromkeys(result.stratum for result in self.results))


def append_record(path: Path, record: EvaluationRecord) -> None:
    """Append one record to a file; see `append_lines`. Raises `ValueError` for NaN or infinity in `meta`."""
    row = asdict(record)
    row["results"] = [without_none(result, "reward") for result in row["results"]]
    append_lines(path, json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def without_none(row: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a row without a field that holds nothing: files of runs that do not use it stay as they were."""
    return {key: value for key, value in row.items() if key != name or value is not None}


def append_lines(path: Path, lines: str) -> None:
    """Append whole lines to a file, which is made if need be, and flush them to the disk.

    What a crash left of an unfinished last line is cut off first, so that it never stands before a whole one.
    One writer per file at a time; nothing is locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _mend_tail(file)
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, make: Callable[[Any], T], what: str) -> Iterator[tuple[int, T]]:
    """Yield what `make` makes of each line, with the line's number.

    A torn last line (no newline at its end and no whole JSON) is what a crash leaves: it is ignored with a
    `RuntimeWarning`. Anything else that is no `what` raises `RecordError` with file and line.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and _is_torn(line):
            warnings.warn(f"{path}:{number}: torn last line ignored", RuntimeWarning, stacklevel=3)
            return
        try:
            yield number, make(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            raise RecordError(f"{path}:{number}: not a {what}: {error}") from error


def read_records(paths: Path | Iterable[Path]) -> list[EvaluationRecord]:
    """Return the records of one file or several, in order; see `read_lines`."""
    files = [paths] if isinstance(paths, Path) else paths
    return [record for path in files for _, record in read_lines(path, _from_json, "record")]


def at_last_step(records: Iterable[EvaluationRecord]) -> list[EvaluationRecord]:
    """Return, of each method, seed, split and mode, the record with most steps; of equals the later one.

    The order is that of first appearance.
    """
    last: dict[tuple[str, int, str, str], EvaluationRecord] = {}
    for record in records:
        key = (record.method, record.seed, record.split, record.mode)
        if key not in last or record.step >= last[key].step:
            last[key] = record
    return list(last.values())


def methods_of(records: Iterable[EvaluationRecord]) -> tuple[str, ...]:
    """Return the methods in order of first appearance, the order in which they are shown."""
    return tuple(dict.fromkeys(record.method for record in records))


def _from_json(row: Any) -> EvaluationRecord:
    # The schema is looked at first: of another one, unknown fields would be the consequence, not the news.
    if not isinstance(row, dict) or row.get("schema") != SCHEMA:
        schema = row.get("schema") if isinstance(row, dict) else None
        raise RecordError(f"schema {schema!r}; this version of aipo reads schema {SCHEMA}")
    return EvaluationRecord(**{**row, "results": tuple(ProblemResult(**result) for result in row["results"])})


def _is_torn(line: bytes) -> bool:
    if line.endswith(b"\n"):
        return False
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


def _mend_tail(file: BinaryIO) -> None:
    """Let the file end with a newline: complete a whole last line, cut off a torn one."""
    if file.tell() == 0 or (file.seek(-1, os.SEEK_END), file.read(1))[1] == b"\n":
        return
    file.seek(0)
    lines = file.read().splitlines(keepends=True)
    if _is_torn(lines[-1]):
        file.truncate(sum(map(len, lines[:-1])))
    else:
        file.write(b"\n")
