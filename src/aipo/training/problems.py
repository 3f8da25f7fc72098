"""Which problems a step sees.

A batch depends on the seed and the batch's number only, so that all methods of a comparison see the same
problems, and so does a resumed run.
"""

from collections.abc import Sequence
from random import Random

from aipo.config.settings import Settings
from aipo.core.seeds import seed_of
from aipo.tasks.base import Problem


class ProblemBatches:
    """Batches of problems: each problem once an epoch, in an order that depends on seed and epoch only."""

    def __init__(self, problems: Sequence[Problem], settings: Settings) -> None:
        """Raises `ValueError` for a stratum that does not exist or a mix that does not add up."""
        self._seed, self._size = settings.run.seed, settings.train.prompts_per_step
        mix = settings.train.stratum_mix
        strata = {p.stratum for p in problems}
        if unknown := set(mix) - strata:
            raise ValueError(
                f"train.stratum_mix: no stratum {sorted(unknown)} in the data; it has {sorted(strata)}"
            )
        if mix and abs(sum(mix.values()) - 1) > 1e-6:
            raise ValueError(f"train.stratum_mix = {mix} adds up to {sum(mix.values())}; make it 1")
        self._pools: list[tuple[list[Problem], int]] = []
        left = self._size
        names = list(mix) or [""]
        for i, name in enumerate(names):
            share = left if i == len(names) - 1 else round(self._size * mix[name])
            self._pools.append(([p for p in problems if not name or p.stratum == name], share))
            left -= share

    def batch(self, number: int) -> list[Problem]:
        """Return the problems of the batch of this number, counted from 1, strata mixed."""
        batch = [
            self._nth(pool, share * (number - 1) + i, index)
            for index, (pool, share) in enumerate(self._pools)
            for i in range(share)
        ]
        Random(seed_of(self._seed, "mix", number)).shuffle(batch)
        return batch

    def _nth(self, pool: list[Problem], n: int, index: int) -> Problem:
        epoch, place = divmod(n, len(pool))
        order = _permutation(len(pool), seed_of(self._seed, "epoch", index, epoch))
        return pool[order[place]]


_PERMUTATIONS: dict[tuple[int, int], list[int]] = {}


def _permutation(size: int, seed: int) -> list[int]:
    if (size, seed) not in _PERMUTATIONS:
        if len(_PERMUTATIONS) > 16:
            _PERMUTATIONS.clear()
        order = list(range(size))
        Random(seed).shuffle(order)
        _PERMUTATIONS[size, seed] = order
    return _PERMUTATIONS[size, seed]
