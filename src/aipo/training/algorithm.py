"""From the settings of the algorithm to those of `core`: its base algorithm and its objective.

What a setting leaves open is the named algorithm's own. Nothing is computed here.
"""

from dataclasses import replace

from aipo.config.settings import AlgorithmSettings
from aipo.core.advantages import FEEDBACK_ADVANTAGES
from aipo.core.algorithms import ALGORITHMS, Algorithm
from aipo.core.coefficients import COEFFICIENTS
from aipo.core.feedback import CoefficientSettings
from aipo.core.objective import ObjectiveSettings
from aipo.core.surrogates import Clip, SurrogateSettings


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
