"""The numbers of one step that come from its rollouts: rewards, consultations, tokens.

A share is always over graded rollouts; UNGRADED ones are counted separately.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import exp
from statistics import fmean

from aipo.agents.base import AgentFailure
from aipo.core.batch import Row
from aipo.core.surrogates import MAX_LOG_RATIO
from aipo.core.types import PAPER_AGENTS, Condition, ConsultOutcome, Source, StopReason, Verdict
from aipo.rollout.group import Group, MemberRollout, rewards_of
from aipo.rollout.reward import judgements_of, parts_of
from aipo.rollout.rewarded import Judgement
from aipo.training.events import LastConsultation

NO_ANSWER = (ConsultOutcome.TIMEOUT, ConsultOutcome.AGENT_ERROR, ConsultOutcome.EMPTY)
"""Outcomes of a question that an agent was asked and did not answer."""


class ExpertTokens:
    """Tokens written by agents and experts so far: all of them, and those that a cache would charge once."""

    def __init__(self, raw: int = 0, distinct: int = 0, seen: Iterable[str] = ()) -> None:
        self.raw, self.distinct, self._seen = raw, distinct, set(seen)

    def add(self, group: Group) -> None:
        """Count a group's feedback (content, without tags) and its expert trajectories."""
        for member in group.members:
            for consultation in member.rollout.consultations if member.rollout else ():
                self.add_reply(consultation.context, consultation.reply_tokens)
        for stream in group.experts:
            self.add_reply(f"expert:{group.problem.id}", stream.count(Source.FEEDBACK))

    def add_reply(self, key: str, tokens: int) -> None:
        """Count one reply; `key` says all that its writer saw."""
        if not tokens:
            return
        self.raw += tokens
        if key not in self._seen:
            self._seen.add(key)
            self.distinct += tokens

    def state(self) -> dict[str, int | list[str]]:
        """Return what a checkpoint keeps."""
        return {"raw": self.raw, "distinct": self.distinct, "seen": sorted(self._seen)}


def rollout_metrics(groups: Sequence[Group], agents: Iterable[str] = ()) -> dict[str, float]:
    """Return a step's metrics; those without a rollout to speak of are left out.

    `agents`: those that could be asked; the paper's three have their lines in every run.
    """
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
        metrics["zero_variance_share"] = sum(len(rewards_of(g.members)) <= 1 for g in groups) / len(groups)
        _graded_rewards(metrics, [m for _, m in members])
        _judgements(metrics, judgements_in(groups))
    names = tuple(dict.fromkeys((*PAPER_AGENTS, *agents)))
    _consultations(metrics, [m for _, m in members if m.condition is Condition.CONSULTING], names)
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


def _graded_rewards(metrics: dict[str, float], members: Sequence[MemberRollout]) -> None:
    """Add the mean of rewards of one's own, by condition and by function; none where verdicts are learnt."""
    found: dict[str, list[float]] = {}
    for member in members:
        if member.grade.reward is not None:
            found.setdefault(f"graded_reward_{member.condition}", []).append(member.grade.reward)
        for name, value in parts_of(member.grade):
            found.setdefault(f"graded_reward/{name}", []).append(value)
    metrics.update({name: fmean(values) for name, values in sorted(found.items())})


def judgements_in(groups: Sequence[Group]) -> list[Judgement]:
    """Return what the judges of `task.reward` said of a step's rollouts."""
    return [said for g in groups for m in g.members for _, said in judgements_of(m.grade)]


def _judgements(metrics: dict[str, float], judgements: Sequence[Judgement]) -> None:
    """Add what judges took, and how many judgements came to nothing; nothing where none was asked."""
    if judgements:
        metrics["judge_prompt_tokens"] = float(sum(j.usage.prompt_tokens for j in judgements))
        metrics["judge_completion_tokens"] = float(sum(j.usage.completion_tokens for j in judgements))
        metrics["judge_cost"] = sum(j.usage.cost for j in judgements)
        metrics["judge_failures"] = float(sum(j.value is None for j in judgements))


def _consultations(metrics: dict[str, float], members: Sequence[MemberRollout], names: Sequence[str]) -> None:
    if not members:
        return
    all_ = [c for m in members if m.rollout for c in m.rollout.consultations]
    metrics["consultations_per_rollout"] = len(all_) / len(members)
    metrics["consulting_share"] = sum(bool(m.rollout and m.rollout.consultations) for m in members) / len(
        members
    )
    agents, outcomes = Counter(c.agent for c in all_), Counter(c.outcome for c in all_)
    metrics.update({f"consultations/{agent}": agents[agent] / len(members) for agent in names})
    metrics.update({f"outcomes/{outcome}": float(outcomes[outcome]) for outcome in ConsultOutcome})
    leaks = Counter(c.agent for c in all_ if c.leaked)
    metrics.update({f"leaks/{agent}": leaks[agent] / max(1, agents[agent]) for agent in names})
    metrics["agent_prompt_tokens"] = float(sum(c.usage.prompt_tokens for c in all_))
    metrics["agent_completion_tokens"] = float(sum(c.usage.completion_tokens for c in all_))
    metrics["agent_cost"] = sum(c.usage.cost for c in all_)
    failed = Counter((c.agent, c.outcome) for c in all_)
    unreadable = Counter(c.agent for c in all_ if c.failure is AgentFailure.UNREADABLE)
    for agent in names:
        for outcome in NO_ANSWER:
            metrics[f"failures/{agent}/{outcome}"] = float(failed[agent, outcome])
        metrics[f"unreadable_replies/{agent}"] = float(unreadable[agent])


def truncated_share(rows: Sequence[Row], truncation: float) -> float:
    """Return the share of POLICY tokens that are likelier than when they were sampled, by more than this."""
    ratios = [
        exp(min(trainer - sampled, MAX_LOG_RATIO))
        for row in rows
        for trainer, sampled, source in zip(
            row.recomputed or (), row.stream.log_probs, row.stream.sources, strict=False
        )
        if source is Source.POLICY
    ]
    return sum(ratio > truncation for ratio in ratios) / max(1, len(ratios))


def last_consultation(groups: Sequence[Group]) -> LastConsultation | None:
    """Return the last consultation of the last rollout that consulted, for a display."""
    said = [c for g in groups for m in g.members if m.rollout for c in m.rollout.consultations]
    if not said:
        return None
    last = said[-1]
    return LastConsultation(
        agent=last.agent or "nobody", request=last.request, outcome=last.outcome, reply=last.reply
    )


def spending(groups: Sequence[Group]) -> dict[str, float]:
    """Return what of the cost of agents and judges was spent now: it depends on what a cache holds.

    That is why it stands with the timings: a step's metrics are the same whether it is run once or twice.
    Degenerate case: where nobody was asked, nothing.
    """
    asked = [c for g in groups for m in g.members if m.rollout for c in m.rollout.consultations if c.context]
    used = {"agent": [c.usage for c in asked], "judge": [j.usage for j in judgements_in(groups)]}
    spent: dict[str, float] = {}
    for who, usages in used.items():
        if usages:
            spent[f"{who}_cached_share"] = sum(usage.cached for usage in usages) / len(usages)
            spent[f"{who}_cost_paid"] = sum(usage.cost for usage in usages if not usage.cached)
    return spent
