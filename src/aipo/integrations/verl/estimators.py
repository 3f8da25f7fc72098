"""`core`'s advantage estimators under names of verl's registry: `aipo_group_normalised` and its siblings.

verl's tensors go to `core/advantages.py` and back; nothing is computed here. A row without response tokens
in `response_mask` (a copy, padding) has no part in any baseline. The trainer `aipo_sync` puts in their place
what the package's own credit gives, which sees more: experts, prices, an estimator of your own.

verl's own estimators (grpo, rloo, ...) can be chosen as well: they see the same groups (`trainer`).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aipo.core.advantages import ESTIMATORS, group_relative, whitened

PREFIX = "aipo_"


def verls_name(estimator: str) -> str:
    """Return the name in verl's registry; one from outside this package goes under the default's."""
    return PREFIX + (estimator if estimator in ESTIMATORS else next(iter(ESTIMATORS)))


def register() -> None:
    """Put every estimator into verl's registry. Twice is harmless."""
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, register_adv_est

    for estimator in ESTIMATORS:
        name = PREFIX + estimator
        if name not in ADV_ESTIMATOR_REGISTRY:
            register_adv_est(name)(_Registered(estimator))


class _Registered:
    """One estimator as verl calls it."""

    def __init__(self, estimator: str) -> None:
        self._estimator = estimator
        self.__name__ = PREFIX + estimator

    def __call__(
        self, token_level_rewards: Tensor, response_mask: Tensor, index: Sequence[Any], **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Return (advantages, returns), both (B, T) and the same; `index` names each row's group."""
        rewards = token_level_rewards.sum(-1).tolist()
        tokens = [int(n) for n in response_mask.sum(-1).tolist()]
        values = advantages(rewards, tokens, [str(name) for name in index], self._estimator)
        column = torch.tensor(values, dtype=token_level_rewards.dtype, device=token_level_rewards.device)
        spread = column.unsqueeze(-1) * response_mask
        return spread, spread


def advantages(
    rewards: Sequence[float], tokens: Sequence[int], groups: Sequence[str], estimator: str
) -> list[float]:
    """Return one advantage a row; 0 for a row without POLICY tokens, which is in no group.

    >>> advantages([1.0, 0.0, 0.0, 1.0], [3, 3, 0, 2], ["a", "a", "a", "b"], "group_centred")
    [0.5, -0.5, 0.0, 0.0]
    """
    members = defaultdict(list)
    for row, group in enumerate(groups):
        if tokens[row]:
            members[group].append(row)
    values = [0.0] * len(rewards)
    for rows in members.values():
        for row, value in zip(rows, group_relative([rewards[i] for i in rows], estimator), strict=True):
            values[row] = value
    if ESTIMATORS[estimator].over_batch:
        counted = [row for rows in members.values() for row in rows]
        normal = whitened([values[i] for i in counted], [tokens[i] for i in counted])
        for row, value in zip(counted, normal, strict=True):
            values[row] = value
    return values
