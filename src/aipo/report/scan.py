"""A run's rollouts, read once and line by line: what is counted of all of them, and which few are shown.

Owns the sample and the grouping of lines. Must not hold more than the sample in memory, whatever the file's
size. Invariant: the sample depends on the file's content and the seed only, never on the clock; each recorded
step has the same share of it.
"""

import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aipo.core.seeds import seed_of
from aipo.rollout.records import SCHEMA

Row = dict[str, Any]


@dataclass(slots=True)
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


@dataclass(frozen=True, slots=True)
class RawGroup:
    """The lines of one group, as they stand in the file."""

    step: int
    lines: tuple[bytes, ...]

    def rows(self) -> list[Row]:
        """Return them as records."""
        return [json.loads(line) for line in self.lines]


class GroupSample:
    """As many groups of each recorded step, those whose hashes are smallest: a random choice that repeats."""

    def __init__(self, groups: int, seed: int) -> None:
        self._most, self._seed = max(1, groups), seed
        self._heaps: dict[int, list[tuple[int, int, RawGroup]]] = {}
        self._seen = 0

    def add(self, problem: str, group: RawGroup) -> None:
        """Consider one group."""
        self._seen += 1
        key = -(seed_of(self._seed, "report", group.step, ascii(problem)))
        heap = self._heaps.get(group.step)
        if heap is None:
            heap = self._heaps[group.step] = []
            self._make_room()
        if group.step not in self._heaps:
            return
        heapq.heappush(heap, (key, self._seen, group))
        self._shrink(heap)

    def chosen(self) -> list[RawGroup]:
        """Return the chosen groups, best first: one of each step, then the second of each, and so on."""
        ranked = [
            (rank, step, group)
            for step, heap in self._heaps.items()
            for rank, (_, _, group) in enumerate(sorted(heap, reverse=True))
        ]
        return [group for _, _, group in sorted(ranked, key=lambda item: item[:2])]

    def _make_room(self) -> None:
        """Let a new step have its share: others give up their last, or some step in the middle goes."""
        if len(self._heaps) > self._most:
            steps = sorted(self._heaps)
            middle = steps[1:-1] or steps[:1]  # the first and the last stay as long as there is room for both
            del self._heaps[max(middle, key=lambda step: seed_of(self._seed, "step", step))]
        for heap in self._heaps.values():
            self._shrink(heap)

    def _shrink(self, heap: list[tuple[int, int, RawGroup]]) -> None:
        while len(heap) > max(1, self._most // len(self._heaps)):
            heapq.heappop(heap)


def scan(
    path: Path, sample_rollouts: int, seed: int, see: Callable[[list[Row]], None]
) -> tuple[Scan, list[RawGroup]]:
    """Read the file once; call `see` with every group; return the counts and the sampled groups.

    Degenerate case: no file, or an empty one, gives zeros and no group.
    """
    found, sample = Scan(), None
    if not path.exists():
        return found, []
    for rows, lines in _groups(path, found):
        if sample is None:
            sample = GroupSample(sample_rollouts // len(rows), seed)
        _count(found, rows)
        see(rows)
        sample.add(rows[0]["problem"], RawGroup(rows[0]["step"], tuple(lines)))
    return found, sample.chosen() if sample else []


def _groups(path: Path, found: Scan) -> Iterator[tuple[list[Row], list[bytes]]]:
    """Yield the rows of each group with their lines: they stand together in the file."""
    rows: list[Row] = []
    lines: list[bytes] = []
    key: tuple[Any, ...] = ()
    ids: set[str] = set()
    with path.open("rb") as file:  # bytes: U+2028 ends no line
        for line in file:
            row = _row(line)
            if row is None:
                found.unreadable += bool(line.strip())
                continue
            own = (row["step"], row["problem"])
            # A problem that is drawn twice in a row begins a group anew with a member that was there.
            if rows and (own != key or row["rollout"] in ids):
                yield rows, lines
                rows, lines, ids = [], [], set()
            key = own
            rows.append(row)
            lines.append(line)
            ids.add(row["rollout"])
    if rows:
        yield rows, lines


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
