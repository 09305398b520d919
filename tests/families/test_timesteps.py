"""Drawing timesteps: whole steps and times in between, uniformly or with a normal logit."""

from __future__ import annotations

import math

import pytest
import torch

from scdpo_core.families.timesteps import ContinuousTimesteps, DiscreteTimesteps, TimestepLaw

LOGIT_NORMAL = TimestepLaw("logit_normal")


def _dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_steps_are_drawn_as_they_always_were() -> None:
    for law in (TimestepLaw(), TimestepLaw("uniform")):
        drawn = DiscreteTimesteps(1000).draw(7, law, _dice())
        assert torch.equal(drawn, torch.randint(1000, (7,), generator=_dice()))


def test_a_flows_usual_law_is_logit_normal() -> None:
    flow = ContinuousTimesteps(1000)
    drawn = flow.draw(7, TimestepLaw(), _dice())
    assert torch.equal(drawn, flow.draw(7, LOGIT_NORMAL, _dice()))
    assert torch.equal(drawn, torch.sigmoid(torch.randn(7, generator=_dice())) * 1000)


def test_the_logit_is_normal_with_the_mean_and_width_asked_for() -> None:
    law = TimestepLaw("logit_normal", mean=0.5, std=2.0)
    times = ContinuousTimesteps(1000).draw(20_000, law, _dice()).double() / 1000
    logit = torch.log(times / (1 - times))
    # Standard errors: 2 / sqrt(20000) = 0.014 of the mean, 0.01 of the deviation.
    assert float(logit.mean()) == pytest.approx(0.5, abs=0.06)
    assert float(logit.std()) == pytest.approx(2.0, abs=0.05)


def test_a_shifted_schedule_is_a_shifted_mean() -> None:
    plain = ContinuousTimesteps(1).draw(100, LOGIT_NORMAL, _dice())
    shifted = ContinuousTimesteps(1).draw(100, TimestepLaw("logit_normal", mean=math.log(3)), _dice())
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))


def test_steps_may_be_logit_normal_too_and_stay_in_range() -> None:
    drawn = DiscreteTimesteps(10).draw(4000, TimestepLaw("logit_normal", std=5.0), _dice())
    assert drawn.dtype == torch.int64
    assert torch.equal(drawn.unique(), torch.arange(10))
    # With a logit five wide most images are nearly clean or nearly noise.
    counts = drawn.bincount()
    assert counts[0] + counts[9] > 2000


def test_uniform_times_of_a_flow_are_never_without_noise() -> None:
    drawn = ContinuousTimesteps(1000).draw(10_000, TimestepLaw("uniform"), _dice())
    assert drawn.dtype == torch.float32
    assert float(drawn.min()) > 0
    assert float(drawn.max()) <= 1000
    assert float(drawn.mean()) == pytest.approx(500, abs=15)


def test_the_noisiest_timestep() -> None:
    assert torch.equal(DiscreteTimesteps(1000).last(torch.tensor([3, 4])), torch.tensor([999, 999]))
    assert torch.equal(ContinuousTimesteps(1000).last(torch.tensor([3.0])), torch.tensor([1000.0]))


def test_a_range_cuts_the_schedule_and_leaves_the_rest_of_the_law_as_it_is() -> None:
    some = TimestepLaw("uniform", low=0.25, high=0.5)
    drawn = DiscreteTimesteps(1000).draw(5000, some, _dice())
    assert (int(drawn.min()), int(drawn.max())) == (250, 499)
    assert float(drawn.double().mean()) == pytest.approx(374.5, abs=4)
    times = ContinuousTimesteps(1000).draw(5000, some, _dice())
    assert float(times.min()) >= 250 and float(times.max()) <= 500
    assert float(times.mean()) == pytest.approx(375, abs=4)

    # Cut at its own median, a logit-normal law is one half of itself: the logit is half-normal, and the mean
    # of a half-normal number is sqrt(2 / pi) times its width.
    upper = TimestepLaw("logit_normal", mean=0.0, std=0.5, low=0.5, high=1.0)
    times = ContinuousTimesteps(1).draw(20_000, upper, _dice()).double()
    assert float(times.min()) >= 0.5
    logit = torch.logit(times.clamp(max=1 - 1e-9))
    assert float(logit.mean()) == pytest.approx(0.5 * math.sqrt(2 / math.pi), abs=0.01)
    steps = DiscreteTimesteps(1000).draw(500, upper, _dice())
    assert int(steps.min()) >= 500


def test_the_narrowest_range_still_has_a_step() -> None:
    assert list(TimestepLaw(low=0.9999, high=1.0).steps(1000)) == [999]
    assert list(TimestepLaw(low=0.5, high=0.5001).steps(1000)) == [500]
    assert TimestepLaw().steps(1000) == range(1000)
