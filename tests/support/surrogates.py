"""The surrogates in scalar arithmetic, written from the papers' formulas; no tensor, no autograd."""

from collections.abc import Callable, Sequence
from math import exp, fsum

from aipo.core.surrogates import Clip

Terms = list[tuple[float, float]]


def held(ratio: float, clip: Clip) -> float:
    """clip(r, 1 - low, 1 + high)."""
    return min(max(ratio, 1 - clip.low), 1 + clip.high)


def is_outside(ratio: float, a: float, clip: Clip) -> bool:
    """Whether a step along `a` would take the ratio further out of the trust region."""
    return (a > 0 and ratio > 1 + clip.high) or (a < 0 and ratio < 1 - clip.low)


def clipped(ratio: float, a: float, clip: Clip) -> tuple[float, float]:
    """PPO's min(r A, clip(r) A), and its derivative with respect to log p: r A or nothing."""
    return (held(ratio, clip) * a, 0.0) if is_outside(ratio, a, clip) else (ratio * a, ratio * a)


def preserving(ratio: float, a: float, clip: Clip) -> tuple[float, float]:
    """GPPO: PPO's value; a clipped token's derivative is the bound times A."""
    value = held(ratio, clip) * a if is_outside(ratio, a, clip) else ratio * a
    return value, value


def sequence_value(news: Sequence[float], olds: Sequence[float]) -> float:
    """GSPO's s: the geometric mean of the ratios."""
    return exp(fsum(new - old for new, old in zip(news, olds, strict=True)) / len(news))


def policy_terms(kind: str, news: Sequence[float], olds: Sequence[float], a: float, clip: Clip) -> Terms:
    """Value and derivative (with respect to its own log p) of each POLICY token of one rollout."""
    if not news:
        return []
    ratios = [exp(new - old) for new, old in zip(news, olds, strict=True)]
    rule: dict[str, Callable[[], Terms]] = {
        "clipped": lambda: [clipped(r, a, clip) for r in ratios],
        "preserving": lambda: [preserving(r, a, clip) for r in ratios],
        "sequence": lambda: [clipped(sequence_value(news, olds), a, clip) for _ in ratios],
        "cispo": lambda: [
            (held(r, clip) * a * new, held(r, clip) * a) for r, new in zip(ratios, news, strict=True)
        ],
    }
    return rule[kind]()
