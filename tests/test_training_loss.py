"""From settings to a loss: what reaches the objective, and the little state in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scdpo_core.config import DEFAULT_BETAS, ObjectiveSettings
from scdpo_core.objectives import diffusion_dpo, duo_prior, safedpo, sc_dpo_loss, sdpo_loser_scale
from scdpo_core.training.loss import PairLoss
from scdpo_core.training.reference import PairResiduals
from scdpo_core.types import Conditioning, LossOutput, PairBatch

CPU = torch.device("cpu")
B = 4


def _residuals(seed: int = 0) -> PairResiduals:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn((2 * B, 1, 2, 2), generator=generator)
    policy = reference + 0.01 * torch.randn(reference.shape, generator=generator)
    return PairResiduals(policy.requires_grad_(), reference)


def _batch(**changes: Any) -> PairBatch:
    values: dict[str, Any] = {
        "latents": torch.zeros(B, 2, 1, 2, 2),
        "conditioning": Conditioning(torch.zeros(B, 1, 1)),
        "weight": torch.ones(B),
        "label": torch.tensor([1.0, 0.9, 0.6, 1.0]),
        "cost": torch.tensor([[-1.0, 2.0], [torch.nan, torch.nan], [0.5, -3.0], [-2.0, -1.0]]),
    }
    return PairBatch(**(values | changes))


TIMESTEPS = torch.tensor([0, 300, 600, 999])


def _call(
    settings: ObjectiveSettings, batch: PairBatch | None = None, step: int = 50, **more: Any
) -> LossOutput:
    loss = PairLoss(settings, steps=100, num_timesteps=1000, device=CPU)
    residuals = _residuals()
    return loss(residuals.errors(), residuals, batch or _batch(), TIMESTEPS, step, **more)


def test_sc_dpo_gets_everything_that_the_settings_ask_for() -> None:
    own = ObjectiveSettings(beta=100.0, margin=1.5, winner=0.2, dfm_gamma=0.0, focal_gamma=0.5, loser_mu=0.9)
    residuals, batch = _residuals(), _batch()
    expected = sc_dpo_loss(
        residuals.errors(),
        beta=100.0,
        label=batch.label,
        cost=batch.cost,
        margin=1.5,
        winner=0.2,
        focal_gamma=0.5,
        loser_scale=sdpo_loser_scale(*residuals.policy.detach().chunk(2), mu=0.9),
    )
    output = _call(own)
    torch.testing.assert_close(output.per_pair, expected.per_pair)
    assert output.metrics.keys() == expected.metrics.keys()


def test_the_weight_of_a_pair_scales_its_loss() -> None:
    own = ObjectiveSettings(dfm_gamma=0.0)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5])
    torch.testing.assert_close(_call(own, _batch(weight=weight)).per_pair, weight * _call(own).per_pair)


def test_the_focus_begins_after_its_warmup() -> None:
    own = ObjectiveSettings(beta=1000.0, dfm_gamma=1.0, dfm_warmup=0.1)
    # Step 9 of 100 is the last of the first tenth.
    assert _call(own, step=9).metrics["dfm_spread"] == 0
    assert _call(own, step=10).metrics["dfm_spread"] > 0


def test_difficulties_are_remembered_and_survive_a_resume() -> None:
    own = ObjectiveSettings(beta=1000.0)
    loss = PairLoss(own, steps=100, num_timesteps=1000, device=CPU)
    for seed in range(5):
        residuals = _residuals(seed)
        loss(residuals.errors(), residuals, _batch(), TIMESTEPS, step=0)
    other = PairLoss(own, steps=100, num_timesteps=1000, device=CPU)
    fresh = PairLoss(own, steps=100, num_timesteps=1000, device=CPU)
    other.load_state(loss.state())
    residuals = _residuals(9)
    answers = [
        each(residuals.errors(), residuals, _batch(), TIMESTEPS, step=50).per_pair
        for each in (loss, other, fresh)
    ]
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


@pytest.mark.parametrize("name", sorted(DEFAULT_BETAS))
def test_every_objective_can_be_asked_for(name: Any) -> None:
    residuals, batch = _residuals(), _batch()
    loss = PairLoss(ObjectiveSettings(objective=name), steps=10, num_timesteps=1000, device=CPU)
    output = loss(residuals.errors(), residuals, batch, TIMESTEPS, step=5)
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
    residuals, batch = _residuals(), _batch()
    dpo = _call(ObjectiveSettings(objective="diffusion_dpo"))
    torch.testing.assert_close(dpo.per_pair, diffusion_dpo(residuals.errors(), beta=5000.0).per_pair)
    safe = _call(ObjectiveSettings(objective="safedpo", margin=3.0))
    torch.testing.assert_close(
        safe.per_pair, safedpo(residuals.errors(), beta=5000.0, cost=batch.cost).per_pair
    )


def test_duo_adds_its_prior_only_when_it_is_wanted() -> None:
    prior = (torch.ones(B, 1, 2, 2), torch.zeros(B, 1, 2, 2))
    with_prior = ObjectiveSettings(objective="duo", beta=2.0, prior_weight=3.0)
    assert PairLoss(with_prior, steps=1, num_timesteps=1000, device=CPU).wants_prior
    without = ObjectiveSettings(objective="duo", beta=2.0, prior_weight=0.0)
    assert not PairLoss(without, steps=1, num_timesteps=1000, device=CPU).wants_prior
    assert not PairLoss(ObjectiveSettings(), steps=1, num_timesteps=1000, device=CPU).wants_prior
    added = _call(with_prior, prior=prior).per_pair - _call(without).per_pair
    # Mean squared difference 1, times weight 3, times beta 2.
    torch.testing.assert_close(added, 6 * duo_prior(*prior))
    torch.testing.assert_close(added, torch.full((B,), 6.0))
