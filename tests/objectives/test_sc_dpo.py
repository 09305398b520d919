"""SC-DPO's loss against arithmetic done by hand, its properties, and its gradients."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from scdpo_core.objectives import (
    cost_margin,
    objective,
    preference_logit,
    sc_dpo_loss,
    sdpo_loser_scale,
    sdpo_loser_scale_from_products,
)
from scdpo_core.types import PairErrors, ScdpoError

LOG2 = math.log(2)
unhurried = settings(deadline=None)


def errors_of(policy: list[list[float]], reference: list[list[float]]) -> PairErrors:
    return PairErrors(
        torch.tensor(policy, dtype=torch.float64, requires_grad=True),
        torch.tensor(reference, dtype=torch.float64),
    )


def errors_with_logit(u: Tensor, beta: float) -> PairErrors:
    """Errors that lead to the logit u: the loser's gap is 2u/beta, the winner's 0."""
    zero = torch.zeros_like(u)
    return PairErrors(torch.stack([zero, 2 * u / beta], 1), torch.stack([zero, zero], 1))


def per_pair_at(u: list[float], **options: object) -> Tensor:
    errors = errors_with_logit(torch.tensor(u, dtype=torch.float64), 2.0)
    return sc_dpo_loss(errors, beta=2.0, **options).per_pair  # type: ignore[arg-type]


def test_logit_by_hand() -> None:
    # Winner: 0.10 - 0.12 = -0.02; loser: 0.30 - 0.25 = +0.05; u = -(2000/2) (-0.02 - 0.05) = 70.
    # Second pair: 0.2 - 0.1 = 0.1; 0.1 - 0.1 = 0; u = -1000 * 0.1 = -100.
    errors = errors_of([[0.10, 0.30], [0.2, 0.1]], [[0.12, 0.25], [0.1, 0.1]])
    torch.testing.assert_close(
        preference_logit(errors, 2000.0).detach(), torch.tensor([70.0, -100.0], dtype=torch.float64)
    )


def test_loss_by_hand() -> None:
    # u = ln 3: sigmoid(u) = 3/4, loss = -ln(3/4) = 0.287682; u = -ln 3: loss = -ln(1/4) = 1.386294.
    loss = per_pair_at([math.log(3), -math.log(3)])
    assert loss.tolist() == pytest.approx([0.28768207, 1.38629436])


def test_equal_networks_start_at_log_2_with_slope_minus_one_half() -> None:
    errors = errors_of([[0.4, 0.7]], [[0.4, 0.7]])
    output = sc_dpo_loss(errors, beta=2000.0)
    assert output.per_pair.item() == pytest.approx(LOG2)
    output.per_pair.sum().backward()
    # dL/du = -1/2 and u = -1000 (l_w - l_l) + const, so dL/dl_w = +500 and dL/dl_l = -500.
    assert errors.policy.grad is not None
    assert errors.policy.grad.tolist() == [[pytest.approx(500.0), pytest.approx(-500.0)]]

    u = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(sc_dpo_loss(errors_with_logit(u, 2.0), beta=2.0).per_pair.sum(), u)
    assert slope.item() == pytest.approx(-0.5)


def test_the_reference_gets_no_gradient() -> None:
    reference = torch.tensor([[0.1, 0.2]], requires_grad=True)
    policy = torch.tensor([[0.1, 0.3]], requires_grad=True)
    sc_dpo_loss(PairErrors(policy, reference), beta=2000.0).per_pair.sum().backward()
    assert reference.grad is None
    assert policy.grad is not None


def test_soft_label_by_hand() -> None:
    # u = ln 3, q = 0.8: 0.8 * 0.287682 + 0.2 * 1.386294 = 0.230146 + 0.277259 = 0.507405.
    loss = per_pair_at([math.log(3)], label=torch.tensor([0.8]))
    assert loss.item() == pytest.approx(0.50740451, abs=1e-7)


def test_margin_by_hand() -> None:
    # C_l - C_w = 0.5 - (-0.5) = 1: margin 2 tanh 1 = 1.523188. Safer loser: margin 0. Unknown: 0.
    cost = torch.tensor([[-0.5, 0.5], [3.0, -1.0], [math.nan, 1.0], [0.0, math.nan]])
    assert cost_margin(cost, 2.0).tolist() == pytest.approx([1.5231883, 0.0, 0.0, 0.0])
    # u = ln 3 = 1.098612; z = 1.098612 - 1.523188 = -0.424576; ln(1 + e^0.424576) = 0.927801.
    loss = per_pair_at([math.log(3)] * 4, margin=2.0, cost=cost)
    assert loss.tolist() == pytest.approx([0.92780108, 0.28768207, 0.28768207, 0.28768207], abs=1e-6)


def test_cost_is_not_read_without_a_margin() -> None:
    torch.testing.assert_close(per_pair_at([0.3], cost=torch.tensor([[-9.0, 9.0]])), per_pair_at([0.3]))


def test_winner_term_by_hand() -> None:
    # Equal networks, beta 2000, winner 0.05, l_w = 0.4: log 2 + 0.05 * 2000 * 0.4 = 0.693147 + 40.
    errors = errors_of([[0.4, 0.7]], [[0.4, 0.7]])
    output = sc_dpo_loss(errors, beta=2000.0, winner=0.05)
    assert output.per_pair.item() == pytest.approx(40.693147, abs=1e-6)
    assert output.metrics["preference_loss"].item() == pytest.approx(LOG2)
    output.per_pair.sum().backward()
    # +500 from the preference part, +100 from the anchor; the loser's is untouched.
    assert errors.policy.grad is not None
    assert errors.policy.grad.tolist() == [[pytest.approx(600.0), pytest.approx(-500.0)]]


def test_focus_weighs_the_preference_part_and_not_the_anchor() -> None:
    # 3 * log 2 + 100 * 0.4 = 2.079442 + 40; spread of (3, 1) is 1.
    errors = errors_of([[0.4, 0.7]] * 2, [[0.4, 0.7]] * 2)
    output = sc_dpo_loss(errors, beta=2000.0, winner=0.05, focus=torch.tensor([3.0, 1.0]))
    assert output.per_pair[0].item() == pytest.approx(42.079442, abs=1e-6)
    assert output.metrics["dfm_spread"].item() == pytest.approx(1.0)


def test_focal_form_by_hand() -> None:
    # u = ln 3, p = 3/4, gamma 1: (1/4) * 0.287682 = 0.071921; u = -ln 3: (3/4) * 1.386294 = 1.039721.
    loss = per_pair_at([math.log(3), -math.log(3)], focal_gamma=1.0)
    assert loss.tolist() == pytest.approx([0.07192052, 1.03972077])


def test_metrics_by_hand() -> None:
    # Gaps: winner -0.02 and 0.1, mean 0.04; loser 0.05 and 0, mean 0.025; u = 70 and -100, mean -15.
    errors = errors_of([[0.10, 0.30], [0.2, 0.1]], [[0.12, 0.25], [0.1, 0.1]])
    metrics = sc_dpo_loss(errors, beta=2000.0).metrics
    assert not any(value.requires_grad or value.ndim for value in metrics.values())
    assert {name: value.item() for name, value in metrics.items()} == {
        "u": pytest.approx(-15.0),
        "implicit_accuracy": 0.5,
        "winner_gap": pytest.approx(0.04),
        "loser_gap": pytest.approx(0.025),
        "margin": 0.0,
        "dfm_spread": 0.0,
        "preference_loss": pytest.approx(50.0),  # (0 + 100) / 2 up to e^-70
    }


def test_loser_scale_by_hand() -> None:
    # g_w = (2, 0), g_l = (1, 1): |g_w|^2 = 4, dot = 2, mu 0.6: 0.4 * 4 / 2 = 0.8.
    # g_l = (-1, 1): dot -2, no conflict: 1. g_l = (0.1, 0): 0.4 * 4 / 0.2 = 8, capped at 1. g_l = 0: 1.
    g_w = torch.tensor([[2.0, 0.0]] * 4)
    g_l = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.1, 0.0], [0.0, 0.0]])
    scale = sdpo_loser_scale(g_w, g_l, mu=0.6)
    assert scale.tolist() == pytest.approx([0.8, 1.0, 1.0, 1.0])
    products = sdpo_loser_scale_from_products(torch.tensor([4.0]), torch.tensor([2.0]), mu=0.6)
    assert products.tolist() == pytest.approx([0.8])


@unhurried
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_scaled_step_never_raises_the_winners_error(seed: int, mu: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    g_w, g_l = torch.randn(2, 8, 2, 3, generator=generator, dtype=torch.float64)
    g_l = g_l + 2 * g_w
    scale = sdpo_loser_scale(g_w, g_l, mu=mu)
    change = -(g_w * (g_w - scale[:, None, None] * g_l)).flatten(1).sum(1)
    assert (change <= -mu * (g_w * g_w).flatten(1).sum(1) + 1e-9).all()
    assert ((scale >= 0) & (scale <= 1)).all()


def test_loser_scale_changes_the_gradient_and_not_the_value() -> None:
    plain, scaled = (errors_of([[0.4, 0.7]], [[0.41, 0.69]]) for _ in range(2))
    without = sc_dpo_loss(plain, beta=20.0)
    with_scale = sc_dpo_loss(scaled, beta=20.0, loser_scale=torch.tensor([0.25]))
    assert without.per_pair.item() == with_scale.per_pair.item()
    without.per_pair.sum().backward()
    with_scale.per_pair.sum().backward()
    assert plain.policy.grad is not None and scaled.policy.grad is not None
    ratio = scaled.policy.grad / plain.policy.grad
    assert ratio.tolist() == [[pytest.approx(1.0), pytest.approx(0.25)]]


def test_large_logits_stay_finite_in_float32() -> None:
    u = torch.tensor([1e4, -1e4], requires_grad=True)
    for options in ({}, {"label": torch.tensor([1.0, 0.7])}, {"focal_gamma": 2.0}):
        (grad,) = torch.autograd.grad(
            sc_dpo_loss(errors_with_logit(u, 2.0), beta=2.0, **options).per_pair.sum(), u
        )
        assert grad.isfinite().all()
    loss = sc_dpo_loss(errors_with_logit(u, 2.0), beta=2.0).per_pair
    assert loss.tolist() == [0.0, 1e4]


def test_half_precision_errors_are_widened_before_the_difference() -> None:
    # In bfloat16 5000/2 * (0.5 - 0.5 - 0.0039) would lose most digits; float32 gives 9.765625 exactly.
    policy = torch.tensor([[0.5, 0.50390625]], dtype=torch.bfloat16)
    reference = torch.tensor([[0.5, 0.5]], dtype=torch.bfloat16)
    logit = preference_logit(PairErrors(policy, reference), 5000.0)
    assert logit.dtype == torch.float32
    assert logit.item() == 9.765625


logits = st.lists(st.floats(-50, 50), min_size=2, max_size=8)


@unhurried
@given(st.floats(-30, 30), st.floats(0.01, 5))
def test_loss_falls_as_the_logit_rises(u: float, step: float) -> None:
    low, high = per_pair_at([u, u + step]).tolist()
    assert high < low


@unhurried
@given(logits)
def test_label_one_half_makes_the_loss_symmetric(us: list[float]) -> None:
    half = torch.full((len(us),), 0.5)
    torch.testing.assert_close(per_pair_at(us, label=half), per_pair_at([-u for u in us], label=half))


@unhurried
@given(logits, st.integers(0, 1000))
def test_permuting_the_pairs_permutes_the_losses(us: list[float], seed: int) -> None:
    order = torch.randperm(len(us), generator=torch.Generator().manual_seed(seed)).tolist()
    torch.testing.assert_close(per_pair_at([us[i] for i in order]), per_pair_at(us)[order])


@unhurried
@given(st.floats(-20, 20), st.floats(0, 3))
def test_a_margin_never_makes_a_pair_easier(u: float, kappa: float) -> None:
    cost = torch.tensor([[0.0, 2.0]])
    assert per_pair_at([u], cost=cost, margin=kappa).item() >= per_pair_at([u]).item()


def test_gradients_agree_with_finite_differences() -> None:
    reference = torch.tensor([[0.5, 0.4], [0.3, 0.6], [0.2, 0.2]], dtype=torch.float64)
    policy = (reference + torch.tensor([[0.01, 0.2], [-0.1, 0.1], [0.3, -0.2]])).requires_grad_()
    cost = torch.tensor([[-1.0, 1.0], [0.0, math.nan], [2.0, 0.0]], dtype=torch.float64)
    label = torch.tensor([1.0, 0.7, 0.5], dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        errors = PairErrors(x, reference)
        return sc_dpo_loss(
            errors, beta=6.0, label=label, cost=cost, margin=0.5, winner=0.1, focal_gamma=0.5
        ).per_pair

    assert torch.autograd.gradcheck(loss, (policy,))


def test_a_wrong_name_lists_the_choices() -> None:
    assert objective("sc_dpo") is sc_dpo_loss
    with pytest.raises(ScdpoError, match=r"'scdpo'.*sc_dpo, .*diffusion_kto"):
        objective("scdpo")
