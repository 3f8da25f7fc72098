"""What is counted of a step, and when a step is not worth learning from.

Too many failures of agents or infrastructure stop the run before the step is learnt from.
"""

from collections.abc import Mapping, Sequence

from aipo.config.settings import TrainSettings
from aipo.rollout.group import Group
from aipo.training.failures import too_many_failed, too_many_ungraded


class StepRefusedError(RuntimeError):
    """Nothing is learnt from this step, and the run stops; the message says why."""


def refuse_failing(groups: Sequence[Group], limits: TrainSettings, step: int) -> None:
    """Raise `StepRefusedError` for a step with too many UNGRADED rollouts or failed consultations."""
    for why in (too_many_ungraded(groups, limits), too_many_failed(groups, limits)):
        if why:
            raise StepRefusedError(f"step {step}: {why}")


def token_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Return means over tokens from the sums that the loss reported; see `core.objective.objective_sums`."""
    over = {
        "policy_tokens": {
            "clipped": "clip_fraction",
            "ratio": "ratio_mean",
            "kl": "kl",
            "kl_reference": "kl_reference",
            "entropy": "entropy",
            "policy_nll": "policy_nll",
        },
        "feedback_tokens": {"feedback_p": "feedback_prob"},
        "credited_tokens": {"credited_p": "credited_feedback_prob"},
    }
    means = {
        f"aipo/{mean}": sums[name] / sums[tokens]
        for tokens, names in over.items()
        if sums.get(tokens)
        for name, mean in names.items()
        if name in sums
    }
    return means | {f"aipo/{tokens}": sums[tokens] for tokens in over if tokens in sums}
