"""From the settings of the algorithm to those of `core`: its base algorithm and its objective.

Owns the translation. Must not compute. Invariant: what a setting leaves open is the named algorithm's own.
"""

from dataclasses import replace

from aipo.config.settings import AlgorithmSettings
from aipo.core.advantages import Estimator, FeedbackAdvantage
from aipo.core.algorithms import ALGORITHMS, Algorithm
from aipo.core.batch import Aggregation
from aipo.core.coefficients import Coefficient, CoefficientSettings
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
        estimator=Estimator(settings.estimator) if settings.estimator else named.estimator,
        aggregation=Aggregation(settings.aggregation) if settings.aggregation else named.aggregation,
    )


def objective_settings(algorithm: AlgorithmSettings) -> ObjectiveSettings:
    """Return the settings of `core`'s objective."""
    base = base_algorithm(algorithm)
    coefficient = CoefficientSettings(
        Coefficient(algorithm.coefficient),
        algorithm.floor,
        algorithm.shape,
        truncation=algorithm.truncation,
        unit_below_zero=FeedbackAdvantage(algorithm.feedback_advantage) is FeedbackAdvantage.SIGNED_UNIT,
    )
    surrogate = SurrogateSettings(base.surrogate, base.clip)
    return ObjectiveSettings(surrogate, coefficient, algorithm.feedback_weight)
