"""The record of a rollout: one JSON object a line, enough to replay it token by token.

The same seed gives the same lines, so a record holds no measured time; the durations of consultations are
recorded with the step's timings.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from aipo.core.tokens import Segment
from aipo.core.types import Source
from aipo.grading import Grade
from aipo.rollout.episode import Consultation, ConsultContext, Rollout
from aipo.rollout.group import Group, MemberRollout
from aipo.rollout.reward import judgements_of, parts_of
from aipo.rollout.rewarded import Judgement

SCHEMA = 1
LOG_PROB_DECIMALS = 6
NOTHING_LEARNT: Mapping[int, Sequence[float]] = MappingProxyType({})


def rollout_records(
    group: Group,
    step: int,
    consult: ConsultContext,
    learnt: Mapping[int, Sequence[float]] = NOTHING_LEARNT,
) -> list[dict[str, Any]]:
    """Return a JSON-ready object for each rollout of a group.

    `learnt` holds log p of each stream's FEEDBACK tokens under the policy that learnt from them, by the
    stream's `id`; a rollout that nothing was learnt from is not in it.
    """
    return [_record(group, member, step, consult, learnt) for member in group.members]


def consultation_times(groups: Sequence[Group]) -> dict[str, list[float]]:
    """Return the seconds of each consultation by rollout: for the step's timings, where clocks belong.

    Degenerate cases: a rollout that asked nothing has no entry; nor has a problem that a step drew twice,
    whose rollouts share their ids.
    """
    drawn = Counter(group.problem.id for group in groups)
    return {
        member.id: [round(c.latency_s, 6) for c in member.rollout.consultations]
        for group in groups
        for member in group.members
        if drawn[group.problem.id] == 1 and member.rollout and member.rollout.consultations
    }


def _record(
    group: Group,
    member: MemberRollout,
    step: int,
    consult: ConsultContext,
    learnt: Mapping[int, Sequence[float]],
) -> dict[str, Any]:
    produced = member.rollout
    return {
        "schema": SCHEMA,
        "step": step,
        "rollout": member.id,
        "problem": group.problem.id,
        "problem_text": group.problem.text,
        "gold": group.problem.gold,
        "stratum": group.problem.stratum,
        "condition": member.condition.value,
        "verdict": member.grade.verdict.value,
        "reason": member.grade.reason,
        **rewarded(member.grade),
        "stop": produced.stop.value if produced else None,
        "weights_version": produced.weights_version if produced else None,
        "response": produced.response if produced else None,
        "segments": _segments(produced, consult, learnt.get(id(produced.stream))) if produced else [],
        "consultations": [_consultation(c) for c in produced.consultations] if produced else [],
    }


def rewarded(grade: Grade) -> dict[str, Any]:
    """Return the reward of one's own, its parts, and what judges said; nothing where verdicts are learnt."""
    parts, judgements = parts_of(grade), judgements_of(grade)
    return {
        **({} if grade.reward is None else {"reward": grade.reward}),
        **({"rewards": dict(parts)} if parts else {}),
        **({"judged": {name: _judgement(said) for name, said in judgements}} if judgements else {}),
    }


def _judgement(judgement: Judgement) -> dict[str, Any]:
    return {
        "said": judgement.said,
        "detail": judgement.detail,
        "prompt_tokens": judgement.usage.prompt_tokens,
        "completion_tokens": judgement.usage.completion_tokens,
        "cost": judgement.usage.cost,
    }


def _segments(
    produced: Rollout, consult: ConsultContext, learnt: Sequence[float] | None
) -> list[dict[str, Any]]:
    """Return the segments; tags that the system wrote for an elicited request say so (`opened`), and POLICY
    segments by which weights they were sampled, where those changed within the rollout."""
    stream = produced.stream
    left = iter(learnt or ())
    records = [_segment(segment, consult) for segment in stream.segments]
    for index in produced.opened or ():
        records[index]["opened"] = True
    if len(set(produced.segment_versions)) > 1:
        versions = iter(produced.segment_versions)
        for segment, record in zip(stream.segments, records, strict=True):
            if segment.source is Source.POLICY:
                record["weights_version"] = next(versions)
    for segment, record in zip(stream.segments, records, strict=True):
        if learnt is not None and segment.source is Source.FEEDBACK:
            record["policy_log_probs"] = [round(next(left), LOG_PROB_DECIMALS) for _ in segment.ids]
    return records


def _segment(segment: Segment, consult: ConsultContext) -> dict[str, Any]:
    record: dict[str, Any] = {
        "source": segment.source.name.lower(),
        "ids": list(segment.ids),
        "text": consult.codec.text(segment.ids),
    }
    if segment.source is Source.POLICY:
        record["log_probs"] = [round(log_prob, LOG_PROB_DECIMALS) for log_prob in segment.log_probs]
    return record


def _consultation(consultation: Consultation) -> dict[str, Any]:
    return {
        "agent": consultation.agent,
        "request": consultation.request,
        "outcome": consultation.outcome.value,
        "reply": consultation.reply,
        "reply_tokens": consultation.reply_tokens,
        "detail": consultation.detail,
        "context": consultation.context,
        "failure": consultation.failure.value if consultation.failure else None,
        "prompt_tokens": consultation.usage.prompt_tokens,
        "completion_tokens": consultation.usage.completion_tokens,
        "cost": consultation.usage.cost,
        "leaked": consultation.leaked,
        **({"elicited": True} if consultation.elicited else {}),
    }
