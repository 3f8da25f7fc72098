"""The coefficient on FEEDBACK tokens: autograd against the closed form of W = dC / dlog p.

For every coefficient, both signs of A, certain and all but impossible tokens, every precision. Three tests
each make one defect of the prototype impossible.
"""

from collections.abc import Callable
from math import exp, log

import pytest
import torch

from aipo.core.advantages import Advantage
from aipo.core.batch import collate, weighted_rows
from aipo.core.coefficients import COEFFICIENTS, feedback_term
from aipo.core.feedback import CoefficientSettings
from aipo.core.objective import ObjectiveSettings, objective_loss
from aipo.core.surrogates import Clip
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Source

FLOOR, SHAPE = 0.13, 0.07
LOG_PS = [0.0, -1e-6, -1.0, -20.0, -80.0]
ADVANTAGES = [1.0, -1.0, 0.37, -2.5]
FLOATS = [torch.float64, torch.float32]
TRAINING = [kind for kind in COEFFICIENTS if kind != "masked"]


def floored(p: float, a: float) -> float:
    return max(p, FLOOR) if a > 0 else p


def inside(p: float, a: float) -> bool:
    """Whether PPO's clip leaves a ratio of p / 1 its gradient: too small a ratio stays if A > 0."""
    return a > 0 or p >= 0.8


VALUES: dict[str, Callable[[float, float], float]] = {
    "masked": lambda p, a: 0.0,
    "ratio": lambda p, a: p if inside(p, a) else 0.8,
    "agent": lambda p, a: p,
    "unit": lambda p, a: p,
    "shaped": lambda p, a: p / (p + SHAPE),
    "attenuated": lambda p, a: p / max(p, FLOOR),
    "stopgrad": lambda p, a: floored(p, a) * log(p),
    "floored": lambda p, a: floored(p, a),
    "likelihood": lambda p, a: log(p),
}
"""C, from the table of docs/method.md#coefficients; p_old = 1 for `ratio`, q = 1 for `agent`."""

WEIGHTS: dict[str, Callable[[float, float], float]] = {
    "masked": lambda p, a: 0.0,
    "ratio": lambda p, a: p if inside(p, a) else 0.0,
    "agent": lambda p, a: p,
    "unit": lambda p, a: p,
    "shaped": lambda p, a: SHAPE * p / (p + SHAPE) ** 2,
    "attenuated": lambda p, a: min(1.0, p / FLOOR),
    "stopgrad": floored,
    "floored": floored,
    "likelihood": lambda p, a: 1.0,
}
"""W = dC / dlog p, from the same table."""

ROUNDING = {"shaped": 4.0}
"""sigmoid(log p - log g) rounds its argument, and so its value by a factor."""


def term(
    kind: str, log_p: float, a: float, dtype: torch.dtype = torch.float64, log_p_old: float = 0.0
) -> tuple[float, float]:
    """Return C A and its derivative with respect to log p."""
    variable = torch.tensor([[log_p]], dtype=dtype, requires_grad=True)
    old, advantage = torch.tensor([[log_p_old]], dtype=dtype), torch.tensor([[a]], dtype=dtype)
    value = feedback_term(
        variable,
        old,
        advantage,
        CoefficientSettings(kind=kind, floor=FLOOR, shape=SHAPE, clip=Clip(0.2, 0.28)),
    )
    if value.requires_grad:
        value.sum().backward()
    gradient = 0.0 if variable.grad is None else variable.grad.item()
    return value.item(), gradient


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("a", ADVANTAGES)
@pytest.mark.parametrize("log_p", LOG_PS)
@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_value_and_gradient_are_those_of_the_closed_form(
    kind: str, log_p: float, a: float, dtype: torch.dtype
) -> None:
    p = exp(torch.tensor(log_p, dtype=dtype).item())
    value, gradient = term(kind, log_p, a, dtype)
    # Relative: at p = e^-80 an absolute error of 1e-6 would prove nothing.
    rel = (1e-9 if dtype is torch.float64 else 1e-6) * ROUNDING.get(kind, 1.0)
    assert value == pytest.approx(VALUES[kind](p, a) * a, rel=rel, abs=1e-45)
    assert gradient == pytest.approx(WEIGHTS[kind](p, a) * a, rel=rel, abs=1e-45)


