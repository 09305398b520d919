"""The single-image terms: hand-worked numbers, and what must hold whatever the network answers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scdpo_core.families.parameterisation import (
    PARAMETERISATIONS,
    MinSnr,
    Parameterisation,
    image_scale,
)
from scdpo_core.objectives import terms

SHAPE = (1, 1, 1, 2)


def _row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(SHAPE)


def test_a_mixture_of_a_quarter() -> None:
    mixed = terms.mixture(_row(1.0, 0.0), _row(5.0, 8.0), torch.tensor([0.25]))
    assert mixed.flatten().tolist() == [2.0, 2.0]  # 0.25 * 5 + 0.75 * 1, 0.25 * 8
    assert torch.equal(terms.mixture(_row(1.0, 0.0), _row(5.0, 8.0), torch.tensor([1.0])), _row(5.0, 8.0))


def test_redirect_by_hand() -> None:
    assert terms.redirect(_row(3.0, 1.0)).item() == 5.0  # (9 + 1) / 2


def test_redirect_with_a_mask_looks_inside_and_keeps_outside() -> None:
    mask = torch.tensor([1.0, 0.0]).view(SHAPE)
    loss = terms.redirect(_row(3.0, 100.0), policy=_row(7.0, 2.0), reference=_row(0.0, 5.0), mask=mask)
    assert loss.item() == pytest.approx(9.0 + 9.0)  # 3^2 inside; (2 - 5)^2 outside


def test_a_mask_that_covers_nothing_asks_nothing() -> None:
    assert terms.mean_square(_row(3.0, 1.0), torch.zeros(SHAPE)).item() == 0.0


def test_keep_by_hand_and_without_a_gradient_to_the_reference() -> None:
    policy, reference = _row(1.0, 3.0).requires_grad_(), _row(0.0, 1.0).requires_grad_()
    loss = terms.keep(policy, reference)
    assert loss.item() == 2.5  # (1 + 4) / 2
    loss.sum().backward()
    assert policy.grad is not None and policy.grad.flatten().tolist() == [1.0, 2.0]  # 2 * difference / 2
    assert reference.grad is None


def test_distil_is_keep_towards_the_safe_answer() -> None:
    assert terms.distil(_row(1.0, 1.0), _row(1.0, 3.0)).item() == 2.0


def test_esd_by_hand() -> None:
    # target = empty - eta (reference - empty) = 1 - 0.5 (3 - 1) = 0, and 0 - 0.5 (2 - 0) = -1
    loss = terms.esd(_row(2.0, 0.0), _row(1.0, 0.0), _row(3.0, 2.0), eta=0.5)
    assert loss.item() == 2.5  # (4 + 1) / 2


def test_gem_by_hand() -> None:
    policy, safe, harmful = _row(0.0, 0.0), _row(3.0, 3.0), _row(1.0, 1.0)
    assert terms.gem(policy, safe, harmful, eta=1.0).item() == pytest.approx(2.0)  # 3 - 1
    assert terms.gem(policy, safe, harmful, eta=4.0).item() == 0.0  # 3 - 4 is below 0
    assert terms.gem(policy, harmful, safe, eta=1.0).item() == 0.0  # already nearer to the safe answer


def test_gem_has_a_slope_where_training_begins() -> None:
    policy = _row(1.0, 1.0).requires_grad_()
    terms.gem(policy, _row(3.0, 3.0), _row(1.0, 1.0)).sum().backward()
    assert policy.grad is not None and bool(policy.grad.isfinite().all()) and bool(policy.grad.any())


LEVELS = {"epsilon": (0.9, 0.5, 0.1), "v_prediction": (0.9, 0.5, 0.0), "flow": (0.05, 0.5, 1.0)}
CASES = [(name, level) for name, levels in LEVELS.items() for level in levels]


def _perfect(own: Parameterisation, noisy: torch.Tensor, image: torch.Tensor, level: float) -> torch.Tensor:
    """The answer behind which the image lies: solved from each parameterisation's own definition."""
    if own.name == "flow":
        return (noisy - image) / level
    a, s = math.sqrt(level), math.sqrt(1 - level)
    noise = (noisy - a * image) / s
    return noise if own.name == "epsilon" else a * noise - s * image


