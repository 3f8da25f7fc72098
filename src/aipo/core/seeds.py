"""Randomness as a path: every draw of a run has an address, so results do not depend on concurrency.

Equal paths give equal seeds on every machine; different paths give independent ones. Nothing is drawn here.
"""

from hashlib import blake2b


def seed_of(*path: str | int) -> int:
    """Return a seed in [0, 2^63) for a path such as (run seed, "rollout", step, problem id, index).

    >>> seed_of(0, "rollout", 3) == seed_of(0, "rollout", 3) != seed_of(0, "rollout", 4)
    True
    >>> seed_of("a", "b") != seed_of("ab")
    True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in path)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
