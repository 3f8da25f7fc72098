"""What consulting was worth: the success of rollouts with and without it, within the same groups.

Both sides of a comparison come from the same groups, so that a problem's difficulty cancels; an UNGRADED
rollout is on neither side.

What it is not: the effect of an agent. The policy chooses when it asks, and where it is stuck it asks more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan
from statistics import NormalDist, fmean, stdev
from typing import Any

from aipo.core.types import Condition, ConsultOutcome, Verdict
from aipo.evaluation.records import SCHEMA, EvaluationRecord, ProblemResult
from aipo.evaluation.statistics import Difference, Estimate, estimate, paired_difference

MOST_BOOTSTRAPPED = 1000
"""Groups up to which intervals are bootstrapped (memory grows with them); beyond, the normal approximation,
which then differs by less than an interval's end moves from one bootstrap to the next."""
REQUEST_CHARS = 160
"""Requests that begin alike count as one."""
MAY_CONSULT = "any agent allowed"
ANY = "any agent answered"
MALFORMED = "malformed"
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Share:
    """A mean over groups with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """One comparison: rollouts with against rollouts without, in the groups that have both."""

    what: str
    groups: int
    rollouts_with: int
    rollouts_without: int
    share_with: Share
    share_without: Share
    difference: Share
    p_value: float


@dataclass(slots=True, kw_only=True)
class Asked:
    """How often one request was made, and what came of it."""

    agent: str
    request: str
    times: int = 0
    answered: int = 0
    correct: int = 0
    graded: int = 0
    """Rollouts, a rollout counted once for each request that it made."""


Pair = tuple[tuple[int, int], tuple[int, int]]
"""(graded, correct) with, (graded, correct) without, of one group."""


@dataclass(slots=True)
class ValueOfConsultation:
    """Sees every group of a run once."""

    _pairs: dict[str, list[Pair]] = field(default_factory=lambda: {MAY_CONSULT: [], ANY: []})
    _asked: dict[tuple[str, str], Asked] = field(default_factory=dict)

    def see(self, rows: Sequence[dict[str, Any]]) -> None:
        """Count one group."""
        graded = [row for row in rows if row["verdict"] != Verdict.UNGRADED]
        consulting = [row for row in graded if row["condition"] == Condition.CONSULTING]
        solo = [row for row in graded if row["condition"] != Condition.CONSULTING]
        self._pair(MAY_CONSULT, consulting, solo)
        answered = [(row, _answered_by(row)) for row in consulting]
        self._pair(ANY, [row for row, by in answered if by], [row for row, by in answered if not by])
        for agent in sorted({agent for _, by in answered for agent in by}):
            sides = ([row for row, by in answered if (agent in by) == side] for side in (True, False))
            self._pair(agent, *sides)
        for row in rows:
            for consultation in row["consultations"]:
                self._count(row, consultation)

    def worths(self) -> list[Worth]:
        """Return every comparison that some group has both sides of."""
        return [_worth(what, pairs) for what, pairs in self._pairs.items() if pairs]

    def most_asked(self, number: int) -> list[Asked]:
        """Return the requests made most often."""
        ranked = sorted(self._asked.values(), key=lambda a: (-a.times, a.agent, a.request))
        return ranked[:number]

    @property
    def distinct_requests(self) -> int:
        """Number of different requests."""
        return len(self._asked)

    def _pair(self, what: str, with_: Sequence[Any], without: Sequence[Any]) -> None:
        if with_ and without:
            sides = tuple((len(rows), sum(_correct(row) for row in rows)) for rows in (with_, without))
            self._pairs.setdefault(what, []).append((sides[0], sides[1]))

    def _count(self, row: dict[str, Any], consultation: dict[str, Any]) -> None:
        agent = consultation["agent"] or MALFORMED
        request = consultation["request"][:REQUEST_CHARS]
        asked = self._asked.get((agent, request))
        if asked is None:
            asked = self._asked[agent, request] = Asked(agent=agent, request=request)
        asked.times += 1
        asked.answered += consultation["outcome"] == ConsultOutcome.ANSWERED
        asked.graded += row["verdict"] != Verdict.UNGRADED
        asked.correct += _correct(row)


def _correct(row: dict[str, Any]) -> bool:
    return bool(row["verdict"] == Verdict.CORRECT)


def _answered_by(row: dict[str, Any]) -> set[str]:
    return {c["agent"] for c in row["consultations"] if c["outcome"] == ConsultOutcome.ANSWERED}


def _worth(what: str, pairs: Sequence[Pair]) -> Worth:
    sides = [[pair[side] for pair in pairs] for side in (0, 1)]
    if len(pairs) > MOST_BOOTSTRAPPED:
        shares = [[correct / graded for graded, correct in side] for side in sides]
        moved = [a - b for a, b in zip(*shares, strict=True)]
        with_, without, difference = map(_normal, (*shares, moved))
        p_value = _normal_p(moved)
    else:
        records = [[_record(side)] for side in sides]
        found = paired_difference(records[0], records[1], "all", 1)
        of: list[Estimate | Difference] = [*(estimate(record, "all", 1) for record in records), found]
        with_, without, difference = (Share(e.value, e.low, e.high) for e in of)
        p_value = found.p_value
    return Worth(
        what=what,
        groups=len(pairs),
        rollouts_with=sum(graded for graded, _ in sides[0]),
        rollouts_without=sum(graded for graded, _ in sides[1]),
        share_with=with_,
        share_without=without,
        difference=difference,
        p_value=p_value,
    )


def _record(side: Sequence[tuple[int, int]]) -> EvaluationRecord:
    """Return one side as an evaluation whose problems are the groups: the statistics are the same."""
    results = tuple(
        ProblemResult(problem=str(i), stratum="all", samples=graded, correct=correct, ungraded=0, truncated=0)
        for i, (graded, correct) in enumerate(side)
    )
    return EvaluationRecord(
        schema=SCHEMA,
        run="groups",
        method="groups",
        seed=0,
        step=0,
        split="train",
        mode="groups",
        results=results,
    )


def _normal(values: Sequence[float]) -> Share:
    mean, half = fmean(values), _Z * stdev(values) / len(values) ** 0.5
    return Share(mean, mean - half, mean + half)


def _normal_p(values: Sequence[float]) -> float:
    error = stdev(values) / len(values) ** 0.5
    if not error:
        return 1.0 if not fmean(values) else nan
    return 2 * (1 - NormalDist().cdf(abs(fmean(values)) / error))
