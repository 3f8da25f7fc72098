"""Each surrogate's value and gradient against closed forms: at p = p_old, inside and outside the region.

GSPO against its textbook form with one ratio a sequence; CISPO's and GPPO's weights by name.
"""

from math import exp, log

import pytest
import torch
from torch import Tensor

from aipo.core.advantages import Advantage
from aipo.core.batch import collate, weighted_rows
from aipo.core.objective import ObjectiveSettings, objective_loss
from aipo.core.surrogates import (
    MAX_LOG_RATIO,
    SURROGATES,
    Clip,
    SurrogateSettings,
    clip_mask,
    sequence_ratio,
    surrogate_term,
    token_ratio,
)
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Source
from support.surrogates import clipped, is_outside, policy_terms, sequence_value

CLIP = Clip(0.2, 0.28)
RATIOS = [0.01, 0.5, 0.79, 0.81, 1.0, 1.27, 1.29, 2.0, 50.0]
ADVANTAGES = [1.0, -1.0, 0.37, -2.5, 0.0]
OLD = -6.0


def terms(
    kind: str, news: list[float], olds: list[float], a: float, clip: Clip = CLIP
) -> tuple[list[float], list[float], list[bool]]:
    """Each token's value, the derivative of their sum, and whether the region acts on it."""
    log_p = torch.tensor([news], dtype=torch.float64, requires_grad=True)
    old, advantage = torch.tensor([olds], dtype=torch.float64), torch.tensor([[a]], dtype=torch.float64)
    mask = torch.ones_like(old, dtype=torch.bool)
    settings = SurrogateSettings(kind, clip)
    value = surrogate_term(log_p, old, advantage, mask, settings)
    value.sum().backward()
    assert log_p.grad is not None
    acts = clip_mask(log_p.detach(), old, advantage, mask, settings)
    return value[0].tolist(), log_p.grad[0].tolist(), acts[0].tolist()


@pytest.mark.parametrize("a", ADVANTAGES)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("kind", SURROGATES)
def test_value_and_gradient_are_those_of_the_closed_form(kind: str, ratio: float, a: float) -> None:
    news, olds = [OLD + log(ratio)], [OLD]
    (value,), (gradient,), (acts,) = terms(kind, news, olds, a)
    assert (value, gradient) == pytest.approx(policy_terms(kind, news, olds, a, CLIP)[0], rel=1e-12)
    assert acts == is_outside(ratio, a, CLIP)


@pytest.mark.parametrize("a", ADVANTAGES)
@pytest.mark.parametrize("clip", [Clip(0.0, 0.0), Clip(0.2, 0.2), CLIP, Clip(3e-4, 4e-4), Clip(1.0, 4.0)])
@pytest.mark.parametrize("kind", SURROGATES)
def test_at_the_first_update_every_gradient_is_the_advantage(kind: str, clip: Clip, a: float) -> None:
    news = [-0.1, -2.0, -9.0]
    _, gradients, acts = terms(kind, news, news, a, clip)
    assert gradients == [a] * 3
    assert acts == [False] * 3


@pytest.mark.parametrize(("ratio", "a"), [(1.5, 1.0), (0.5, -1.0), (1.5, -1.0), (0.5, 1.0)])
def test_a_token_that_has_left_the_region_is_dropped_weighed_by_the_bound_or_taken_as_it_is(
    ratio: float, a: float
) -> None:
    """The numbers of each paper, typed by hand."""
    edge = 1.28 if ratio > 1 else 0.8
    gone = (ratio > 1) == (a > 0)
    gradients = {kind: terms(kind, [OLD + log(ratio)], [OLD], a)[1][0] for kind in SURROGATES}
    assert gradients["clipped"] == pytest.approx(0.0 if gone else ratio * a)
    assert gradients["sequence"] == pytest.approx(0.0 if gone else ratio * a)
    assert gradients["preserving"] == pytest.approx(edge * a if gone else ratio * a)
    assert gradients["cispo"] == pytest.approx(edge * a)  # clipped both ways, never dropped


def test_gppo_has_ppos_value_everywhere() -> None:
    for ratio in RATIOS:
        for a in ADVANTAGES:
            arguments = ([OLD + log(ratio)], [OLD], a)
            assert terms("preserving", *arguments)[0] == pytest.approx(terms("clipped", *arguments)[0])


@pytest.mark.parametrize("kind", ["clipped", "preserving", "cispo"])
def test_token_surrogates_do_not_look_at_the_other_tokens(kind: str) -> None:
    news, olds = [-1.0, -0.2, -3.0], [-1.4, -0.1, -2.5]
    values, gradients, _ = terms(kind, news, olds, -1.3)
    for i, (new, old) in enumerate(zip(news, olds, strict=True)):
        assert terms(kind, [new], [old], -1.3)[:2] == ([values[i]], [gradients[i]])


NEWS, OLDS = [-1.0, -0.2, -3.0, -0.7], [-1.4, -0.1, -2.5, -1.1]
"""Ratios 1.49, 0.90, 0.61, 1.49; their geometric mean is 1.051."""


