"""One random batch for two implementations: ours, and a trainer's tensors of shape (B, T)."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from aipo.core.advantages import Advantage
from aipo.core.algorithms import ALGORITHMS
from aipo.core.batch import collate, weighted_rows
from aipo.core.objective import ObjectiveSettings, objective_loss
from aipo.core.surrogates import Clip, SurrogateSettings
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Source

WIDTH = 7
CLIPS: Mapping[str, Clip] = {"gspo": Clip(0.05, 0.07), "cispo": Clip(1.0, 0.3)}
"""Where an algorithm's own region would hardly, or never, clip these ratios; else the algorithm's own."""


@dataclass(frozen=True)
class Sample:
    """Responses behind a prompt of one token; `mask` is False at padding and at what a tool inserted."""

    news: Tensor
    olds: Tensor
    mask: Tensor
    attended: Tensor
    advantages: Tensor

    @property
    def references(self) -> Tensor:
        """What a reference policy says of the same tokens."""
        return self.olds + 0.3 * torch.sin(7 * self.news)

    @property
    def streams(self) -> list[TokenStream]:
        return [self._stream(i) for i in range(len(self.news))]

    def _stream(self, row: int) -> TokenStream:
        segments = [Segment(Source.PROMPT, (1,))]
        positions = range(int(self.attended[row].sum()))
        for own, run in groupby(positions, key=lambda t: bool(self.mask[row, t])):
            at = list(run)
            olds = tuple(self.olds[row, at].tolist()) if own else ()
            segments.append(Segment(Source.POLICY if own else Source.SCAFFOLD, (2,) * len(at), olds))
        return TokenStream(tuple(segments))


def sample(seed: int) -> Sample:
    """Five rollouts of unlike lengths with inserted tokens, ratios on both sides of every region."""
    rng = random.Random(seed)
    lengths = [WIDTH, 4, 1, 6, 3]
    attended = torch.tensor([[t < length for t in range(WIDTH)] for length in lengths])
    mask = attended.clone()
    mask[0, 2:4] = mask[3, 5] = mask[4, 1] = False
    olds = torch.tensor([[rng.uniform(-3.0, -0.7) for _ in range(WIDTH)] for _ in lengths]).double()
    moves = torch.tensor([[rng.uniform(-0.6, 0.6) for _ in range(WIDTH)] for _ in lengths]).double()
    advantages = torch.tensor([rng.choice([-1.4, -0.6, 0.8, 1.9]) for _ in lengths]).double()
    return Sample(olds + moves, olds, mask, attended, advantages)


def clip_of(name: str) -> Clip:
    """The region that both implementations are given."""
    return CLIPS.get(name, ALGORITHMS[name].clip)


def ours(of: Sample, name: str, kl_weight: float = 0.0) -> tuple[Tensor, Tensor]:
    """Our loss and its gradient at the responses' tokens; KL is to the policy `of.references`."""
    algorithm = replace(ALGORITHMS[name], clip=clip_of(name))
    rows = weighted_rows(
        of.streams,
        [Advantage(a, 0.0) for a in of.advantages.tolist()],
        algorithm.aggregation,
        feedback_trained=False,
        horizon_tokens=WIDTH,
    )
    log_p = of.news.clone().requires_grad_()
    padded = torch.cat([torch.zeros_like(log_p[:, :1]), log_p], dim=1)
    surrogate = SurrogateSettings(algorithm.surrogate, algorithm.clip)
    settings = ObjectiveSettings(surrogate=surrogate, kl_weight=kl_weight)
    batch = collate(rows, 0, torch.float64)
    if settings.kl is not None:
        there = torch.cat([torch.zeros_like(log_p[:, :1]), of.references], dim=1)
        batch = replace(batch, kl_reference=settings.kl.term(padded, there))
    loss = objective_loss(padded, batch, settings)
    loss.backward()
    assert log_p.grad is not None
    return loss.detach(), log_p.grad
