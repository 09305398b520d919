"""The algebra of parameterisations, on every noise schedule that models come with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from scdpo_core.families.parameterisation import (
    PARAMETERISATIONS,
    Epsilon,
    Flow,
    MinSnr,
    Velocity,
    error_weight,
    parameterisation,
)
from scdpo_core.types import ScdpoError

SCHEDULES: dict[str, dict[str, Any]] = {
    "sd1": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "linear": {"beta_schedule": "linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "zero_snr": {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
}


@pytest.fixture(params=SCHEDULES, name="alpha_bar")
def _alpha_bar(request: pytest.FixtureRequest) -> torch.Tensor:
    scheduler = DDPMScheduler(num_train_timesteps=1000, **SCHEDULES[request.param])
    alpha_bar: torch.Tensor = scheduler.alphas_cumprod
    return alpha_bar.double().view(-1, 1, 1, 1)


@pytest.fixture(name="images")
def _images(alpha_bar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (len(alpha_bar), 2, 3, 3)
    latents = torch.randn(shape, generator=generator, dtype=torch.float64)
    return latents, torch.randn(shape, generator=generator, dtype=torch.float64)


def test_the_error_of_v_times_alpha_bar_is_the_error_of_the_noise_it_implies(
    alpha_bar: torch.Tensor, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    latents, noise = images
    noisy = Velocity().noisy(latents, noise, alpha_bar)
    answer = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    native = (answer - Velocity().target(latents, noise, alpha_bar)).square().mean((1, 2, 3))
    # From v = a eps - s x0 and x_t = a x0 + s eps, with a^2 + s^2 = 1: eps = a v + s x_t.
    implied = alpha_bar.sqrt() * answer + (1 - alpha_bar).sqrt() * noisy
    exact = (implied - noise).square().mean((1, 2, 3))

    torch.testing.assert_close(native * Velocity().exact_weight(alpha_bar).flatten(), exact)


def test_the_error_of_the_noise_needs_no_weight(
    alpha_bar: torch.Tensor, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    latents, noise = images
    assert torch.equal(Epsilon().target(latents, noise, alpha_bar), noise)
    assert torch.equal(Epsilon().exact_weight(alpha_bar), torch.ones_like(alpha_bar))


def test_noise_is_mixed_in_as_diffusers_does(
    alpha_bar: torch.Tensor, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    latents, noise = images
    mixed = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
    assert torch.equal(Epsilon().noisy(latents, noise, alpha_bar), mixed)
    # At the end of a zero-SNR schedule nothing is left of the image, and v asks for minus the image.
    if alpha_bar[-1] == 0:
        assert torch.equal(mixed[-1], noise[-1])
        assert torch.equal(Velocity().target(latents, noise, alpha_bar)[-1], -latents[-1])


@pytest.fixture(params=[1.0, 3.0], name="times")
def _times(request: pytest.FixtureRequest) -> torch.Tensor:
    """A flow's times, plain and shifted as SD 3's sampler has them."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=request.param)
    sigmas: torch.Tensor = scheduler.sigmas
    return torch.cat([sigmas.double(), torch.zeros(1, dtype=torch.float64)]).view(-1, 1, 1, 1)


def test_the_error_of_a_flow_times_the_square_of_what_is_left_is_that_of_the_noise_it_implies(
    times: torch.Tensor,
) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (len(times), 2, 3, 3)
    latents, noise, answer = torch.randn((3, *shape), generator=generator, dtype=torch.float64)
    noisy = Flow().noisy(latents, noise, times)
    native = (answer - Flow().target(latents, noise, times)).square().mean((1, 2, 3))
    # x_t = (1 - t) x0 + t eps and v = eps - x0 give eps = x_t + (1 - t) v.
    exact = (noisy + (1 - times) * answer - noise).square().mean((1, 2, 3))
    torch.testing.assert_close(native * Flow().exact_weight(times).flatten(), exact)


def test_a_perfect_flow_leads_from_the_noise_to_the_image() -> None:
    latents, noise = torch.randn((2, 3, 2, 4, 4), generator=torch.Generator().manual_seed(0))
    velocity = Flow().target(latents, noise, torch.zeros(()))
    assert torch.equal(Flow().noisy(latents, noise, torch.ones(())), noise)
    torch.testing.assert_close(noise - velocity, latents)


def test_the_velocity_is_that_of_diffusers() -> None:
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn((2, 3, 4, 2, 2), generator=generator)
    timesteps = torch.tensor([0, 500, 999])
    alpha_bar = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    theirs = scheduler.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(Velocity().target(latents, noise, alpha_bar), theirs)


def test_a_foreign_parameterisation_is_named_with_the_choices() -> None:
    with pytest.raises(ScdpoError, match=r"'sample'.*epsilon, v_prediction, flow"):
        parameterisation("sample")
    assert parameterisation("epsilon") is PARAMETERISATIONS["epsilon"]


def test_min_snr_weights_as_worked_by_hand() -> None:
    # alpha_bar 0.9 is an SNR of 9, 0.5 one of 1; with gamma 5 the first is held down to 5.
    level = torch.tensor([0.9, 0.5], dtype=torch.float64)
    torch.testing.assert_close(Epsilon().snr(level), torch.tensor([9.0, 1.0], dtype=torch.float64))
    # The noise: min(SNR, 5) / SNR.
    weight = error_weight(Epsilon(), level, MinSnr(5.0))
    torch.testing.assert_close(weight, torch.tensor([5 / 9, 1.0], dtype=torch.float64))
    # v: min(SNR, 5) / (SNR + 1).
    weight = error_weight(Velocity(), level, MinSnr(5.0))
    torch.testing.assert_close(weight, torch.tensor([5 / 10, 1 / 2], dtype=torch.float64))
    # Flow at t = 0.2: SNR = (0.8 / 0.2)^2 = 16, so the image's error t^2 = 0.04 counts 5 times.
    weight = error_weight(Flow(), torch.tensor([0.2], dtype=torch.float64), MinSnr(5.0))
    torch.testing.assert_close(weight, torch.tensor([0.2], dtype=torch.float64))


@pytest.mark.parametrize("own", PARAMETERISATIONS.values(), ids=PARAMETERISATIONS)
def test_min_snr_without_a_limit_is_exact_and_pure_noise_is_no_exception(own: Any) -> None:
    level = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    exact = error_weight(own, level, "exact")
    torch.testing.assert_close(error_weight(own, level, MinSnr(1e9)), exact)
    assert bool((error_weight(own, level, MinSnr(1.0)) <= exact).all())
    assert torch.equal(error_weight(own, level, "native"), torch.ones_like(level))
    pure = torch.tensor([1.0 if own.name == "flow" else 0.0])
    assert bool(error_weight(own, pure, MinSnr(5.0)).isfinite().all())
