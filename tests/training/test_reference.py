"""Policy and reference: one network, two forward passes, the same noise for everybody."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from scdpo_core.families.flux import Flux
from scdpo_core.families.sd1 import SD1, SD1Model
from scdpo_core.families.timesteps import DiscreteTimesteps, TimestepLaw
from scdpo_core.lora.adapter import LoraAdapter, attach
from scdpo_core.training.reference import draw, noise_residuals, pair_residuals
from scdpo_core.types import Conditioning, PairBatch
from tests.support.tiny import LATENT_CHANNELS, TOKENS, WIDTH, tiny_sd_folder
from tests.support.tiny_families import tiny_folder

CPU = torch.device("cpu")
STEPS, LAW = DiscreteTimesteps(1000), TimestepLaw()
SHAPE = (LATENT_CHANNELS, 8, 8)


@pytest.fixture(scope="module", name="model")
def _model(tmp_path_factory: pytest.TempPathFactory) -> SD1Model:
    return SD1().load(tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny"), CPU, torch.float32)


@pytest.fixture(scope="module", name="adapter")
def _adapter(model: SD1Model) -> LoraAdapter:
    return attach(model.denoiser, rank=2, alpha=2.0, targets="attention", seed=0)


@pytest.fixture(autouse=True)
def _untrained(adapter: LoraAdapter) -> None:
    with torch.no_grad():
        for weight in adapter.parameters()[1::2]:
            weight.zero_()


def _batch(pairs: int = 3) -> PairBatch:
    generator = torch.Generator().manual_seed(5)
    return PairBatch(
        latents=torch.randn((pairs, 2, *SHAPE), generator=generator),
        conditioning=Conditioning(torch.randn((pairs, TOKENS, WIDTH), generator=generator)),
        weight=torch.ones(pairs),
        label=torch.ones(pairs),
        cost=torch.full((pairs, 2), torch.nan),
    )


def _disturb(adapter: LoraAdapter) -> None:
    with torch.no_grad():
        for number, weight in enumerate(adapter.parameters()):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.3)


def test_two_forward_passes_the_first_without_any_lora(
    model: SD1Model, adapter: LoraAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards: list[tuple[int, bool, set[bool]]] = []
    real = model.denoiser.forward
    layers = [module for module in model.denoiser.modules() if isinstance(module, BaseTunerLayer)]

    def forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        off = {layer.disable_adapters for layer in layers}
        forwards.append((len(sample), torch.is_grad_enabled(), off))
        return real(sample, *args, **kwargs)

    monkeypatch.setattr(model.denoiser, "forward", forward)
    pair_residuals(model, adapter, _batch(3), draw(0, 0, 3, SHAPE, STEPS, LAW, CPU), "native")
    # Three pairs are six images: once without and once with gradient, all layers switched alike.
    assert forwards == [(6, False, {True}), (6, True, {False})]
    assert len(layers) == len(adapter.modules)


def test_both_images_and_both_networks_get_the_same_noise(
    model: SD1Model, adapter: LoraAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    real = model.denoiser.forward

    def forward(sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
        seen.append((sample, timestep, encoder_hidden_states))
        return real(sample, timestep, encoder_hidden_states=encoder_hidden_states)

    monkeypatch.setattr(model.denoiser, "forward", forward)
    batch, noise_sample = _batch(2), draw(3, 1, 2, SHAPE, STEPS, LAW, CPU)
    pair_residuals(model, adapter, batch, noise_sample, "native")
    for (sample, timesteps, words), _ in zip(seen, range(2), strict=True):
        assert torch.equal(timesteps, torch.cat([noise_sample.timesteps] * 2))
        assert torch.equal(words, torch.cat([batch.conditioning.embeddings] * 2))
        alpha_bar = model.alphas_cumprod[noise_sample.timesteps].view(-1, 1, 1, 1)
        for side, part in enumerate(sample.chunk(2)):
            noise = (part - alpha_bar.sqrt() * batch.latents[:, side]) / (1 - alpha_bar).sqrt()
            torch.testing.assert_close(noise, noise_sample.noise, rtol=1e-3, atol=1e-3)


def test_an_untrained_policy_is_the_reference(model: SD1Model, adapter: LoraAdapter) -> None:
    residuals = pair_residuals(model, adapter, _batch(), draw(0, 0, 3, SHAPE, STEPS, LAW, CPU), "native")
    assert torch.equal(residuals.policy, residuals.reference)
    assert residuals.policy.requires_grad
    assert not residuals.reference.requires_grad


@pytest.mark.parametrize("weighting", ["native", "exact"])
def test_errors_are_those_of_each_image_alone_chosen_first(
    model: SD1Model, adapter: LoraAdapter, weighting: Any
) -> None:
    _disturb(adapter)
    batch, noise_sample = _batch(2), draw(0, 0, 2, SHAPE, STEPS, LAW, CPU)
    errors = pair_residuals(model, adapter, batch, noise_sample, weighting).errors()
    assert errors.policy.shape == errors.reference.shape == (2, 2)
    assert not torch.allclose(errors.policy, errors.reference)
    with torch.no_grad():
        for side in (0, 1):
            alone = model.errors(
                batch.latents[:, side],
                noise_sample.noise,
                noise_sample.timesteps,
                batch.conditioning,
                weighting,
            )
            torch.testing.assert_close(errors.policy[:, side].detach(), alone)
            with adapter.disabled():
                base = model.errors(
                    batch.latents[:, side],
                    noise_sample.noise,
                    noise_sample.timesteps,
                    batch.conditioning,
                    weighting,
                )
            torch.testing.assert_close(errors.reference[:, side], base)


def test_on_pure_noise_the_difference_of_residuals_is_that_of_the_networks(
    model: SD1Model, adapter: LoraAdapter
) -> None:
    _disturb(adapter)
    batch, noise_sample = _batch(2), draw(0, 0, 2, SHAPE, STEPS, LAW, CPU)
    policy, reference = noise_residuals(model, adapter, batch, noise_sample)
    last = torch.full((2,), 999)
    spread = (1 - model.alphas_cumprod[999]).sqrt()
    with torch.no_grad():
        words = batch.conditioning.embeddings
        ours = model.denoiser(spread * noise_sample.noise, last, encoder_hidden_states=words).sample
        with adapter.disabled():
            base = model.denoiser(spread * noise_sample.noise, last, encoder_hidden_states=words).sample
    torch.testing.assert_close((policy - reference).detach(), ours - base, rtol=1e-3, atol=1e-4)


def test_chance_follows_from_seed_and_index_alone() -> None:
    first = draw(4, 7, 2, SHAPE, STEPS, LAW, CPU)
    torch.manual_seed(123)
    again = draw(4, 7, 2, SHAPE, STEPS, LAW, CPU)
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.timesteps, again.timesteps)
    for other in (draw(5, 7, 2, SHAPE, STEPS, LAW, CPU), draw(4, 8, 2, SHAPE, STEPS, LAW, CPU)):
        assert not torch.equal(first.noise, other.noise)
    # Seed 8's stream is not seed 7's, one step later.
    assert not torch.equal(
        draw(5, 7, 2, SHAPE, STEPS, LAW, CPU).noise, draw(4, 8, 2, SHAPE, STEPS, LAW, CPU).noise
    )


def test_the_dice_are_those_of_every_earlier_version() -> None:
    noise_sample = draw(4, 7, 2, SHAPE, STEPS, LAW, CPU)
    generator = torch.Generator().manual_seed(7 * 0x9E3779B1 + 4)
    assert torch.equal(noise_sample.timesteps, torch.randint(1000, (2,), generator=generator))
    assert torch.equal(noise_sample.noise, torch.randn((2, *SHAPE), generator=generator))


def test_a_flow_is_trained_at_times_in_between_and_its_prior_at_the_very_end(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    flow = Flux().load(tiny_folder("flux", tmp_path_factory.mktemp("flow") / "tiny"), CPU, torch.float32)
    names = [name for name, _ in flow.denoiser.named_modules() if name.endswith("attn.to_q")]
    adapter = attach(flow.denoiser, rank=2, alpha=2.0, targets=names, seed=0)
    _disturb(adapter)
    shape = flow.latent_shape()
    words = flow.encode_prompts(["one", "two"])
    latents = torch.randn((2, 2, *shape), generator=torch.Generator().manual_seed(5))
    none = torch.full((2, 2), torch.nan)
    batch = PairBatch(latents, words, torch.ones(2), torch.ones(2), none)
    noise_sample = draw(0, 0, 2, shape, flow.timesteps, LAW, CPU)
    assert noise_sample.timesteps.dtype == torch.float32
    errors = pair_residuals(flow, adapter, batch, noise_sample, "native").errors()
    with torch.no_grad():
        alone = flow.errors(latents[:, 1], noise_sample.noise, noise_sample.timesteps, words, "native")
    torch.testing.assert_close(errors.policy[:, 1].detach(), alone)

    policy, reference = noise_residuals(flow, adapter, batch, noise_sample)
    last = torch.full((2,), 1000.0)
    with torch.no_grad():
        # At t = 1 nothing of the image is left, and a flow to an empty image is the noise itself.
        ours = flow._predict(noise_sample.noise, last, words) - noise_sample.noise
        with adapter.disabled():
            base = flow._predict(noise_sample.noise, last, words) - noise_sample.noise
    torch.testing.assert_close(policy.detach(), ours)
    torch.testing.assert_close(reference, base)


def test_all_timesteps_come_up() -> None:
    drawn = draw(0, 0, 4000, (1,), DiscreteTimesteps(10), LAW, CPU).timesteps
    assert drawn.dtype == torch.int64
    assert torch.equal(drawn.unique(), torch.arange(10))
    # 4000 draws over 10 values: 400 each, standard deviation 19.
    assert (drawn.bincount() - 400).abs().max() < 100
