"""Drawing one token for each row, reproducibly.

Owns randomness and truncation of the distribution. Must not know caches or scheduling.
Invariant: a row's draws depend on its seed and its prefix length only, never on the other rows of the batch.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from aipo.engines.base import Sampling


class Uniforms:
    """The draws of one request: a counter-based stream for each (seed, prefix length).

    >>> Uniforms(7, 3).next() == Uniforms(7, 3).next() != Uniforms(7, 4).next()
    True
    """

    def __init__(self, seed: int, prefix_length: int) -> None:
        self._stream = np.random.Generator(np.random.Philox(key=[seed % 2**64, prefix_length]))

    def next(self) -> float:
        """Return the next number in [0, 1)."""
        return float(self._stream.random())


class Drawing(Protocol):
    """What `draw` needs to know of a row."""

    sampling: Sampling
    uniforms: Uniforms
    banned: Sequence[int]


def draw(logits: Tensor, rows: Sequence[Drawing]) -> tuple[list[int], list[float]]:
    """Return a token and its log-probability for each row of `logits` (n, vocabulary).

    The log-probability is that of the tempered distribution before truncation and bans: what the training
    forward can recompute. Greedy rows (temperature 0) report it at temperature 1.
    """
    logits = logits.float()
    temperature = torch.tensor([row.sampling.temperature or 1.0 for row in rows], device=logits.device)
    log_p = torch.log_softmax(logits / temperature.unsqueeze(1), dim=-1)
    allowed = _truncated(log_p, rows)
    uniform = torch.tensor([row.uniforms.next() for row in rows], dtype=torch.float64, device=logits.device)
    # Inverse transform in float64: with a large vocabulary a float32 running sum would lose the tail.
    cumulative = allowed.double().exp().cumsum(dim=-1)
    target = (uniform.unsqueeze(1) * cumulative[:, -1:]).to(cumulative.dtype)
    token = torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
    greedy = torch.tensor([row.sampling.temperature == 0 for row in rows], device=logits.device)
    token = torch.where(greedy, allowed.argmax(dim=-1), token)
    return token.tolist(), log_p.gather(1, token.unsqueeze(1)).squeeze(1).tolist()


def _truncated(log_p: Tensor, rows: Sequence[Drawing]) -> Tensor:
    """Return `log_p` with -inf at banned tokens and outside top-k and top-p."""
    narrowed = [row.sampling.top_k > 0 or row.sampling.top_p < 1 for row in rows]
    if not any(narrowed) and not any(row.banned for row in rows):
        return log_p
    log_p = log_p.clone()
    for i, row in enumerate(rows):
        if row.banned:
            log_p[i, list(row.banned)] = -torch.inf
        if narrowed[i]:
            log_p[i] = _nucleus(log_p[i], row.sampling)
    return log_p


def _nucleus(log_p: Tensor, sampling: Sampling) -> Tensor:
    """Keep the top-k tokens, then the smallest set of the likeliest whose mass reaches top-p."""
    kept, index = log_p.sort(descending=True, stable=True)
    if sampling.top_k:
        kept[sampling.top_k :] = -torch.inf
    before = kept.softmax(-1).cumsum(-1) - kept.softmax(-1)
    kept[before >= sampling.top_p] = -torch.inf
    return torch.empty_like(kept).scatter_(0, index, kept)
