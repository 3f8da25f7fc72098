"""From the settings of the algorithm to those of `core`: its base algorithm and its objective.

What a setting leaves open is the named algorithm's own. Nothing is computed here.
"""

from dataclasses import replace

from aipo.config.settings import AlgorithmSettings, Settings
from aipo.core.advantages import FEEDBACK_ADVANTAGES
from aipo.core.algorithms import ALGORITHMS, Algorithm
from aipo.core.coefficients import COEFFICIENTS
from aipo.core.feedback import CoefficientSettings
from aipo.core.objective import ObjectiveSettings
from aipo.core.surrogates import Clip, SurrogateSettings

USUAL_TRUNCATION = 2.0
"""Of the importance weights of a sampler that is not the trainer, as in verl's and TRL's recipes."""


def truncation_of(algorithm: AlgorithmSettings, in_process: bool) -> float:
    """Return the largest weight of the correction for a sampler that computes differently; 0: there is none.

    `in_process`: whether rollouts are sampled in the trainer's process, by its own arithmetic, and by the
    weights that learn from them.
    """
    if algorithm.mismatch_truncation == "auto":
        return 0.0 if in_process else USUAL_TRUNCATION
    return algorithm.mismatch_truncation


def with_truncation(settings: Settings, in_process: bool, begun: Settings | None = None) -> Settings:
    """Return the settings with `algorithm.mismatch_truncation` decided where it is `auto`.

    `begun`: the settings that the run was begun with; it goes on with what it became.
    """
    algorithm = settings.algorithm
    if algorithm.mismatch_truncation == "auto" and begun:
        kept = begun.algorithm.mismatch_truncation
        algorithm = algorithm.model_copy(update={"mismatch_truncation": kept})
    exact = in_process and not settings.rollout.max_staleness_steps
    decided = {"mismatch_truncation": truncation_of(algorithm, exact)}
    return settings.model_copy(update={"algorithm": algorithm.model_copy(update=decided)})


def base_algorithm(settings: AlgorithmSettings) -> Algorithm:
    """Return the named algorithm with what the settings change in it."""
    named = ALGORITHMS[settings.name]
    low = named.clip.low if settings.clip_low is None else settings.clip_low
    high = named.clip.high if settings.clip_high is None else settings.clip_high
    return replace(
        named,
        clip=Clip(low, high),
        estimator=settings.estimator or named.estimator,
        aggregation=settings.aggregation or named.aggregation,
    )


def objective_settings(algorithm: AlgorithmSettings) -> ObjectiveSettings:
    """Return the settings of `core`'s objective. Raises `RegistryError` for what cannot be looked up."""
    base = base_algorithm(algorithm)
    coefficient = CoefficientSettings(
        kind=algorithm.coefficient,
        floor=algorithm.floor,
        shape=algorithm.shape,
        truncation=algorithm.truncation,
        unit_below_zero=FEEDBACK_ADVANTAGES[algorithm.feedback_advantage].unit_below_zero,
        options=COEFFICIENTS[algorithm.coefficient].with_defaults(algorithm.coefficient_options),
    )
    return ObjectiveSettings(
        surrogate=SurrogateSettings(base.surrogate, base.clip),
        coefficient=coefficient,
        feedback_weight=algorithm.feedback_weight,
        kl_weight=algorithm.kl_weight,
        kl_estimator=algorithm.kl_estimator,
        entropy_weight=algorithm.entropy_weight,
    )
