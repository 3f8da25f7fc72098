"""The RLVR algorithms by name: each is a surrogate, an advantage estimator and an aggregation, nothing else.

Owns what a name stands for. Must not compute. Invariant: every algorithm works with every feedback
coefficient, and without FEEDBACK tokens it is the published one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from aipo.core.advantages import Estimator
from aipo.core.batch import Aggregation
from aipo.core.surrogates import Clip, Surrogate


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One published algorithm."""

    arxiv: str
    """Number of the paper: https://arxiv.org/abs/NUMBER."""
    surrogate: Surrogate
    estimator: Estimator
    aggregation: Aggregation
    clip: Clip


_S, _E, _A = Surrogate, Estimator, Aggregation
_EVEN, _HIGHER = Clip(0.2, 0.2), Clip(0.2, 0.28)

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        "grpo": Algorithm("2402.03300", _S.CLIPPED, _E.GROUP_NORMALISED, _A.SEQUENCE_MEAN, _EVEN),
        # DAPO's other two parts, dynamic sampling and overlong shaping, are settings of their own.
        "dapo": Algorithm("2503.14476", _S.CLIPPED, _E.GROUP_NORMALISED, _A.TOKEN_MEAN, _HIGHER),
        "dr_grpo": Algorithm("2503.20783", _S.CLIPPED, _E.GROUP_CENTRED, _A.HORIZON, _EVEN),
        "rloo": Algorithm("2402.14740", _S.CLIPPED, _E.LEAVE_ONE_OUT, _A.SEQUENCE_SUM, _EVEN),
        "reinforce_plus_plus": Algorithm("2501.03262", _S.CLIPPED, _E.BATCH_NORMALISED, _A.TOKEN_MEAN, _EVEN),
        "reinforce_plus_plus_baseline": Algorithm(
            "2501.03262", _S.CLIPPED, _E.GROUP_CENTRED_BATCH_NORMALISED, _A.TOKEN_MEAN, _EVEN
        ),
        "gspo": Algorithm("2507.18071", _S.SEQUENCE, _E.GROUP_NORMALISED, _A.SEQUENCE_MEAN, Clip(3e-4, 4e-4)),
        # CISPO clips from above only: low = 1 leaves the ratio free from below.
        "cispo": Algorithm("2506.13585", _S.CISPO, _E.GROUP_NORMALISED, _A.TOKEN_MEAN, Clip(1.0, 4.0)),
        "gppo": Algorithm("2508.07629", _S.PRESERVING, _E.GROUP_NORMALISED, _A.TOKEN_MEAN, _HIGHER),
    }
)
"""What `algorithm.name` may be."""
