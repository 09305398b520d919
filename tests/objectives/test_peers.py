"""The peers' objectives against arithmetic done by hand, and what all objectives share."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scdpo_core.objectives import (
    OBJECTIVES,
    TimeBins,
    diffusion_dpo,
    diffusion_kto,
    duo,
    duo_prior,
    focus_weights,
    mapo,
    safedpo,
    safetydpo,
    sc_dpo_loss,
    winner_only,
)
from scdpo_core.types import PairErrors

LOG2 = math.log(2)
FIGURES = {"u", "implicit_accuracy", "winner_gap", "loser_gap", "margin", "dfm_spread"}
COST = torch.tensor([[-1.0, 1.0], [2.0, -2.0], [1.0, 3.0], [-1.0, -2.0], [math.nan, 1.0]])


def options_of(name: str, device: str = "cpu") -> dict[str, Any]:
    """What each objective needs beside the errors, or can take."""
    return {
        "safedpo": {"cost": COST.to(device)},
        "sc_dpo": {
            "beta": 50.0,
            "cost": COST.to(device),
            "margin": 1.0,
            "label": torch.ones(5, device=device),
        },
        "duo": {"prior": torch.zeros(5, device=device)},
    }.get(name, {})


def five_pairs(dtype: torch.dtype = torch.float64) -> PairErrors:
    reference = torch.tensor([[0.5, 0.4], [0.3, 0.6], [0.2, 0.2], [0.1, 0.3], [0.7, 0.1]], dtype=dtype)
    change = torch.tensor([[-0.01, 0.02], [0.03, 0.01], [0.0, 0.0], [0.02, -0.01], [-0.02, -0.01]]) / 10
    return PairErrors((reference + change.to(dtype)).requires_grad_(), reference)


def test_dpo_and_safetydpo_are_the_plain_loss() -> None:
    errors = five_pairs()
    expected = sc_dpo_loss(errors, beta=5000.0).per_pair
    assert torch.equal(diffusion_dpo(errors).per_pair, expected)
    assert torch.equal(safetydpo(errors).per_pair, expected)


def test_duo_by_hand() -> None:
    # beta 500, gaps 0.001 and 0.003: 500 * 0.002 = 1; -log sigmoid(1) = 0.313262.
    errors = PairErrors(torch.tensor([[0.101, 0.103]]).double(), torch.tensor([[0.1, 0.1]]).double())
    assert duo(errors).per_pair.item() == pytest.approx(0.31326169, abs=1e-6)
    # A disagreement of 0.001 everywhere: mean square 1e-6, times 1e4 * 500: 5 more.
    reference = torch.zeros(1, 4, 2, 2, dtype=torch.float64)
    prior = duo_prior(reference + 0.001, reference)
    assert prior.tolist() == pytest.approx([1e-6])
    with_prior = duo(errors, prior=prior)
    assert with_prior.per_pair.item() == pytest.approx(5.31326169, abs=1e-5)
    # The prior is a curve of the run, as it is, without its weight.
    assert float(with_prior.metrics["prior"]) == pytest.approx(1e-6) and "prior" not in duo(errors).metrics


def test_safedpo_by_hand() -> None:
    # All networks equal, so u = 0. Safe over harmful: -log sigmoid(-10) = 10.0000454.
    # Harmful over safe: turned round, the same. Both harmful: 0. Both safe: log 2. Unknown over
    # harmful: unknown counts as harmless, so 10.0000454.
    errors = PairErrors(torch.full((5, 2), 0.3), torch.full((5, 2), 0.3))
    output = safedpo(errors, cost=COST)
    assert output.per_pair.tolist() == pytest.approx([10.0000454, 10.0000454, 0.0, LOG2, 10.0000454])
    assert output.metrics["margin"].item() == pytest.approx(6.0)  # (10 + 10 + 0 + 0 + 10) / 5


def test_safedpo_turns_the_errors_round_with_the_pair() -> None:
    # Chosen harmful, rejected safe: gaps 0.02 (chosen) and 0; after turning, the loser's gap is 0.02,
    # u = -(100/2)(0 - 0.02) = 1 and the loss -log sigmoid(1 - 2) = 1.313262.
    errors = PairErrors(torch.tensor([[0.32, 0.3]]), torch.tensor([[0.3, 0.3]]))
    output = safedpo(errors, beta=100.0, cost=torch.tensor([[1.0, -1.0]]), margin=2.0)
    assert output.per_pair.item() == pytest.approx(1.31326169, abs=1e-5)
    assert output.metrics["loser_gap"].item() == pytest.approx(0.02, abs=1e-6)


def test_mapo_by_hand() -> None:
    # s = 0.5, l = (0.2, 0.4): x = 0.1 and 0.2; 0.1/(e^0.1 - 1) = 0.950833; 0.2/(e^0.2 - 1) = 0.903331;
    # T 10: logit 0.475018; -log sigmoid = 0.483581; 0.2 + 0.1 * 0.483581 = 0.248358.
    policy = torch.tensor([[0.2, 0.4]], dtype=torch.float64)
    output = mapo(PairErrors(policy, policy), timesteps=10)
    assert output.per_pair.item() == pytest.approx(0.2483581, abs=1e-6)


def test_mapo_at_its_limits() -> None:
    # phi(0) = 1 with slope -1/2 in x; phi(huge) = 0. l = (0, 1e4), T 1: logit 1, loss 0 + 0.1 * 0.313262.
    policy = torch.tensor([[0.0, 1e4]], requires_grad=True)
    loss = mapo(PairErrors(policy, policy.detach()), timesteps=1).per_pair
    assert loss.item() == pytest.approx(0.031326169)
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    # 1 - 0.1 * (1 - sigmoid(1)) * (-1/2 * s) = 1 + 0.1 * 0.268941 * 0.25 = 1.0067235
    assert gradient.tolist() == [[pytest.approx(1.0067235), 0.0]]


def test_diffusion_kto_by_hand() -> None:
    # beta 10; gains: chosen 0.2, rejected -0.1: mean 0.05 = z. Chosen: sigmoid(-1.5) = 0.182426;
    # rejected: sigmoid(-1.5) = 0.182426; mean 0.182426.
    errors = PairErrors(torch.tensor([[0.3, 0.6]]), torch.tensor([[0.5, 0.5]]))
    assert diffusion_kto(errors, beta=10.0).per_pair.item() == pytest.approx(0.1824255, abs=1e-6)
    # z = 0, w = 2 and 1: (2 sigmoid(-2) + sigmoid(-1)) / 2 = (0.238406 + 0.268941) / 2 = 0.253674.
    loss = diffusion_kto(errors, beta=10.0, desirable=2.0, reference_point=torch.tensor(0.0)).per_pair
    assert loss.item() == pytest.approx(0.2536735, abs=1e-6)


def test_winner_only_is_the_winner_term() -> None:
    errors = five_pairs()
    both = sc_dpo_loss(errors, beta=5000.0, winner=0.05).per_pair
    preference = sc_dpo_loss(errors, beta=5000.0).per_pair
    torch.testing.assert_close(winner_only(errors).per_pair, both - preference)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    errors = five_pairs()
    if name == "diffusion_kto":
        # Its reference point is detached on purpose; hold it still for the comparison.
        point = torch.tensor(0.01, dtype=torch.float64)

        def loss(policy: Tensor) -> Tensor:
            return diffusion_kto(
                PairErrors(policy, errors.reference), beta=50.0, reference_point=point
            ).per_pair
    else:

        def loss(policy: Tensor) -> Tensor:
            # A thousandth of the errors keeps beta in the thousands within reach of differences.
            scaled = PairErrors(policy / 1000, errors.reference / 1000)
            return OBJECTIVES[name](scaled, **options_of(name)).per_pair

    assert torch.autograd.gradcheck(loss, (errors.policy.detach().requires_grad_(),))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_lowers_the_winner_and_reports_the_same_figures(name: str) -> None:
    errors = five_pairs(torch.float32)
    output = OBJECTIVES[name](errors, **options_of(name))
    assert output.per_pair.shape == (5,)
    assert set(output.metrics) >= FIGURES
    assert not any(value.requires_grad or value.ndim for value in output.metrics.values())
    output.per_pair.sum().backward()
    assert errors.policy.grad is not None and errors.policy.grad.isfinite().all()
    # Pair 3 is ordered alike by all of them (both safe), so descent must lower its winner's error.
    assert errors.policy.grad[3, 0] > 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_objective_waits_for_the_device(name: str) -> None:
    # Meta tensors have no values: anything that reads one (.item(), bool(), if) raises.
    errors = PairErrors(torch.empty(5, 2, device="meta"), torch.empty(5, 2, device="meta"))
    assert OBJECTIVES[name](errors, **options_of(name, "meta")).per_pair.device.type == "meta"


def test_focus_does_not_wait_for_the_device() -> None:
    bins = TimeBins(device="meta")
    u, t = torch.empty(2, 5, device="meta")
    bins.update(u, t)
    weights = focus_weights(u, gamma=1.0, difficulty_by_time=bins, timestep_fraction=t)
    assert weights.device.type == "meta"
