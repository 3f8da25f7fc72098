"""An algorithm from outside the package, with an estimator of its own."""

from collections.abc import Sequence

from aipo.core.advantages import Estimator
from aipo.core.algorithms import Algorithm
from aipo.core.surrogates import Clip


def _over_least(rewards: Sequence[float]) -> list[float]:
    return [reward - min(rewards) for reward in rewards]


OVER_LEAST = Estimator(relative=_over_least, about="R - the least of the group")
ALGORITHM = Algorithm(
    arxiv="", surrogate="cispo", estimator="support.outside_algorithm:OVER_LEAST", clip=Clip(1.0, 3.0)
)
