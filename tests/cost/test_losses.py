from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scdpo_core.cost.losses import anchoring, contrastive, regulariser, total

LN3 = math.log(3)  # sigmoid(ln 3) = 3/4, so -log sigmoid(ln 3) = ln(4/3); at -ln 3 it is 1/4 and ln 4
costs = st.lists(st.floats(-20, 20), min_size=1, max_size=6).map(torch.tensor)


def test_contrastive_of_pairs() -> None:
    # (1 + ln 3) - 1 = ln 3 -> ln(4/3);  0 - ln 3 = -ln 3 -> ln 4;  the mean
    value = contrastive(torch.tensor([1 + LN3, 0.0]), torch.tensor([1.0, LN3]))
    assert value.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, abs=1e-6)


def test_contrastive_of_all_with_all() -> None:
    # differences ln 3, 0 (unsafe ln 3) and 0, -ln 3 (unsafe 0): ln(4/3), ln 2, ln 2, ln 4
    value = contrastive(torch.tensor([LN3, 0.0])[:, None], torch.tensor([0.0, LN3]))
    assert value.item() == pytest.approx((math.log(4 / 3) + 2 * math.log(2) + math.log(4)) / 4, abs=1e-6)


def test_anchoring_weighs_both_classes_alike() -> None:
    # unsafe: ln 3 -> ln(4/3); safe: three at 0 -> ln 2 each, mean ln 2
    value = anchoring(torch.tensor([LN3]), torch.zeros(3))
    assert value.item() == pytest.approx(math.log(4 / 3) + math.log(2), abs=1e-6)


def test_total_adds_up() -> None:
    # u = ln 3, s = -ln 3: contrast at 2 ln 3 = ln 9 -> ln(10/9); anchor 2 ln(4/3); mean square (ln 3)^2
    value = total(torch.tensor([LN3]), torch.tensor([-LN3]), eta=0.5, regularisation=0.1)
    assert value.item() == pytest.approx(math.log(10 / 9) + math.log(4 / 3) + 0.1 * LN3**2, abs=1e-6)


def test_each_half_of_the_loss_alone() -> None:
    unsafe, safe = torch.tensor([LN3]), torch.tensor([-LN3])
    anchor = total(unsafe, safe, contrast=0.0, eta=1.0, regularisation=0.0)
    order = total(unsafe, safe, contrast=2.0, eta=0.0, regularisation=0.0)
    assert anchor.item() == pytest.approx(2 * math.log(4 / 3), abs=1e-6)
    assert order.item() == pytest.approx(2 * math.log(10 / 9), abs=1e-6)


def test_total_with_twins_compares_only_twins() -> None:
    unsafe, safe = torch.tensor([LN3, 0.0]), torch.tensor([5.0])
    # differences to the twins: ln 3 and ln 3
    value = total(unsafe, safe, twins=torch.tensor([0.0, -LN3]), eta=0.0, regularisation=0.0)
    assert value.item() == pytest.approx(math.log(4 / 3), abs=1e-6)


def test_regulariser() -> None:
    assert regulariser(torch.tensor([3.0, -1.0])).item() == 5.0  # (9 + 1) / 2


@given(costs, costs, st.floats(-5, 5))
def test_only_anchoring_sees_a_shift(unsafe: torch.Tensor, safe: torch.Tensor, shift: float) -> None:
    before = contrastive(unsafe[:, None], safe)
    after = contrastive((unsafe + shift)[:, None], safe + shift)
    assert after.item() == pytest.approx(before.item(), rel=1e-4, abs=1e-4)
    # d/dshift of the anchoring is mean sigmoid(C safe) - mean sigmoid(-C unsafe), hardly ever zero
    level = torch.tensor(0.0, requires_grad=True)
    torch.autograd.backward(anchoring(unsafe + level, safe + level))
    expected = torch.sigmoid(safe).mean() - torch.sigmoid(-unsafe).mean()
    assert level.grad is not None
    assert level.grad.item() == pytest.approx(expected.item(), abs=1e-5)


@given(costs, costs)
def test_losses_are_positive_and_finite(unsafe: torch.Tensor, safe: torch.Tensor) -> None:
    assert 0 <= total(unsafe, safe).item() < math.inf


def test_gradient_at_the_start() -> None:
    # All costs 0: contrast pulls each way with 1/2, each anchor with 1/2.
    unsafe, safe = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    torch.autograd.backward(total(unsafe, safe, eta=1.0))
    assert unsafe.grad is not None and safe.grad is not None
    assert (unsafe.grad.item(), safe.grad.item()) == pytest.approx((-1.0, 1.0))
