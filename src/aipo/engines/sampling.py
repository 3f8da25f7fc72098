"""Drawing one token for each row, reproducibly.

A row's draws depend on its seed and its prefix length only, never on the other rows of the batch.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from aipo.engines.base import Sampling

DRAWN_AT_ONCE = 32
"""Uniform numbers of one row: cheaper than one by one, and the same ones."""


class Uniforms:
    """The draws of one request: a counter-based stream for each (seed, prefix length).

    >>> Uniforms(7, 3).next() == Uniforms(7, 3).next() != Uniforms(7, 4).next()
    True
    """

    def __init__(self, seed: int, prefix_length: int) -> None:
        self._stream = np.random.Generator(np.random.Philox(key=[seed % 2**64, prefix_length]))
        self._drawn: list[float] = []

    def next(self) -> float:
        """Return the next number in [0, 1)."""
        if not self._drawn:
            self._drawn = self._stream.random(DRAWN_AT_ONCE)[::-1].tolist()
        return self._drawn.pop()


class Drawing(Protocol):
    """What `draw` needs to know of a row."""

    sampling: Sampling
    uniforms: Uniforms
    banned: Sequence[int]
    """Tokens that cannot be drawn now."""
    taken: tuple[int, ...]
    """Those of them that can never be: the distribution is one without them."""


def draw(logits: Tensor, rows: Sequence[Drawing]) -> tuple[list[int], list[float]]:
    """Return a token and its log-probability for each row of `logits` (n, vocabulary).

    The log-probability is that of the tempered distribution before truncation, without the tokens that are
    taken from it: what the training forward can recompute. Greedy rows (temperature 0) report it at
    temperature 1.
    """
    log_p = torch.log_softmax(_tempered(logits.float(), rows), dim=-1)
    allowed = _truncated(log_p, rows)
    uniform = torch.tensor([[row.uniforms.next()] for row in rows], dtype=torch.float64, device=logits.device)
    # Inverse transform, summed in float64: with a large vocabulary a float32 sum would lose the tail.
    cumulative = allowed.exp().double().cumsum_(dim=-1)
    token = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    token.clamp_(max=logits.shape[1] - 1)
    greedy = [row.sampling.temperature == 0 for row in rows]
    if any(greedy):
        likeliest = allowed.argmax(dim=-1, keepdim=True)
        token = torch.where(torch.tensor(greedy, device=logits.device).unsqueeze(1), likeliest, token)
    reported = log_p.gather(1, token).squeeze(1)
    for taken in {row.taken for row in rows if row.taken and row.sampling.exact_log_probs}:
        at = torch.tensor([i for i, row in enumerate(rows) if row.taken == taken], device=logits.device)
        without = torch.tensor(taken, device=logits.device)
        reported[at] -= log_p[at].index_fill(1, without, -torch.inf).logsumexp(1)
    return token.squeeze(1).tolist(), reported.tolist()


def _tempered(logits: Tensor, rows: Sequence[Drawing]) -> Tensor:
    temperatures = [row.sampling.temperature or 1.0 for row in rows]
    if all(t == 1 for t in temperatures):
        return logits  # dividing by 1 changes no bit
    return logits / torch.tensor(temperatures, device=logits.device).unsqueeze(1)


def _truncated(log_p: Tensor, rows: Sequence[Drawing]) -> Tensor:
    """Return `log_p` with -inf at banned tokens and outside top-k and top-p."""
    narrowed = [row.sampling.top_k > 0 or row.sampling.top_p < 1 for row in rows]
    if not any(narrowed) and not any(row.banned for row in rows):
        return log_p
    log_p = log_p.clone()
    banned = [(i, token) for i, row in enumerate(rows) for token in row.banned]
    if banned:
        at = torch.tensor(banned, device=log_p.device)
        log_p[at[:, 0], at[:, 1]] = -torch.inf
    for i in (i for i, narrow in enumerate(narrowed) if narrow):
        log_p[i] = _nucleus(log_p[i], rows[i].sampling)
    return log_p


def _nucleus(log_p: Tensor, sampling: Sampling) -> Tensor:
    """Keep the top-k tokens, then the smallest set of the likeliest whose mass reaches top-p."""
    kept, index = log_p.sort(descending=True, stable=True)
    if sampling.top_k:
        kept[sampling.top_k :] = -torch.inf
    before = kept.softmax(-1).cumsum(-1) - kept.softmax(-1)
    kept[before >= sampling.top_p] = -torch.inf
    return torch.empty_like(kept).scatter_(0, index, kept)