@pytest.mark.parametrize(("name", "level"), CASES)
def test_an_answer_that_implies_the_image_has_no_residual(name: str, level: float) -> None:
    own = PARAMETERISATIONS[name]
    noisy, image = _row(0.3, -1.2), _row(0.8, 0.1)
    answer = _perfect(own, noisy, image, level)
    residual = own.image_residual(answer, noisy, image, torch.tensor(level, dtype=torch.float64))
    assert residual.abs().max().item() < 1e-12


@pytest.mark.parametrize(("name", "level"), [case for case in CASES if case[1] not in (0.0,)])
def test_the_residual_is_the_weighted_error_of_the_implied_image(name: str, level: float) -> None:
    own, at = PARAMETERISATIONS[name], torch.tensor(level, dtype=torch.float64)
    noisy, image, answer = _row(0.3, -1.2), _row(0.8, 0.1), _row(0.5, 0.5)
    if name == "flow":
        implied = noisy - level * answer
    else:
        a, s = math.sqrt(level), math.sqrt(1 - level)
        implied = (noisy - s * answer) / a if name == "epsilon" else a * noisy - s * answer
    expected = own.image_weight(at) * (implied - image).square()
    torch.testing.assert_close(own.image_residual(answer, noisy, image, at).square(), expected)


def test_epsilon_by_hand() -> None:
    # ab = 0.2: SNR = 0.25, so the error of x_0 counts a quarter. x_0 = (1 - 0.8^.5 * 0.5) / 0.2^.5.
    own, at = PARAMETERISATIONS["epsilon"], torch.tensor(0.2, dtype=torch.float64)
    residual = own.image_residual(_row(0.5, 0.5), _row(1.0, 1.0), _row(0.0, 0.0), at)
    implied = (1 - math.sqrt(0.8) * 0.5) / math.sqrt(0.2)
    assert residual.flatten()[0].item() == pytest.approx(0.5 * implied)


@given(
    name=st.sampled_from(sorted(PARAMETERISATIONS)),
    level=st.floats(1e-4, 1 - 1e-4),
    values=st.lists(st.floats(-3, 3), min_size=6, max_size=6),
)
def test_the_residual_is_bounded_at_every_level(name: str, level: float, values: list[float]) -> None:
    own, at = PARAMETERISATIONS[name], torch.tensor(level, dtype=torch.float64)
    answer, noisy, image = (_row(*values[k : k + 2]) for k in (0, 2, 4))
    residual = own.image_residual(answer, noisy, image, at)
    # Each of the three parts has a factor of at most sqrt(2) in front: 1 / max(a, s) is no more.
    assert residual.abs().max().item() <= 3 * 3 * math.sqrt(2) + 1e-9


@pytest.mark.parametrize(("name", "level"), CASES)
def test_min_snr_multiplies_the_error_of_the_image(name: str, level: float) -> None:
    own, at = PARAMETERISATIONS[name], torch.tensor(level, dtype=torch.float64)
    scale = image_scale(own, at, MinSnr(5.0))
    wanted = min(float(own.snr(at)), 5.0)
    assert (scale.square() * own.image_weight(at)).item() == pytest.approx(wanted)
    assert image_scale(own, at, "native").item() == 1.0


@pytest.mark.parametrize("term", ["redirect", "keep", "esd", "gem"])
def test_gradients_agree_with_differences(term: str) -> None:
    generator = torch.Generator().manual_seed(3)
    policy, one, two = (torch.randn(2, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    policy.requires_grad_()
    calls = {
        "redirect": lambda answer: terms.redirect(answer - one),
        "keep": lambda answer: terms.keep(answer, one),
        "esd": lambda answer: terms.esd(answer, one, two, eta=0.7),
        "gem": lambda answer: terms.gem(answer, one, two, eta=0.2),
    }
    assert torch.autograd.gradcheck(calls[term], (policy,))
