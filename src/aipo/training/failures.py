"""How much of a step its infrastructure has lost: verdicts that grading did not give, agents that failed.

What an agent or a grader did is never a reward. What is done beyond these two limits stands in
`training/guards.py`.
"""

from collections import Counter
from collections.abc import Sequence

from aipo.config.settings import TrainSettings
from aipo.core.types import ConsultOutcome, Verdict
from aipo.rollout.episode import Consultation
from aipo.rollout.group import Group

FAILED = (ConsultOutcome.TIMEOUT, ConsultOutcome.AGENT_ERROR)
"""EMPTY is no failure: an agent may have nothing to say."""
ASKED = (ConsultOutcome.ANSWERED, ConsultOutcome.EMPTY, *FAILED)
REASONS_SHOWN = 3


def too_many_ungraded(groups: Sequence[Group], limits: TrainSettings) -> str:
    """Return what happened where more rollouts than allowed could not be graded, else ''."""
    grades = [m.grade for g in groups for m in g.members]
    lost = [grade for grade in grades if grade.verdict is Verdict.UNGRADED]
    if len(lost) <= limits.max_ungraded_share * len(grades):
        return ""
    reasons = sorted({grade.reason for grade in lost})
    return (
        f"{len(lost) / len(grades):.0%} of the rollouts could not be graded, more than "
        f"train.max_ungraded_share = {limits.max_ungraded_share}; nothing was learnt from this step. "
        f"Reasons: {'; '.join(reasons[:REASONS_SHOWN])}"
    )


def too_many_failed(groups: Sequence[Group], limits: TrainSettings) -> str:
    """Return what happened, by agent, where too many of a step's consultations failed, else ''.

    Degenerate case: a step with fewer than `min_consultations_to_stop` consultations is never too bad.
    """
    said = [c for g in groups for m in g.members if m.rollout for c in m.rollout.consultations]
    asked = [c for c in said if c.outcome in ASKED]
    failed = [c for c in asked if c.outcome in FAILED]
    if len(asked) < limits.min_consultations_to_stop:
        return ""
    if len(failed) <= limits.max_failed_consultations_share * len(asked):
        return ""
    return (
        f"{len(failed)} of {len(asked)} consultations failed, more than "
        f"train.max_failed_consultations_share = {limits.max_failed_consultations_share}; nothing was learnt "
        f"from this step. Look with `aipo agents check RECIPE`.\n{_summary(asked)}\n"
    )


def _summary(asked: Sequence[Consultation]) -> str:
    """Return a line for each agent: its outcomes and the last reason of a failure."""
    lines = []
    for agent in sorted({c.agent for c in asked if c.agent}):
        own = [c for c in asked if c.agent == agent]
        counts = Counter(c.outcome for c in own)
        outcomes = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ASKED if counts[outcome])
        reasons = [c.detail for c in own if c.outcome in FAILED]
        lines.append(f"  {agent}: {outcomes}" + (f"; last error: {reasons[-1]}" if reasons else ""))
    return "\n".join(lines)
