"""Padded tensors of several token streams, with each token's weight in the global mean.

Weights are computed once per global batch; how the batch is then cut, ordered or padded cannot change a
gradient. An aggregation is one entry of `AGGREGATIONS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aipo.core.advantages import Advantage
from aipo.core.registry import Registry
from aipo.core.tokens import TokenStream
from aipo.core.types import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """How token terms become one number."""

    weights: Callable[[Sequence[int], int], list[float]]
    """From each stream's number of trained tokens and the largest response length to what each of a stream's
    tokens weighs."""
    about: str
    arxiv: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A stream with what it is credited with; `weight` is that of each of its trained tokens."""

    stream: TokenStream
    advantage: Advantage
    weight: float
    without_requests: bool = False
    """Whether its tokens have their probabilities in the policy from which request tags are taken away."""
    recomputed: tuple[float, ...] | None = None
    """log p of every token under the policy that sampled, by a forward pass; read at FEEDBACK tokens, which
    no sampler reported, and only by coefficients that need it."""

    @property
    def log_p_old(self) -> tuple[float, ...]:
        """The sampler's log-probabilities, and the recomputed ones at FEEDBACK tokens."""
        sampled = self.stream.log_probs
        if self.recomputed is None:
            return sampled
        return tuple(
            new if source is Source.FEEDBACK else old
            for old, new, source in zip(sampled, self.recomputed, self.stream.sources, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Tensors of shape (B, T), right-padded with SCAFFOLD, which is never trained.

    `position t` of `log_p_old`, `weight` and of the log-probabilities given to the objective speaks of token
    t given everything before it; position 0 belongs to a prompt and is never trained.
    """

    ids: Tensor
    sources: Tensor
    attended: Tensor
    log_p_old: Tensor
    policy_advantage: Tensor
    feedback_advantage: Tensor
    weight: Tensor
    entropy: Tensor | None = None
    """Of the policy at each token, in nats; whoever runs the policy sets it, with its gradient."""
    kl_reference: Tensor | None = None
    """Of the policy from the reference, as `core/divergence.py` estimates it; likewise."""

    def mask(self, sources: Sequence[Source]) -> Tensor:
        """Return True at tokens of these sources; (B, T)."""
        return torch.stack([self.sources == source for source in sources]).any(0)

    @property
    def policy_mask(self) -> Tensor:
        """True at POLICY tokens; (B, T)."""
        return self.sources == Source.POLICY

    @property
    def feedback_mask(self) -> Tensor:
        """True at FEEDBACK tokens; (B, T)."""
        return self.sources == Source.FEEDBACK


def trained_tokens(stream: TokenStream, feedback_trained: bool) -> int:
    """Number of tokens of a stream that count in the denominator: POLICY, and FEEDBACK if it is trained."""
    return stream.count(Source.POLICY) + (stream.count(Source.FEEDBACK) if feedback_trained else 0)


def weighted_rows(
    streams: Sequence[TokenStream],
    advantages: Sequence[Advantage],
    aggregation: str,
    *,
    feedback_trained: bool,
    horizon_tokens: int = 1,
) -> list[Row]:
    """Return rows whose weights are those of the *whole* batch given here, all ranks and micro-batches too.

    `horizon_tokens`, the largest response length, is read by `horizon` alone.

    Degenerate case: a stream without trained tokens has weight 0; so has every row of a batch without any.

    >>> from aipo.core.tokens import Segment
    >>> prompt = Segment(Source.PROMPT, (1,))
    >>> short = TokenStream((prompt, Segment(Source.POLICY, (2,), (-1.0,))))
    >>> long = TokenStream((prompt, Segment(Source.POLICY, (2, 3, 4), (-1.0,) * 3)))
    >>> zero = Advantage(0.0, 0.0)
    >>> [row.weight for row in weighted_rows([short, long], [zero, zero], "token_mean",
    ...                                      feedback_trained=True)]
    [0.25, 0.25]
    """
    counts = [trained_tokens(stream, feedback_trained) for stream in streams]
    weights = AGGREGATIONS[aggregation].weights(counts, horizon_tokens)
    return [
        Row(stream=stream, advantage=advantage, weight=weight)
        for stream, advantage, weight in zip(streams, advantages, weights, strict=True)
    ]


def _token_mean(counts: Sequence[int], horizon_tokens: int) -> list[float]:
    return [1.0 / max(1, sum(counts))] * len(counts)


def _over_sequences(counts: Sequence[int], divisors: Sequence[int]) -> list[float]:
    sequences = sum(count > 0 for count in counts)
    return [
        1.0 / (sequences * divisor) if count else 0.0 for count, divisor in zip(counts, divisors, strict=True)
    ]


AGGREGATIONS = Registry[Aggregation]("algorithm.aggregation", Aggregation)
_DAPO = "every trained token of the global batch weighs 1/N: DAPO, eq. 10"
AGGREGATIONS.register("token_mean", Aggregation(weights=_token_mean, about=_DAPO, arxiv="2503.14476"))
AGGREGATIONS.register(
    "sequence_mean",
    Aggregation(
        weights=lambda counts, _: _over_sequences(counts, counts),
        about="mean over sequences of the mean over their trained tokens: GRPO, eq. 3",
        arxiv="2402.03300",
    ),
)
AGGREGATIONS.register(
    "sequence_sum",
    Aggregation(
        weights=lambda counts, _: _over_sequences(counts, [1] * len(counts)),
        about="mean over sequences of the sum over their trained tokens: RLOO",
        arxiv="2402.14740",
    ),
)
AGGREGATIONS.register(
    "horizon",
    Aggregation(
        weights=lambda counts, horizon: _over_sequences(counts, [horizon] * len(counts)),
        about="the same, divided by the largest response length, a constant: Dr. GRPO",
        arxiv="2503.20783",
    ),
)


def collate(rows: Sequence[Row], pad_id: int, dtype: torch.dtype = torch.float32) -> TokenBatch:
    """Pad rows to the longest one; (B, T) each. `pad_id` is never attended to and never trained."""
    width = max(len(row.stream) for row in rows)

    def padded(values: list[list[float]] | list[list[int]], fill: float, kind: torch.dtype) -> Tensor:
        return torch.tensor([list(v) + [fill] * (width - len(v)) for v in values], dtype=kind)

    lengths = torch.tensor([len(row.stream) for row in rows])
    column = [[row.advantage.policy, row.advantage.feedback, row.weight] for row in rows]
    per_row = torch.tensor(column, dtype=dtype).unsqueeze(-1).expand(-1, -1, width)
    return TokenBatch(
        ids=padded([list(row.stream.ids) for row in rows], pad_id, torch.long),
        sources=padded([list(map(int, row.stream.sources)) for row in rows], Source.SCAFFOLD, torch.long),
        attended=torch.arange(width).expand(len(rows), width) < lengths.unsqueeze(-1),
        log_p_old=padded([list(row.log_p_old) for row in rows], 0.0, dtype),
        policy_advantage=per_row[:, 0],
        feedback_advantage=per_row[:, 1],
        weight=per_row[:, 2],
    )


def corrected(batch: TokenBatch, log_p_trainer: Tensor, truncation: float) -> TokenBatch:
    """Correct for a sampler that is not quite the trainer: truncated importance sampling on POLICY tokens.

    Ratios are then taken to the trainer's own log p before the step, (B, T), and each token weighs
    min(p_trainer / p_sampler, truncation): https://fengyao.notion.site/off-policy-rl. If both agree, 1.
    """
    factor = torch.exp(log_p_trainer - batch.log_p_old).clamp(max=truncation)
    return replace(
        batch,
        log_p_old=torch.where(batch.policy_mask, log_p_trainer, batch.log_p_old),
        weight=torch.where(batch.policy_mask, batch.weight * factor, batch.weight),
    )