def test_gspos_ratio_is_the_geometric_mean_of_the_policy_tokens_ratios() -> None:
    log_p, old = torch.tensor([NEWS, NEWS]), torch.tensor([OLDS, OLDS])
    mask = torch.tensor([[True] * 4, [True, False, False, True]])
    ratio = sequence_ratio(log_p, old, mask)
    assert ratio[0].tolist() == pytest.approx([sequence_value(NEWS, OLDS)] * 4)
    assert ratio[1, 0].item() == pytest.approx(exp(0.4))
    assert sequence_ratio(log_p, old, torch.zeros_like(mask)).tolist() == [[1.0] * 4] * 2  # no token: 1


def textbook_gspo(log_p: Tensor, olds: Tensor, a: float, clip: Clip) -> Tensor:
    """min(s A, clip(s) A), arXiv 2507.18071 eq. 5 and 7, with the gradient through s itself."""
    s = torch.exp((log_p - olds).mean())
    return torch.minimum(s * a, s.clamp(1 - clip.low, 1 + clip.high) * a)


@pytest.mark.parametrize("a", [1.0, -1.0])
@pytest.mark.parametrize("clip", [Clip(3e-4, 4e-4), CLIP])
@pytest.mark.parametrize("shift", [0.0, -0.3])
def test_gspo_under_the_sequence_mean_has_the_textbook_forms_value_and_gradient(
    a: float, clip: Clip, shift: float
) -> None:
    """Two rollouts of unlike lengths, the shorter one with SCAFFOLD between its tokens."""
    rollouts = [([new + shift for new in NEWS], OLDS), ([-0.6, -1.0], [-0.5, -1.3])]
    first = (Segment(Source.PROMPT, (1,)), Segment(Source.POLICY, (2, 3, 4, 5), tuple(OLDS)))
    second = (
        Segment(Source.PROMPT, (1,)),
        Segment(Source.POLICY, (2,), (-0.5,)),
        Segment(Source.SCAFFOLD, (8,)),
        Segment(Source.POLICY, (3,), (-1.3,)),
    )
    rows = weighted_rows(
        [TokenStream(first), TokenStream(second)],
        [Advantage(a, 0.0)] * 2,
        "sequence_mean",
        feedback_trained=False,
    )
    now = [[0.0, *rollouts[0][0]], [0.0, -0.6, -5.0, -1.0, 0.0]]
    log_p = torch.tensor(now, dtype=torch.float64, requires_grad=True)
    settings = ObjectiveSettings(surrogate=SurrogateSettings("sequence", clip))
    loss = objective_loss(log_p, collate(rows, 0, torch.float64), settings)
    loss.backward()
    expected, gradients = 0.0, []
    for news, olds in rollouts:
        variable = torch.tensor(news, dtype=torch.float64, requires_grad=True)
        value = textbook_gspo(variable, torch.tensor(olds, dtype=torch.float64), a, clip)
        value.backward()
        assert variable.grad is not None
        expected -= value.item() / 2
        gradients.append((-variable.grad / 2).tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert log_p.grad is not None
    assert log_p.grad[0, 1:].tolist() == pytest.approx(gradients[0], rel=1e-12)
    assert log_p.grad[1, [1, 3]].tolist() == pytest.approx(gradients[1], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", SURROGATES)
@pytest.mark.parametrize("a", [1.0, -1.0])
def test_absurd_ratios_stay_finite(kind: str, a: float, dtype: torch.dtype) -> None:
    for new, old in [(-1e-3, -900.0), (-900.0, -1e-3)]:
        log_p = torch.tensor([[new, new]], dtype=dtype, requires_grad=True)
        olds, mask = torch.tensor([[old, old]], dtype=dtype), torch.tensor([[True, True]])
        value = surrogate_term(log_p, olds, torch.tensor([[a]]), mask, SurrogateSettings(kind, CLIP))
        value.sum().backward()
        assert log_p.grad is not None
        assert value.isfinite().all() and log_p.grad.isfinite().all()
    assert token_ratio(torch.tensor([0.0]), torch.tensor([-900.0])).item() == pytest.approx(
        exp(MAX_LOG_RATIO), rel=1e-5
    )


@pytest.mark.parametrize(
    ("ratio", "a", "value", "slope"),
    [(1.5, 2.0, 2.56, 0.0), (1.5, -2.0, -3.0, -3.0), (0.5, 2.0, 1.0, 1.0), (0.5, -2.0, -1.6, 0.0)],
)
def test_the_closed_form_of_these_tests_is_ppos(ratio: float, a: float, value: float, slope: float) -> None:
    assert clipped(ratio, a, CLIP) == pytest.approx((value, slope))


@pytest.mark.parametrize(
    ("a", "narrow", "acts"), [(1.0, 0.03, True), (1.0, 0.06, False), (-1.0, 0.03, False)]
)
def test_gspo_counts_all_tokens_of_a_sequence_as_clipped_or_none(a: float, narrow: float, acts: bool) -> None:
    assert terms("sequence", NEWS, OLDS, a, Clip(narrow, narrow))[2] == [acts] * 4
