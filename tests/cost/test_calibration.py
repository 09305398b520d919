from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scdpo_core.cost.calibration import (
    MIN_SCALE,
    Calibration,
    auc,
    calibrate,
    false_positive_point,
    figures,
    platt_scale,
)

# Eighths: steps that no rounding of a later line turns into ties.
costs = st.lists(st.integers(-400, 400), min_size=2, max_size=40).map(lambda row: torch.tensor(row) / 8)
rates = st.sampled_from([0.01, 0.05, 0.1, 0.3])


def test_auc_by_hand() -> None:
    # 1 > 0, 1 < 2, 3 > 0, 3 > 2: three of four
    assert auc(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0])) == 0.75
    # 1 = 1 counts one half, 1 > 0 one: 1.5 of 2
    assert auc(torch.tensor([1.0]), torch.tensor([1.0, 0.0])) == 0.75


def test_auc_needs_both_classes() -> None:
    with pytest.raises(ValueError, match="each class"):
        auc(torch.tensor([]), torch.tensor([1.0]))


@given(costs, costs)
def test_auc_is_bounded_and_antisymmetric(unsafe: torch.Tensor, safe: torch.Tensor) -> None:
    value = auc(unsafe, safe)
    assert 0 <= value <= 1
    assert value + auc(safe, unsafe) == pytest.approx(1)


@given(costs, costs)
def test_auc_is_the_share_of_pairs_in_order(unsafe: torch.Tensor, safe: torch.Tensor) -> None:
    above = (unsafe[:, None] > safe).double() + 0.5 * (unsafe[:, None] == safe).double()
    assert auc(unsafe, safe) == pytest.approx(above.mean().item())


@pytest.mark.parametrize(
    ("count", "rate", "place"),
    [
        (99, 0.01, 99),  # ceil(100 * 0.99)
        (199, 0.01, 198),  # ceil(200 * 0.99)
        (150, 0.01, 150),  # ceil(151 * 0.99 = 149.49): rounded to the safe side
        (9, 0.1, 9),  # ceil(10 * 0.9)
        (19, 0.5, 10),  # ceil(20 * 0.5)
    ],
)
def test_false_positive_point_is_an_order_statistic(count: int, rate: float, place: int) -> None:
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0)) + 1.0
    assert false_positive_point(shuffled, rate) == (place, "order statistic")


def test_false_positive_point_of_few_images() -> None:
    # mean 1, standard deviation 1, z(99 %) = 2.32635, sqrt(1 + 1/3) = 1.15470: 1 + 2.68624
    point, rule = false_positive_point(torch.tensor([0.0, 1.0, 2.0]), 0.01)
    assert (point, rule) == (pytest.approx(3.68624, abs=1e-4), "extrapolated")


def test_false_positive_point_never_lies_below_what_was_seen() -> None:
    # One far outlier among equals: mean + z s is 0.5 + 1.282 * 1.581 * 1.049 = 2.63, less than 5
    benign = torch.tensor([0.0] * 9 + [5.0])
    assert false_positive_point(benign, 0.05) == (5.0, "extrapolated")


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_false_positive_point_refuses_a_senseless_rate(rate: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        false_positive_point(torch.arange(10.0), rate)


def test_the_promise_holds_on_new_images() -> None:
    # 400 draws of 120 benign costs from a skewed distribution; the mean rate on new ones stays below 5 %.
    generator = torch.Generator().manual_seed(3)
    draws = torch.empty(400, 120).exponential_(generator=generator)
    points = torch.tensor([false_positive_point(draw, 0.05)[0] for draw in draws])
    # P(new > t) = exp(-t) for this distribution. Theory: 1 - ceil(121 * 0.95) / 121 = 6/121 = 4.96 %
    assert torch.exp(-points).mean().item() == pytest.approx(6 / 121, abs=0.004)


def test_platt_scale_by_hand() -> None:
    # One of each at +1 and -1: targets 2/3 and 1/3; sigmoid(a) = 2/3 at a = ln 2
    assert platt_scale(torch.tensor([1.0]), torch.tensor([-1.0])) == pytest.approx(math.log(2), rel=1e-6)
    # Three of each: targets 4/5 and 1/5: a = ln 4; costs twice as long: half of it
    assert platt_scale(torch.full((3,), 2.0), torch.full((3,), -2.0)) == pytest.approx(
        math.log(4) / 2, rel=1e-6
    )


def test_platt_scale_ignores_how_many_safe_images_there_are() -> None:
    few = platt_scale(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.5]))
    # The target moves from 1/4 to 1/202, so not exactly the same.
    many = platt_scale(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.5] * 100))
    assert many == pytest.approx(few, rel=0.5)


def test_platt_scale_never_turns_the_order_round() -> None:
    assert platt_scale(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0])) == MIN_SCALE


@given(costs, costs, rates)
def test_calibration_is_monotonic_and_keeps_its_rate(
    unsafe: torch.Tensor, safe: torch.Tensor, rate: float
) -> None:
    calibration = calibrate(unsafe, safe, rate)
    both = torch.cat([unsafe, safe]).double().sort().values
    calibrated = calibration(both)
    assert calibration.scale > 0
    assert bool((calibrated.diff() >= 0).all())
    assert figures(calibration(unsafe), calibration(safe)).fpr_at_zero <= rate
    assert auc(calibration(unsafe.double()), calibration(safe.double())) == pytest.approx(auc(unsafe, safe))


def test_calibrated_costs_are_log_odds() -> None:
    # Raw costs that are log-odds over 3, up to a shift: with zero at the point where both classes are
    # equally likely, calibration must find the factor 3. Logistic noise gives exactly that.
    generator = torch.Generator().manual_seed(0)
    truth = 3 * torch.randn(40000, generator=generator)
    harmful = torch.rand(40000, generator=generator) < torch.sigmoid(truth)
    raw = truth / 3
    assert platt_scale(raw[harmful], raw[~harmful]) == pytest.approx(3.0, rel=0.05)


def test_figures_by_hand() -> None:
    found = figures(torch.tensor([1.0, 2.0, -1.0, 3.0]), torch.tensor([-1.0, 0.0, 0.5, -3.0]))
    # recall 3/4; only 0.5 lies above zero: 1/4; pairs: 1, 2 and 3 beat all four, -1 beats -3 and ties -1
    assert (found.recall_at_zero, found.fpr_at_zero, found.auc) == (0.75, 0.25, 13.5 / 16)
    assert (found.unsafe, found.safe) == (4, 4)


def test_calibration_is_a_line() -> None:
    calibration = Calibration(scale=2.0, offset=1.0, target_fpr=0.01, benign=200, rule="order statistic")
    assert calibration(torch.tensor([1.0, 2.0])).tolist() == [0.0, 2.0]  # 2 (1 - 1), 2 (2 - 1)
