"""What is counted of a step's rollouts, and when a step is not worth learning from.

A mean is over graded rollouts only; too many failures of agents or infrastructure stop the run before the
step is learnt from.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from aipo.core.rewards import REWARD
from aipo.core.types import Condition, ConsultOutcome, Verdict
from aipo.integrations.verl.about import About
from aipo.integrations.verl.plan import Plan

FAILED = (ConsultOutcome.TIMEOUT, ConsultOutcome.AGENT_ERROR)
ASKED = (ConsultOutcome.ANSWERED, ConsultOutcome.EMPTY, *FAILED)


class StepRefusedError(RuntimeError):
    """Nothing is learnt from this step, and the run stops; the message says why."""


def refuse_failing(rollouts: Sequence[About], plan: Plan, step: int) -> None:
    """Raise `StepRefusedError` for a step with too many UNGRADED rollouts or failed consultations.

    Degenerate cases: no rollouts, or fewer consultations than `plan.min_consultations_to_stop`, stop nothing.
    """
    lost = [about for about in rollouts if about.verdict is Verdict.UNGRADED]
    if len(lost) > plan.max_ungraded_share * len(rollouts):
        raise StepRefusedError(
            f"step {step}: {len(lost)} of {len(rollouts)} rollouts are UNGRADED, more than "
            f"train.max_ungraded_share = {plan.max_ungraded_share}; the last reason: {lost[-1].reason}"
        )
    asked = [outcome for about in rollouts for outcome in about.outcomes if outcome in ASKED]
    failed = [outcome for outcome in asked if outcome in FAILED]
    if len(asked) < plan.min_consultations_to_stop:
        return
    if len(failed) > plan.max_failed_consultations_share * len(asked):
        reasons = [reason for about in rollouts for reason in about.failures]
        raise StepRefusedError(
            f"step {step}: {len(failed)} of {len(asked)} consultations failed, more than "
            f"train.max_failed_consultations_share = {plan.max_failed_consultations_share}; the last reason: "
            f"{reasons[-1] if reasons else 'none was given'}. Look with `aipo agents check RECIPE`"
        )


def rollout_metrics(rollouts: Sequence[About]) -> dict[str, float]:
    """Return the step's numbers under `aipo/`; a mean over nothing is left out."""
    metrics = {"aipo/rollouts": float(len(rollouts))}
    if not rollouts:
        return metrics
    metrics["aipo/ungraded_share"] = _mean([about.verdict is Verdict.UNGRADED for about in rollouts])
    for condition in Condition:
        rewards = [
            REWARD[about.verdict]
            for about in rollouts
            if about.condition is condition and about.verdict is not Verdict.UNGRADED
        ]
        if rewards:
            metrics[f"aipo/reward_{condition.value}"] = _mean(rewards)
    consulting = [about for about in rollouts if about.condition is Condition.CONSULTING]
    if consulting:
        metrics["aipo/consultations_per_rollout"] = _mean([len(about.outcomes) for about in consulting])
    outcomes = Counter(outcome for about in rollouts for outcome in about.outcomes)
    metrics |= {f"aipo/outcome_{outcome.value}": float(outcomes[outcome]) for outcome in ConsultOutcome}
    metrics["aipo/leaks"] = float(sum(about.leaks for about in rollouts))
    metrics["aipo/expert_tokens"] = float(sum(about.reply_tokens for about in rollouts))
    return metrics


def token_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Return means over tokens from the sums that the loss reported; see `core.objective.objective_sums`."""
    over = {
        "policy_tokens": {
            "clipped": "clip_fraction",
            "ratio": "ratio_mean",
            "kl": "kl",
            "policy_nll": "policy_nll",
        },
        "feedback_tokens": {"feedback_p": "feedback_prob"},
        "credited_tokens": {"credited_p": "credited_feedback_prob"},
    }
    return {
        f"aipo/{mean}": sums[name] / sums[tokens]
        for tokens, names in over.items()
        if sums.get(tokens)
        for name, mean in names.items()
        if name in sums
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
