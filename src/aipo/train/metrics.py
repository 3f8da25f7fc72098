"""The numbers of one step that come from its rollouts: rewards, consultations, tokens.

Owns their names. Must not know the optimiser.
Invariant: a share is always over graded rollouts; UNGRADED ones are counted apart.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from aipo.core.types import AgentName, Condition, ConsultOutcome, Source, StopReason, Verdict
from aipo.rollout.group import Group, MemberRollout


class ExpertTokens:
    """Tokens written by agents and experts so far: all of them, and those that a cache would charge once."""

    def __init__(self, raw: int = 0, distinct: int = 0, seen: Iterable[str] = ()) -> None:
        self.raw, self.distinct, self._seen = raw, distinct, set(seen)

    def add(self, group: Group) -> None:
        """Count a group's feedback (content, without tags) and its expert trajectories."""
        for member in group.members:
            for consultation in member.rollout.consultations if member.rollout else ():
                self._add(consultation.context, consultation.reply_tokens)
        for stream in group.experts:
            self._add(f"expert:{group.problem.id}", stream.count(Source.FEEDBACK))

    def _add(self, key: str, tokens: int) -> None:
        if not tokens:
            return
        self.raw += tokens
        if key not in self._seen:
            self._seen.add(key)
            self.distinct += tokens

    def state(self) -> dict[str, int | list[str]]:
        """Return what a checkpoint keeps."""
        return {"raw": self.raw, "distinct": self.distinct, "seen": sorted(self._seen)}


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Return a step's metrics; those without a rollout to speak of are left out."""
    members = [(g, m) for g in groups for m in g.members]
    metrics: dict[str, float] = {}
    for condition in Condition:
        _rewards(metrics, f"reward_{condition}", [(g, m) for g, m in members if m.condition is condition])
    produced = [m.rollout for _, m in members if m.rollout]
    if produced:
        metrics["truncated_share"] = sum(r.stop is StopReason.LENGTH for r in produced) / len(produced)
        metrics["response_tokens"] = sum(len(r.stream) - r.stream.prompt_length for r in produced) / len(
            produced
        )
    if members:
        metrics["ungraded_share"] = sum(m.grade.verdict is Verdict.UNGRADED for _, m in members) / len(
            members
        )
        metrics["zero_variance_share"] = sum(
            len({m.grade.verdict for m in g.members}) == 1 for g in groups
        ) / len(groups)
    _consultations(metrics, [m for _, m in members if m.condition is Condition.CONSULTING])
    return metrics


def _rewards(metrics: dict[str, float], name: str, members: Sequence[tuple[Group, MemberRollout]]) -> None:
    strata: dict[str, list[bool]] = {}
    for group, member in members:
        if member.grade.verdict is not Verdict.UNGRADED:
            strata.setdefault(group.problem.stratum, []).append(member.grade.verdict is Verdict.CORRECT)
    graded = [correct for values in strata.values() for correct in values]
    if graded:
        metrics[name] = sum(graded) / len(graded)
        for stratum, values in sorted(strata.items()):
            metrics[f"{name}/{stratum}"] = sum(values) / len(values)


def _consultations(metrics: dict[str, float], members: Sequence[MemberRollout]) -> None:
    if not members:
        return
    all_ = [c for m in members if m.rollout for c in m.rollout.consultations]
    metrics["consultations_per_rollout"] = len(all_) / len(members)
    metrics["consulting_share"] = sum(bool(m.rollout and m.rollout.consultations) for m in members) / len(
        members
    )
    agents, outcomes = Counter(c.agent for c in all_), Counter(c.outcome for c in all_)
    metrics.update({f"consultations/{agent}": agents[agent] / len(members) for agent in AgentName})
    metrics.update({f"outcomes/{outcome}": float(outcomes[outcome]) for outcome in ConsultOutcome})
