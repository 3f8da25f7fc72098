"""What a recorded rollout was credited with, from its verdict, its siblings and the run's settings.

Records go back through `core`'s own functions, and a coefficient's words and curve come from its entry there.
What the record does not hold is None, never a guess.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aipo.config.settings import AlgorithmSettings, Settings
from aipo.core.advantages import ESTIMATORS
from aipo.core.coefficients import COEFFICIENTS, curve
from aipo.core.feedback import CoefficientSettings
from aipo.core.tokens import Segment, TokenStream, expert_stream
from aipo.core.types import Condition, Source, StopReason, Verdict
from aipo.grading import Grade
from aipo.rollout.episode import Consultation, Rollout
from aipo.rollout.group import Group, MemberRollout
from aipo.tasks.base import Problem
from aipo.training.algorithm import base_algorithm, objective_settings
from aipo.training.credit import REWARDS, credits_of
from aipo.training.schedule import algorithm_at, shape_at


@dataclass(frozen=True, slots=True)
class Credited:
    """Advantages of one rollout; None where it was left out of the batch or the record does not tell."""

    policy: float | None
    feedback: float | None


UNKNOWN = Credited(None, None)


def credited(rows: Sequence[dict[str, Any]], settings: Settings) -> list[Credited]:
    """Return what each rollout of a recorded group was credited with, by the run's own code.

    Not told by records, hence unknown: which round of dynamic sampling drew a group, on which the coins of
    `train.reward = "random"` depend.
    """
    step, algorithm = rows[0]["step"], algorithm_at(settings, rows[0]["step"])
    algorithm = algorithm.model_copy(update={"stripped_copies": False})
    try:
        group = _group(rows, shape_at(settings, step).experts)
    except (ValueError, KeyError, TypeError):
        return [UNKNOWN] * len(rows)  # a record that is no rollout of this version
    if settings.train.reward != "verdict" and settings.train.dynamic_sampling_rounds:
        return [UNKNOWN] * len(rows)
    group = REWARDS[settings.train.reward]([group], [settings.run.seed, "rollout", step])[0]
    credits = iter(credits_of(group, algorithm, settings.rollout.max_response_tokens))
    result = []
    for member in group.members:
        if member.rollout is None or member.grade.verdict is Verdict.UNGRADED:
            result.append(UNKNOWN)
        else:
            advantage = next(credits).advantage
            result.append(Credited(advantage.policy, advantage.feedback))
    return result


def rule(settings: Settings) -> str:
    """Return in words how a FEEDBACK token is weighed in this run."""
    algorithm = settings.algorithm
    entry = COEFFICIENTS[algorithm.coefficient]
    read = {letter: _span(algorithm, name) for name, letter in entry.reads.items()}
    own = {k: f"{v:g}" for k, v in entry.with_defaults(algorithm.coefficient_options).items()}
    constants = "".join(f"; {letter} = {value}" for letter, value in {**read, **own}.items())
    over_batch = ESTIMATORS[base_algorithm(algorithm).estimator].over_batch
    batch = ", before the batch is normalised" if over_batch else ""
    return f"{algorithm.coefficient}: W = {entry.weight}{constants}{batch}"


def weight(p: float, settings: Settings, step: int) -> float:
    """Return W = dC / dlog p of a credited FEEDBACK token with probability `p`, lambda included."""
    objective = objective_settings(algorithm_at(settings, step))
    if not objective.feedback_trained:
        return 0.0
    return objective.feedback_weight * gradient_weight(p, objective.coefficient)


def gradient_weight(p: float, coefficient: CoefficientSettings) -> float:
    """Return dC / dlog p at A > 0 and p_old = p (with q = 1), by differentiating `core`'s own term.

    >>> [round(gradient_weight(p, CoefficientSettings()), 3) for p in (0.01, 0.5)]
    [0.1, 0.5]
    """
    return float(curve(torch.tensor(max(p, 1e-30), dtype=torch.float64), coefficient)[1])


def _span(algorithm: AlgorithmSettings, name: str) -> str:
    """Return a setting's value, and the one that it reaches at the end of a run where there is one."""
    end = getattr(algorithm, f"{name}_end", None)
    return f"{getattr(algorithm, name):g}" + ("" if end is None else f" to {end:g}")


def _group(rows: Sequence[dict[str, Any]], experts: int) -> Group:
    problem = Problem(
        id=rows[0]["problem"], text=rows[0]["problem_text"], gold=rows[0]["gold"], stratum=rows[0]["stratum"]
    )
    streams = tuple(expert_stream((0,), (0,)) for _ in range(experts))  # only their number is read
    return Group(problem=problem, members=tuple(map(_member, rows)), experts=streams, solo_prompt_ids=(0,))


def _member(row: dict[str, Any]) -> MemberRollout:
    grade = Grade(Verdict(row["verdict"]), row["reason"], row.get("reward"))
    rollout = None
    if row["segments"]:
        rollout = Rollout(
            stream=TokenStream(tuple(map(_segment, row["segments"]))),
            response=row["response"],
            policy_text="",
            stop=StopReason(row["stop"]),
            consultations=tuple(map(_consultation, row["consultations"])),
            consult_spans=(),
        )
    return MemberRollout(
        id=row["rollout"], condition=Condition(row["condition"]), rollout=rollout, grade=grade
    )


def _segment(segment: dict[str, Any]) -> Segment:
    source = Source[segment["source"].upper()]
    return Segment(source, tuple(segment["ids"]), tuple(segment.get("log_probs", ())))


def _consultation(row: dict[str, Any]) -> Consultation:
    return Consultation(
        agent=row["agent"],
        request=row["request"],
        outcome=row["outcome"],
        reply=row["reply"],
        reply_tokens=row["reply_tokens"],
        detail="",
        context="",
        latency_s=0.0,
    )
