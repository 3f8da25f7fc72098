"""KL to a reference and entropy: closed forms, and the tokens and rows on which their terms act."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aipo.core.advantages import Advantage
from aipo.core.batch import TokenBatch, collate
from aipo.core.divergence import KL_ESTIMATORS, divergence, entropy_of, k3
from aipo.core.objective import ObjectiveSettings, objective_loss, objective_sums
from aipo.core.types import Source
from support.updates import UNEVEN_ROWS

LOGARITHMS = st.lists(st.floats(-30.0, 3.0), min_size=2, max_size=6)


@given(LOGARITHMS, st.data())
def test_a_divergence_is_at_least_0_and_an_entropy_at_most_that_of_chance(
    drawn: list[float], data: st.DataObject
) -> None:
    other = data.draw(st.lists(st.floats(-30.0, 3.0), min_size=len(drawn), max_size=len(drawn)))
    p, q = (torch.log_softmax(torch.tensor(of, dtype=torch.float64), -1) for of in (drawn, other))
    assert divergence(p, q) >= -1e-12 and divergence(p, p) == 0
    assert -1e-12 <= entropy_of(p) <= torch.tensor(float(len(drawn))).log() + 1e-6
    assert (k3(p, q) >= 0).all() and not k3(p, p).any() and torch.isfinite(k3(p, p + 1e4)).all()
    # the mean of k3 over what p samples is the divergence
    mean = (p.exp() * k3(p, q)).sum() if (q - p).max() < 20 else divergence(p, q)
    assert float(mean) == pytest.approx(float(divergence(p, q)), rel=1e-6, abs=1e-9)


def test_the_gradients_of_divergence_and_entropy_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    p, q = torch.log_softmax(torch.randn(2, 4, 5, dtype=torch.float64), -1)
    assert torch.autograd.gradcheck(lambda x: divergence(x, q), p.clone().requires_grad_())
    assert torch.autograd.gradcheck(entropy_of, p.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda x: k3(x, q), p.clone().requires_grad_())


def test_the_estimators_by_their_names_are_k3_and_the_divergence() -> None:
    found = {name: (one.term, one.over_vocabulary) for name, one in KL_ESTIMATORS.items()}
    assert found == {"k3": (k3, False), "exact": (divergence, True)}


HELD = ObjectiveSettings(kl_weight=0.7, kl_estimator="exact", entropy_weight=0.3)


def batch_of_rows() -> tuple[torch.Tensor, TokenBatch]:
    """Log p, and rows of POLICY and FEEDBACK tokens with any entropy and KL."""
    torch.manual_seed(0)
    batch = collate(UNEVEN_ROWS, 0)
    entropy, kl, log_p = torch.rand(3, *batch.ids.shape)
    return -log_p, replace(batch, entropy=entropy.requires_grad_(), kl_reference=kl.requires_grad_())


def test_kl_and_entropy_act_on_policy_tokens_of_all_rows_and_on_no_others() -> None:
    log_p, batch = batch_of_rows()
    base = objective_loss(log_p, batch, ObjectiveSettings())
    loss = objective_loss(log_p, batch, HELD)
    assert batch.entropy is not None and batch.kl_reference is not None
    expected = (batch.weight * batch.policy_mask * (0.7 * batch.kl_reference - 0.3 * batch.entropy)).sum()
    assert loss.item() == pytest.approx((base + expected).item(), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    at_policy = batch.weight * (batch.sources == Source.POLICY)
    assert at_policy[[not row.advantage.policy for row in UNEVEN_ROWS]].any()
    torch.testing.assert_close(batch.kl_reference.grad, 0.7 * at_policy)
    torch.testing.assert_close(batch.entropy.grad, -0.3 * at_policy)


@pytest.mark.parametrize("name", ["kl_weight", "entropy_weight"])
def test_each_of_them_teaches_rows_without_an_advantage_but_none_without_policy_tokens(name: str) -> None:
    settings, log_p, batch = replace(ObjectiveSettings(), **{name: 0.1}), *batch_of_rows()
    row = replace(UNEVEN_ROWS[0], advantage=Advantage(0.0, 0.0))
    assert settings.teaches(row) and not ObjectiveSettings().teaches(row)
    only_feedback = replace(row, stream=type(row.stream)((row.stream.segments[0], row.stream.segments[2])))
    assert not settings.teaches(only_feedback)
    with pytest.raises(ValueError, match="which the trainer did not compute"):
        objective_loss(log_p, replace(batch, entropy=None, kl_reference=None), settings)


def test_the_distance_is_summed_over_policy_tokens_for_the_record_where_there_is_one() -> None:
    log_p, batch = batch_of_rows()
    assert batch.kl_reference is not None
    found = objective_sums(log_p, batch, HELD)["kl_reference"]
    assert found == pytest.approx((batch.kl_reference * batch.policy_mask).sum().item(), rel=1e-5)
    assert "kl_reference" not in objective_sums(log_p, replace(batch, kl_reference=None), HELD)
    assert HELD.kl is KL_ESTIMATORS["exact"] and ObjectiveSettings().kl is None
    assert ObjectiveSettings(kl_weight=0.1).kl is KL_ESTIMATORS["k3"]
    assert ObjectiveSettings(entropy_weight=0.1).kl is None