@pytest.mark.parametrize("a", ADVANTAGES)
@pytest.mark.parametrize("log_p", LOG_PS)
@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_half_precision_stays_finite_and_close(kind: str, log_p: float, a: float) -> None:
    p = exp(torch.tensor(log_p, dtype=torch.bfloat16).item())
    value, gradient = term(kind, log_p, a, torch.bfloat16)
    rel = 0.02
    if kind == "shaped":  # log p - log g is itself rounded to 8 bits: a factor of e^0.3 at -80
        rel += exp(2**-8 * abs(log_p)) - 1
    assert value == pytest.approx(VALUES[kind](p, a) * a, rel=rel, abs=1e-35)
    assert gradient == pytest.approx(WEIGHTS[kind](p, a) * a, rel=rel, abs=1e-35)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16], ids=str)
@pytest.mark.parametrize("log_p", [*LOG_PS, -700.0])
@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_no_advantage_gives_no_value_and_no_gradient(kind: str, log_p: float, dtype: torch.dtype) -> None:
    assert term(kind, log_p, 0.0, dtype) == (0.0, 0.0)


@pytest.mark.parametrize("a", [1.0, -1.0])
@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_a_probability_that_underflows_leaves_everything_finite(kind: str, a: float) -> None:
    weight = {"likelihood": 1.0}.get(kind, 0.0)
    if kind in ("floored", "stopgrad") and a > 0:
        weight = FLOOR
    value, gradient = term(kind, -700.0, a, torch.float32)
    assert abs(value) <= 700.0
    assert gradient == pytest.approx(weight * a, rel=1e-6)


READ_OLD = ("ratio", "agent")


@pytest.mark.parametrize("kind", [kind for kind in COEFFICIENTS if kind not in READ_OLD])
def test_only_ratio_and_agent_read_the_other_probability(kind: str) -> None:
    assert term(kind, -1.0, 1.0, log_p_old=-7.0) == term(kind, -1.0, 1.0)
    assert not ObjectiveSettings(coefficient=CoefficientSettings(kind=kind)).needs_old_feedback_log_p


def test_ratio_needs_the_old_probability() -> None:
    assert term("ratio", -1.0, 1.0, log_p_old=-0.9) != term("ratio", -1.0, 1.0)
    settings = ObjectiveSettings(coefficient=CoefficientSettings(kind="ratio"))
    assert settings.needs_old_feedback_log_p


@pytest.mark.parametrize("a", [1.0, -1.0])
@pytest.mark.parametrize(
    ("log_p", "log_q", "weight"),
    [
        (-3.0, -3.0, 1.0),
        (-3.0, -2.0, exp(-1.0)),
        (-3.0, -3.5, exp(0.5)),
        (-3.0, -4.0, 2.0),
        (-80.0, 0.0, exp(-80.0)),
    ],
)
def test_agent_weighs_with_p_over_q_truncated_and_never_stops_the_gradient(
    log_p: float, log_q: float, weight: float, a: float
) -> None:
    value, gradient = term("agent", log_p, a, log_p_old=log_q)
    assert value == pytest.approx(weight * a, rel=1e-9)
    assert gradient == pytest.approx(weight * a, rel=1e-9)
    settings = ObjectiveSettings(coefficient=CoefficientSettings(kind="agent"))
    assert not settings.needs_old_feedback_log_p  # the agent reports q, no forward pass can


