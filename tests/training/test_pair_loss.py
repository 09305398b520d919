"""From settings to a loss: what reaches the objective, and the little state in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scdpo_core.config.settings import DEFAULT_BETAS, ObjectiveSettings
from scdpo_core.objectives import diffusion_dpo, duo_prior, safedpo, sc_dpo_loss, sdpo_loser_scale
from scdpo_core.training.reference import PairResiduals
from scdpo_core.training.step import PairLoss, PairStep, wants_prior
from scdpo_core.types import LossOutput

CPU = torch.device("cpu")
B = 4


def _residuals(seed: int = 0) -> PairResiduals:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn((2 * B, 1, 2, 2), generator=generator)
    policy = reference + 0.01 * torch.randn(reference.shape, generator=generator)
    return PairResiduals(policy.requires_grad_(), reference)


TIMESTEPS = torch.tensor([0, 300, 600, 999])


TIMESTEPS = torch.tensor([0, 300, 600, 999])
COST = torch.tensor([[-1.0, 2.0], [torch.nan, torch.nan], [0.5, -3.0], [-2.0, -1.0]])
LABEL = torch.tensor([1.0, 0.9, 0.6, 1.0])


def _seen(residuals: PairResiduals | None = None, **changes: Any) -> PairStep:
    values: dict[str, Any] = {
        "errors": (residuals or _residuals()).errors(),
        "timesteps": TIMESTEPS,
        "weight": torch.ones(B),
        "label": LABEL,
        "cost": COST,
    }
    return PairStep(**(values | changes))


def _call(settings: ObjectiveSettings, step: int = 50, **changes: Any) -> LossOutput:
    return PairLoss(settings, steps=100, num_timesteps=1000, device=CPU)(_seen(**changes), step)


def test_sc_dpo_gets_everything_that_the_settings_ask_for() -> None:
    changes = {"beta": 100.0, "margin": 1.5, "winner": 0.2, "focal_gamma": 0.5, "loser_mu": 0.9}
    own = ObjectiveSettings("sc_dpo", dfm_gamma=0.0, **changes)
    residuals = _residuals()
    scale = sdpo_loser_scale(*residuals.policy.detach().chunk(2), mu=0.9)
    expected = sc_dpo_loss(
        residuals.errors(),
        beta=100.0,
        label=LABEL,
        cost=COST,
        margin=1.5,
        winner=0.2,
        focal_gamma=0.5,
        loser_scale=scale,
    )
    output = _call(own, loser_scale=scale)
    torch.testing.assert_close(output.per_pair, expected.per_pair)
    assert output.metrics.keys() == expected.metrics.keys()


def test_the_weight_of_a_pair_scales_its_loss() -> None:
    own = ObjectiveSettings("sc_dpo", dfm_gamma=0.0)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5])
    torch.testing.assert_close(_call(own, weight=weight).per_pair, weight * _call(own).per_pair)


def test_the_focus_begins_after_its_warmup() -> None:
    own = ObjectiveSettings("sc_dpo", beta=1000.0, dfm_gamma=1.0, dfm_warmup=0.1)
    # Step 9 of 100 is the last of the first tenth.
    assert _call(own, step=9).metrics["dfm_spread"] == 0
    assert _call(own, step=10).metrics["dfm_spread"] > 0


def test_difficulties_are_remembered_and_survive_a_resume() -> None:
    own = ObjectiveSettings("sc_dpo", beta=1000.0)
    loss = PairLoss(own, steps=100, num_timesteps=1000, device=CPU)
    for seed in range(5):
        loss(_seen(_residuals(seed)), step=0)
    other = PairLoss(own, steps=100, num_timesteps=1000, device=CPU)
    fresh = PairLoss(own, steps=100, num_timesteps=1000, device=CPU)
    other.load_state(loss.state())
    answers = [each(_seen(_residuals(9)), step=50).per_pair for each in (loss, other, fresh)]
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


@pytest.mark.parametrize("name", sorted(DEFAULT_BETAS))
def test_every_objective_can_be_asked_for(name: Any) -> None:
    residuals = _residuals()
    loss = PairLoss(ObjectiveSettings(objective=name), steps=10, num_timesteps=1000, device=CPU)
    output = loss(_seen(residuals), step=5)
    output.per_pair.mean().backward()
    assert output.per_pair.shape == (B,)
    assert residuals.policy.grad is not None
    assert bool(residuals.policy.grad.isfinite().all())
    assert {
        "u",
        "implicit_accuracy",
        "winner_gap",
        "loser_gap",
        "margin",
        "dfm_spread",
    } <= output.metrics.keys()


def test_peers_are_called_as_their_authors_mean_them() -> None:
    residuals = _residuals()
    dpo = _call(ObjectiveSettings(objective="diffusion_dpo"))
    torch.testing.assert_close(dpo.per_pair, diffusion_dpo(residuals.errors(), beta=5000.0).per_pair)
    safe = _call(ObjectiveSettings(objective="safedpo", margin=3.0))
    torch.testing.assert_close(safe.per_pair, safedpo(residuals.errors(), beta=5000.0, cost=COST).per_pair)


def test_duo_adds_its_prior_only_when_it_is_wanted() -> None:
    prior = duo_prior(torch.ones(B, 1, 2, 2), torch.zeros(B, 1, 2, 2))
    with_prior = ObjectiveSettings(objective="duo", beta=2.0, prior_weight=3.0)
    without = ObjectiveSettings(objective="duo", beta=2.0, prior_weight=0.0)
    assert [wants_prior(own) for own in (with_prior, without, ObjectiveSettings())] == [True, False, False]
    added = _call(with_prior, prior=prior).per_pair - _call(without).per_pair
    # Mean squared difference 1, times weight 3, times beta 2.
    torch.testing.assert_close(added, 6 * prior)
    torch.testing.assert_close(added, torch.full((B,), 6.0))
