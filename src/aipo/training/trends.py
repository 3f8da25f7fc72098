"""Slow failures that a run's own numbers show: it does not ask, its entropy sinks, it forgets what it could.

All is found from the lines of metrics.jsonl, one after another, so that a resumed run goes on and the report
says what the run said. Each trend is said when it begins, and again only if it ends and begins once more.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from statistics import fmean

from aipo.config.settings import Settings

WORTH_KEEPING = 0.3
"""Solo accuracy below which a stratum has nothing to forget."""
SOLO = "reward_solo"


class Trend(StrEnum):
    """What can go wrong slowly; also the name of its setting in the table `guards`."""

    CONSULTING = "consulting"
    FALLING_ENTROPY = "falling_entropy"
    FORGETTING = "forgetting"


@dataclass(slots=True, kw_only=True)
class _Window:
    """The last values of one number."""

    size: int
    values: deque[float] = field(default_factory=deque)
    first: float | None = None
    best: float = 0.0
    """Of the means of whole windows, this one's included."""

    def add(self, value: float) -> float | None:
        """Take a value; return the mean of the last `size`, None before there are as many."""
        self.first = value if self.first is None else self.first
        self.values.append(value)
        if len(self.values) > self.size:
            self.values.popleft()
        if len(self.values) < self.size:
            return None
        mean = fmean(self.values)
        self.best = max(self.best, mean)
        return mean


class Trends:
    """The trends of one run, step by step."""

    def __init__(self, settings: Settings) -> None:
        self._limits = settings.guards
        self._asks = bool(settings.agents.enabled)
        self._windows: dict[str, _Window] = {}
        self._on: set[str] = set()
        """Numbers that are where they should not be, as their last step says."""
        self._measured: set[str] = set()

    def add(self, metrics: Mapping[str, float]) -> dict[Trend, str]:
        """Take a step's metrics; return the trends that begin with it, each with what to say of it."""
        self._measured = set()
        found = [*self._consulting(metrics), *self._entropy(metrics), *self._solo(metrics)]
        began = {trend: what for key, trend, what in found if key not in self._on}
        self._on = {key for key, _, _ in found} | (self._on - self._measured)
        return began

    def replay(self, lines: Iterable[Mapping[str, float]]) -> list[tuple[int, str]]:
        """Take the metrics of a run's steps; return what was said, with its step."""
        return [(int(line["step"]), what) for line in lines for what in self.add(line).values()]

    def _mean(self, name: str, metrics: Mapping[str, float]) -> tuple[_Window, float | None]:
        window = self._windows.setdefault(name, _Window(size=self._limits.trend_steps))
        value = metrics.get(name)
        if value is None or not isfinite(value):
            return window, None
        self._measured.add(name)
        return window, window.add(value)

    def _consulting(self, metrics: Mapping[str, float]) -> Iterable[tuple[str, Trend, str]]:
        least, steps = self._limits.min_consulting_share, self._limits.trend_steps
        window, mean = self._mean("consulting_share", metrics)
        if self._asks and mean is not None and mean < least:
            before = f", after {window.best:.0%} at best" if window.best >= least else ""
            yield (
                "consulting_share",
                Trend.CONSULTING,
                f"{mean:.0%} of the consulting rollouts of the last {steps} steps consulted{before}, less "
                f"than guards.min_consulting_share = {least:g}: where nobody asks, nothing is fed back, and "
                "AIPO is its base algorithm. Ways out: a warm start (`aipo warmstart`), elicited "
                "consultations (consult.elicit.share), a prompt with worked consultations "
                "(consult.consulting_prompt); where the share has fallen, a lower train.learning_rate or "
                "algorithm.kl_weight",
            )

    def _entropy(self, metrics: Mapping[str, float]) -> Iterable[tuple[str, Trend, str]]:
        share, steps = self._limits.min_entropy_share, self._limits.trend_steps
        window, mean = self._mean("entropy", metrics)
        if mean is not None and window.first is not None and mean < share * window.first:
            yield (
                "entropy",
                Trend.FALLING_ENTROPY,
                f"the entropy was {mean:.2g} nats a token over the last {steps} steps, {window.first:.2g} in "
                f"the first one, and guards.min_entropy_share = {share:g}: soon all rollouts of a group say "
                "the same. Ways out: a lower train.learning_rate, algorithm.kl_weight, "
                "algorithm.entropy_weight",
            )

    def _solo(self, metrics: Mapping[str, float]) -> Iterable[tuple[str, Trend, str]]:
        share, steps = self._limits.min_solo_share, self._limits.trend_steps
        for name in sorted(name for name in metrics if name.split("/")[0] == SOLO):
            window, mean = self._mean(name, metrics)
            if mean is None or window.best < WORTH_KEEPING or mean >= share * window.best:
                continue
            stratum = name.partition("/")[2]
            where = f" of stratum {stratum!r}" if stratum else ""
            yield (
                name,
                Trend.FORGETTING,
                f"{mean:.2f} of the solo rollouts{where} were right over the last {steps} steps, "
                f"{window.best:.2f} at best, and guards.min_solo_share = {share:g}: what the policy could do "
                "alone is being lost. Ways out: a lower train.learning_rate, algorithm.kl_weight, more of "
                "such problems (train.stratum_mix)",
            )
