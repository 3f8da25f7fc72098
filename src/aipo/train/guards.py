"""When a step is not worth learning from because its agents failed.

Owns that limit and the summary that the user reads. Must not know the optimiser.
Invariant: what an agent did is never a reward; too much failure stops the run before the step is learnt from.
"""

from collections import Counter
from collections.abc import Sequence

from aipo.config.settings import TrainSettings
from aipo.core.types import ConsultOutcome
from aipo.rollout.episode import Consultation
from aipo.rollout.group import Group
from aipo.train.events import StopRunError

FAILED = (ConsultOutcome.TIMEOUT, ConsultOutcome.AGENT_ERROR)
"""EMPTY is no failure: an agent may have nothing to say."""
ASKED = (ConsultOutcome.ANSWERED, ConsultOutcome.EMPTY, *FAILED)


def refuse_failing_agents(groups: Sequence[Group], limits: TrainSettings, step: int) -> None:
    """Raise `StopRunError` with a summary where too many of a step's consultations failed.

    Degenerate case: a step with fewer than `min_consultations_to_stop` consultations never stops a run.
    """
    said = [c for g in groups for m in g.members if m.rollout for c in m.rollout.consultations]
    asked = [c for c in said if c.outcome in ASKED]
    failed = [c for c in asked if c.outcome in FAILED]
    if len(asked) < limits.min_consultations_to_stop:
        return
    if len(failed) <= limits.max_failed_consultations_share * len(asked):
        return
    raise StopRunError(
        f"step {step}: {len(failed)} of {len(asked)} consultations failed, more than "
        f"train.max_failed_consultations_share = {limits.max_failed_consultations_share}; nothing was learnt "
        f"from this step, and the same command goes on from the last checkpoint. Look with `aipo agents "
        f"check RECIPE`.\n{_summary(asked)}"
    )


def _summary(asked: Sequence[Consultation]) -> str:
    """Return a line for each agent: its outcomes and the last reason of a failure."""
    lines = []
    for agent in sorted({c.agent for c in asked if c.agent}):
        own = [c for c in asked if c.agent is agent]
        counts = Counter(c.outcome for c in own)
        outcomes = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ASKED if counts[outcome])
        reasons = [c.detail for c in own if c.outcome in FAILED]
        lines.append(f"  {agent}: {outcomes}" + (f"; last error: {reasons[-1]}" if reasons else ""))
    return "\n".join(lines)