@pytest.mark.parametrize("kind", [kind for kind in COEFFICIENTS if kind != "masked"])
def test_signed_unit_weighs_what_did_not_help_with_p_and_leaves_the_rest_alone(kind: str) -> None:
    settings = CoefficientSettings(kind=kind, floor=FLOOR, shape=SHAPE, unit_below_zero=True)
    log_p = torch.tensor([-1.0, -6.0, -1.0], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([2.0, -2.0, 0.0], dtype=torch.float64)
    total = feedback_term(log_p, torch.zeros(3, dtype=torch.float64), advantage, settings).sum()
    (gradient,) = torch.autograd.grad(total, log_p)
    helped = 2.0 * WEIGHTS[kind](exp(-1.0), 1.0)
    assert gradient.tolist() == pytest.approx([helped, -2.0 * exp(-6.0), 0.0], rel=1e-6)


CLIP_SIDES = [
    # ratio, A, whether the gradient survives
    (1.5, 1.0, False),
    (1.5, -1.0, True),
    (0.5, 1.0, True),
    (0.5, -1.0, False),
    (1.27, 1.0, True),
    (1.29, 1.0, False),
    (0.81, -1.0, True),
    (0.79, -1.0, False),
]


@pytest.mark.parametrize(("ratio", "a", "survives"), CLIP_SIDES)
def test_ratio_is_clipped_on_both_sides_where_the_step_would_go_further_out(
    ratio: float, a: float, survives: bool
) -> None:
    edge = 1.28 if ratio > 1 else 0.8
    value, gradient = term("ratio", -3.0 + log(ratio), a, log_p_old=-3.0)
    assert value == pytest.approx(a * (ratio if survives else edge), rel=1e-6)
    assert gradient == pytest.approx(a * ratio if survives else 0.0, rel=1e-6)


def feedback_gradient(kind: str, advantage: Advantage) -> list[float]:
    """Return dJ / dlog p, times N, of a stream with p = e^-1, e^-6 on its two FEEDBACK tokens."""
    told = (
        Segment(Source.PROMPT, (1,)),
        Segment(Source.POLICY, (2,), (-1.0,)),
        Segment(Source.FEEDBACK, (3, 4)),
    )
    settings = ObjectiveSettings(coefficient=CoefficientSettings(kind=kind, floor=FLOOR, shape=SHAPE))
    rows = weighted_rows(
        [TokenStream(told)], [advantage], "token_mean", feedback_trained=settings.feedback_trained
    )
    log_p = torch.tensor([[0.0, -1.0, -1.0, -6.0]], requires_grad=True)
    objective_loss(log_p, collate(rows, 0), settings).backward()
    assert log_p.grad is not None
    return [-g / rows[0].weight for g in log_p.grad[0, 2:].tolist()]


@pytest.mark.parametrize("kind", TRAINING)
def test_defect_1_feedback_tokens_are_trained_by_the_loss_that_is_meant_for_them(kind: str) -> None:
    """The prototype masked FEEDBACK tokens out of the very loss that should have trained them."""
    gradient = feedback_gradient(kind, Advantage(policy=0.0, feedback=1.0))
    assert gradient == pytest.approx([WEIGHTS[kind](exp(-1.0), 1.0), WEIGHTS[kind](exp(-6.0), 1.0)], rel=1e-5)
    assert min(gradient) > 0


@pytest.mark.parametrize("kind", ["floored", "stopgrad"])
def test_defect_2_the_floor_lifts_what_helped_and_never_what_did_not(kind: str) -> None:
    """The prototype's floor acts for A < 0 only."""
    assert term(kind, -6.0, 1.0)[1] == pytest.approx(FLOOR)
    assert term(kind, -6.0, -1.0)[1] == pytest.approx(-exp(-6.0))
    assert feedback_gradient(kind, Advantage(0.0, 2.0))[1] == pytest.approx(2 * FLOOR)
    assert feedback_gradient(kind, Advantage(0.0, -2.0))[1] == pytest.approx(-2 * exp(-6.0))


@pytest.mark.parametrize("log_p", [-3.0, -6.0, -80.0])
@pytest.mark.parametrize("kind", ["floored", "stopgrad"])
def test_defect_3_below_the_floor_the_gradient_is_the_floor_and_not_zero(kind: str, log_p: float) -> None:
    """clamp(p, min=d) has the same value as `floored` and no gradient below d."""
    variable = torch.tensor([log_p], dtype=torch.float64, requires_grad=True)
    plain = variable.exp().clamp(min=FLOOR).sum()
    plain.backward()
    assert variable.grad is not None
    assert variable.grad.item() == 0.0  # what the prototype did
    assert term("floored", log_p, 1.0)[0] == pytest.approx(plain.item())
    assert term(kind, log_p, 1.0)[1] == pytest.approx(FLOOR)


@pytest.mark.parametrize("a", ADVANTAGES)
@pytest.mark.parametrize("log_p", LOG_PS)
def test_stopgrad_and_floored_have_the_same_gradient(log_p: float, a: float) -> None:
    assert term("stopgrad", log_p, a)[1] == pytest.approx(term("floored", log_p, a)[1], rel=1e-12)


@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_only_masked_and_no_weight_leave_feedback_out_of_the_trained_tokens(kind: str) -> None:
    coefficient = CoefficientSettings(kind=kind)
    trained = kind != "masked"
    assert ObjectiveSettings(coefficient=coefficient).feedback_trained is trained
    assert not ObjectiveSettings(coefficient=coefficient, feedback_weight=0.0).feedback_trained
