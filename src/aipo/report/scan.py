"""A run's rollouts, read once and line by line: what is counted of all of them, and which few are shown.

The sample depends on the file's content and the seed only, never on the clock; each recorded step has the
same share of it. Of groups that are not in it, only their place in the file is held in memory.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from aipo.core.seeds import seed_of
from aipo.rollout.records import SCHEMA

Row = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Scan:
    """What was seen of one file."""

    rollouts: int = 0
    groups: int = 0
    unreadable: int = 0
    """Lines that are no record of this version: the last one of a run that was killed, as a rule."""
    steps: dict[int, int] = field(default_factory=dict)
    """Rollouts of each recorded step."""
    verdicts: Counter[str] = field(default_factory=Counter)
    strata: Counter[str] = field(default_factory=Counter)
    problems: set[str] = field(default_factory=set)
    ungraded_reasons: Counter[str] = field(default_factory=Counter)


class Place(NamedTuple):
    """Where one group stands in the file."""

    key: int
    """A hash; groups with the smallest ones are shown: a random choice that repeats."""
    step: int
    start: int
    end: int


def scan(
    path: Path, sample_rollouts: int, seed: int, see: Callable[[list[Row]], None]
) -> tuple[Scan, list[list[Row]]]:
    """Read the file once; call `see` with every group; return the counts and the rows of the sampled groups.

    Degenerate case: no file, or an empty one, gives zeros and no group.
    """
    found, most = Scan(), 1
    places: list[Place] = []
    if not path.exists():
        return found, []
    with path.open("rb") as file:  # bytes: U+2028 ends no line
        for rows, start, end in _groups(file, found):
            most = most if places else max(1, sample_rollouts // len(rows))
            _count(found, rows)
            see(rows)
            key = seed_of(seed, "report", rows[0]["step"], ascii(rows[0]["problem"]))
            places.append(Place(key, rows[0]["step"], start, end))
        sample = []
        for place in _sample(places, most, seed):
            file.seek(place.start)
            lines = file.read(place.end - place.start).split(b"\n")
            sample.append([row for row in map(_row, lines) if row])
    return found, sample


def _sample(places: Sequence[Place], most: int, seed: int) -> list[Place]:
    """Return the chosen groups, best first: one of each step, then the second of each, and so on.

    Where there are more steps than groups to show, the first and the last step stay.
    """
    by_step: dict[int, list[Place]] = {}
    for place in places:
        by_step.setdefault(place.step, []).append(place)
    steps = sorted(by_step)
    middle = sorted(steps[1:-1], key=lambda step: seed_of(seed, "step", step))
    steps = [*steps[-1:], *steps[:-1][:1], *middle][:most]
    share = max(1, most // max(1, len(steps)))
    ranked = [(rank, p) for step in steps for rank, p in enumerate(sorted(by_step[step])[:share])]
    return [place for _, place in sorted(ranked, key=lambda item: (item[0], item[1].step))]


def _groups(file: BinaryIO, found: Scan) -> Iterator[tuple[list[Row], int, int]]:
    """Yield the rows of each group, and where they begin and end: they stand together in the file."""
    rows: list[Row] = []
    start = end = 0
    for line in file:
        row = _row(line)
        found.unreadable += row is None and bool(line.strip())
        if row and rows and _begins(row, rows):
            yield rows, start, end
            rows, start = [], end
        if row:
            rows.append(row)
        end += len(line)
    if rows:
        yield rows, start, end


def _begins(row: Row, rows: Sequence[Row]) -> bool:
    """Say whether a row begins a new group; a problem drawn twice in a row, with a member that was there."""
    same = (row["step"], row["problem"]) == (rows[0]["step"], rows[0]["problem"])
    return not same or any(row["rollout"] == other["rollout"] for other in rows)


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    needed = ("step", "problem", "rollout", "verdict", "segments", "consultations")
    known = isinstance(row, dict) and row.get("schema") == SCHEMA and all(name in row for name in needed)
    return row if known else None


def _count(found: Scan, rows: list[Row]) -> None:
    step = rows[0]["step"]
    found.groups += 1
    found.rollouts += len(rows)
    found.steps[step] = found.steps.get(step, 0) + len(rows)
    found.problems.add(rows[0]["problem"])
    found.strata[rows[0].get("stratum", "")] += len(rows)
    for row in rows:
        found.verdicts[row["verdict"]] += 1
        if row["verdict"] == "ungraded":
            found.ungraded_reasons[str(row.get("reason", ""))[:200]] += 1
