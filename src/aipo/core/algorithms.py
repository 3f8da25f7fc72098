"""The RLVR algorithms by name: each is a surrogate, an advantage estimator and an aggregation, nothing else.

Every algorithm works with every feedback coefficient, and without FEEDBACK tokens it is the published one.
An algorithm is one entry of `ALGORITHMS`.
"""

from dataclasses import dataclass

from aipo.core.registry import Registry
from aipo.core.surrogates import Clip


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One published algorithm, of parts by name."""

    arxiv: str
    """Number of the paper: https://arxiv.org/abs/NUMBER."""
    surrogate: str = "clipped"
    estimator: str = "group_normalised"
    aggregation: str = "token_mean"
    clip: Clip


ALGORITHMS = Registry[Algorithm]("algorithm.name", Algorithm)
"""What `algorithm.name` may be; `module:attribute` names one from outside."""
_EVEN, _HIGHER = Clip(0.2, 0.2), Clip(0.2, 0.28)

ALGORITHMS.register("grpo", Algorithm(arxiv="2402.03300", aggregation="sequence_mean", clip=_EVEN))
# DAPO's other two parts, dynamic sampling and overlong shaping, are settings of their own.
ALGORITHMS.register("dapo", Algorithm(arxiv="2503.14476", clip=_HIGHER))
ALGORITHMS.register(
    "dr_grpo", Algorithm(arxiv="2503.20783", estimator="group_centred", aggregation="horizon", clip=_EVEN)
)
ALGORITHMS.register(
    "rloo", Algorithm(arxiv="2402.14740", estimator="leave_one_out", aggregation="sequence_sum", clip=_EVEN)
)
ALGORITHMS.register(
    "reinforce_plus_plus", Algorithm(arxiv="2501.03262", estimator="batch_normalised", clip=_EVEN)
)
ALGORITHMS.register(
    "reinforce_plus_plus_baseline",
    Algorithm(arxiv="2501.03262", estimator="group_centred_batch_normalised", clip=_EVEN),
)
_GSPO = Clip(3e-4, 4e-4)
ALGORITHMS.register(
    "gspo", Algorithm(arxiv="2507.18071", surrogate="sequence", aggregation="sequence_mean", clip=_GSPO)
)
# CISPO clips from above only: low = 1 leaves the ratio free from below.
ALGORITHMS.register("cispo", Algorithm(arxiv="2506.13585", surrogate="cispo", clip=Clip(1.0, 4.0)))
ALGORITHMS.register("gppo", Algorithm(arxiv="2508.07629", surrogate="preserving", clip=_HIGHER))
