"""Drawing that begins from a noised image, for every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scdpo_core.families import FAMILIES, LoadedModel, LoadOptions
from scdpo_core.families.sampling import Start, begin, keep_outside
from tests.support.tiny_families import tiny_folder
from tests.support.tiny_parts import T5_TOKENS


@pytest.fixture(scope="module", params=FAMILIES, name="model")
def _model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    name = str(request.param)
    folder = tiny_folder(name, tmp_path_factory.mktemp("base") / f"tiny {name}")
    return FAMILIES[name].load(folder, torch.device("cpu"), torch.float32, LoadOptions(t5_tokens=T5_TOKENS))


@pytest.mark.parametrize(
    ("strength", "steps", "skipped"),
    [(1.0, 20, 0), (0.6, 20, 8), (0.95, 20, 1), (0.4, 10, 6), (0.01, 20, 19)],
)
def test_a_strength_is_the_share_of_the_steps(strength: float, steps: int, skipped: int) -> None:
    assert Start(torch.zeros(1), strength).skipped(steps) == skipped


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.01, float("nan")])
def test_an_impossible_strength_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        Start(torch.zeros(1), strength)


def test_drawing_begins_with_the_noised_image_at_the_first_timestep_taken() -> None:
    def add_noise(latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return latents + timesteps.view(-1, 1, 1, 1) * noise

    noise, timesteps = torch.ones(2, 1, 1, 1), torch.tensor([900, 600, 300, 0])
    assert begin(noise, timesteps, None, add_noise) == (noise, timesteps)
    latents, rest = begin(noise, timesteps, Start(torch.full((2, 1, 1, 1), 5.0), 0.5), add_noise)
    # Half of four steps are taken, from 300 on: 5 + 300 * 1.
    assert rest.tolist() == [300, 0] and latents.flatten().tolist() == [305.0, 305.0]


def test_the_weaker_the_noise_the_more_of_the_image_is_left(model: LoadedModel) -> None:
    images = torch.rand((3, 3, 16, 16), generator=torch.Generator().manual_seed(1)) * 2 - 1
    prompts, seeds = ["a", "b", "c"], [1, 2, 3]

    def drawn(strength: float | None) -> np.ndarray:
        start = None if strength is None else Start(images, strength)
        pil_images = model.sample(prompts, seeds, 10, 1.0, start=start)
        return np.stack([np.asarray(image, np.float32) for image in pil_images])

    exact = model._with_vae(lambda vae: model._decode(model.encode_images(images), vae))  # type: ignore[attr-defined]
    target = np.stack([np.asarray(image, np.float32) for image in exact])
    distances = [float(np.abs(drawn(strength) - target).mean()) for strength in (0.1, 0.4, 0.9)]
    assert distances[0] < distances[1] < distances[2]
    assert np.array_equal(drawn(0.4), drawn(0.4)) and not np.array_equal(drawn(0.9), drawn(None))


def test_images_of_another_size_are_refused(model: LoadedModel) -> None:
    with pytest.raises(ValueError, match="start image"):
        model.sample(["a"], [1], 4, 1.0, start=Start(torch.zeros(1, 3, 24, 16), 0.5))


def test_outside_of_its_mask_an_image_is_put_back_under_the_next_steps_noise() -> None:
    def add_noise(latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return latents + timesteps.view(-1, 1, 1, 1) * noise

    mask = torch.tensor([1.0, 0.5, 0.0]).view(1, 1, 1, 3)
    start = Start(torch.full((2, 1, 1, 3), 5.0), 0.5, mask)
    latents, noise = torch.full((2, 1, 1, 3), 9.0), torch.ones(2, 1, 1, 3)
    # 5 + 2 * 1 = 7 outside, 9 inside, half of both between.
    mixed = keep_outside(latents, noise, torch.tensor(2), start, add_noise)
    assert mixed[0].flatten().tolist() == mixed[1].flatten().tolist() == [9.0, 8.0, 7.0]
    # After the last step there is no noise any more.
    assert keep_outside(latents, noise, None, start, add_noise)[0].flatten().tolist() == [9.0, 7.0, 5.0]
    whole = Start(torch.zeros(2, 1, 1, 3), 0.5)
    assert keep_outside(latents, noise, None, whole, add_noise) is latents


def test_only_the_masked_part_is_drawn_anew(model: LoadedModel) -> None:
    images = torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(1)) * 2 - 1
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, :, :8] = 1

    def drawn(of: torch.Tensor | None) -> torch.Tensor:
        latents = model._denoise(  # type: ignore[attr-defined]
            torch.randn((2, *model.latent_shape()), generator=torch.Generator().manual_seed(2)),
            model._guided(["a", "b"], 1.0),  # type: ignore[attr-defined]
            4,
            Start(images, 0.75, of).encoded(slice(0, 2), model.encode_images, model.latent_shape()),
        )
        assert isinstance(latents, torch.Tensor)
        return latents

    known, made = model.encode_images(images), drawn(mask)
    half = known.shape[-1] // 2
    assert torch.equal(made[..., half:], known[..., half:])
    assert not torch.isclose(made[..., :half], known[..., :half]).all()
    # All of it drawn anew is what a start without a mask gives.
    assert torch.equal(drawn(torch.ones_like(mask)), drawn(None))
