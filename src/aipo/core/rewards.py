"""What a rollout is worth before it is compared with its siblings: the verdict's number or its own, and the
soft punishment of overlong responses.
"""

from aipo.core.types import Verdict

REWARD = {Verdict.CORRECT: 1.0, Verdict.INCORRECT: 0.0}


def reward_of(verdict: Verdict, own: float | None = None) -> float:
    """Return a rollout's reward: its own, or its verdict's. UNGRADED has none on purpose: a `KeyError`."""
    return REWARD[verdict] if own is None else own


def overlong_penalty(response_tokens: int, max_tokens: int, buffer_tokens: int) -> float:
    """Return DAPO's soft overlong punishment, in [-1, 0]: arXiv 2503.14476 eq. 13.

    0 up to `max_tokens - buffer_tokens`, then falling linearly to -1 at `max_tokens`. No buffer, no penalty.

    >>> [overlong_penalty(tokens, 100, 20) for tokens in (80, 90, 100)]
    [0.0, -0.5, -1.0]
    """
    excess = response_tokens - (max_tokens - buffer_tokens)
    return -min(1.0, excess / buffer_tokens) if buffer_tokens > 0 and excess > 0 else 0.0
