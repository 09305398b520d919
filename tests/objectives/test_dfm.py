"""DFM's weights against arithmetic done by hand, and their properties."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from scdpo_core.objectives import TimeBins, focus_weights, gamma_at

EVERYTHING = (0.0, math.inf)
unhurried = settings(deadline=None)
LN3 = math.log(3)


def test_weights_by_hand() -> None:
    # 1 - p = 1/4 at u = ln 3 and 3/4 at u = -ln 3; mean 1/2; weights 1/2 and 3/2.
    assert focus_weights(torch.tensor([LN3, -LN3]), gamma=1.0).tolist() == pytest.approx([0.5, 1.5])
    # gamma 2: 1/16 and 9/16, mean 5/16: 1/5 and 9/5.
    assert focus_weights(torch.tensor([LN3, -LN3]), gamma=2.0).tolist() == pytest.approx([0.2, 1.8])


def test_clipping_by_hand() -> None:
    # One hard pair among ten: it would get 10 and the easy ones 0.
    u = torch.tensor([-20.0] + [20.0] * 9)
    assert focus_weights(u, gamma=1.0).tolist() == pytest.approx([5.0] + [0.1] * 9)


def test_gamma_0_gives_exactly_1() -> None:
    assert focus_weights(torch.tensor([1e4, -3.0, 0.1]), gamma=0.0).tolist() == [1.0, 1.0, 1.0]


def test_pairs_all_learnt_by_heart_still_get_weights() -> None:
    # 1 - sigmoid(1e4) is 0 in float32: a plain quotient would be 0 / 0.
    assert focus_weights(torch.tensor([1e4, 1e4]), gamma=1.0).tolist() == pytest.approx([1.0, 1.0])


us = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12)


@unhurried
@given(us, st.floats(0.1, 3))
def test_mean_is_1_before_clipping(values: list[float], gamma: float) -> None:
    weights = focus_weights(torch.tensor(values, dtype=torch.float64), gamma=gamma, clip=EVERYTHING)
    assert weights.mean().item() == pytest.approx(1.0)


@unhurried
@given(us, st.floats(0.1, 3))
def test_harder_pairs_never_weigh_less(values: list[float], gamma: float) -> None:
    weights = focus_weights(torch.tensor(sorted(values)), gamma=gamma)
    assert (weights.diff() <= 0).all()
    assert ((weights >= 0.1) & (weights <= 5)).all()


@unhurried
@given(us, st.integers(0, 1000))
def test_permuting_the_pairs_permutes_the_weights(values: list[float], seed: int) -> None:
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    u = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(focus_weights(u[order], gamma=1.0), focus_weights(u, gamma=1.0)[order])


def test_weights_carry_no_gradient() -> None:
    assert not focus_weights(torch.tensor([0.1, 0.2], requires_grad=True), gamma=1.0).requires_grad


def test_gamma_waits_for_a_tenth_of_the_steps() -> None:
    gammas = [gamma_at(step, 50, gamma=1.5) for step in range(50)]
    assert gammas == [0.0] * 5 + [1.5] * 45
    assert gamma_at(0, 50, gamma=1.0, warmup=0.0) == 1.0


def test_bins_divide_out_what_is_usual_at_a_timestep() -> None:
    # Early timesteps: difficulty 1/4; late ones: 3/4. A pair of each, both usual for their place: 1 and 1.
    bins = TimeBins()
    early, late = torch.tensor([0.05]), torch.tensor([0.95])
    for _ in range(3):
        bins.update(torch.tensor([LN3, -LN3]), torch.cat([early, late]))
    assert bins.log_mean(early).exp().item() == pytest.approx(0.25)
    assert bins.log_mean(late).exp().item() == pytest.approx(0.75)
    weights = focus_weights(
        torch.tensor([LN3, -LN3]),
        gamma=1.0,
        difficulty_by_time=bins,
        timestep_fraction=torch.cat([early, late]),
    )
    assert weights.tolist() == pytest.approx([1.0, 1.0])
    # Two pairs with u = 0 (1 - p = 1/2): 0.5/0.25 = 2 and 0.5/0.75 = 2/3, mean 4/3: 1.5 and 0.5.
    weights = focus_weights(
        torch.zeros(2), gamma=1.0, difficulty_by_time=bins, timestep_fraction=torch.cat([early, late])
    )
    assert weights.tolist() == pytest.approx([1.5, 0.5])


def test_running_mean_by_hand() -> None:
    # decay 1/2, first 1/4 then 3/4: total 0.5 * (0.5 * 0.25) + 0.5 * 0.75 = 0.4375, weight 0.75: mean 7/12.
    bins = TimeBins(decay=0.5)
    place = torch.tensor([0.0])
    bins.update(torch.tensor([LN3]), place)
    bins.update(torch.tensor([-LN3]), place)
    assert bins.log_mean(place).exp().item() == pytest.approx(7 / 12)
    # Two samples at once leave decay^2 = 1/4 of the past: 0.25 * 0.4375 + 0.75 * 0.5 = 0.484375,
    # weight 0.25 * 0.75 + 0.75 = 0.9375.
    bins.update(torch.tensor([LN3, -LN3]), torch.zeros(2))
    assert bins.log_mean(place).exp().item() == pytest.approx(0.484375 / 0.9375)


def test_bins_not_seen_yet_answer_with_the_mean_of_all() -> None:
    bins = TimeBins()
    assert bins.log_mean(torch.tensor([0.3, 0.9])).tolist() == pytest.approx([0.0, 0.0])
    bins.update(torch.tensor([LN3, -LN3]), torch.tensor([0.0, 1.0]))
    assert bins.log_mean(torch.tensor([0.5])).exp().item() == pytest.approx(0.5, abs=1e-4)


def test_bins_go_on_from_a_checkpoint() -> None:
    whole, first = TimeBins(), TimeBins()
    batches = [(torch.linspace(-2, 2, 5) * k, torch.linspace(0, 1, 5) / (k + 1)) for k in range(4)]
    for u, t in batches:
        whole.update(u, t)
    for u, t in batches[:2]:
        first.update(u, t)
    second = TimeBins()
    second.load_state_dict(first.state_dict())
    for u, t in batches[2:]:
        second.update(u, t)
    assert torch.equal(second.total, whole.total)
    assert torch.equal(second.weight, whole.weight)


def test_bins_without_timesteps_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="timestep_fraction"):
        focus_weights(torch.zeros(2), gamma=1.0, difficulty_by_time=TimeBins())
