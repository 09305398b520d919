"""What holds for every family, on tiny random models: sizes, encoding, errors, sampling, single files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image

from scdpo_core.families import FAMILIES, LoadedModel, LoadOptions, family_of
from scdpo_core.families.components import quiet
from scdpo_core.families.timesteps import TimestepLaw
from scdpo_core.family_info import FAMILY_INFO
from scdpo_core.types import ScdpoError
from tests.support.tiny import TOKENS, WIDTH
from tests.support.tiny_families import FLOWS, WITH_T5, tiny_folder
from tests.support.tiny_parts import T5_TOKENS

CPU = torch.device("cpu")
OPTIONS = LoadOptions(t5_tokens=T5_TOKENS)
# Tokens of ten letters in their chat: start, 'user', line, prompt, end, line, start, 'assistant', line.
# Qwen-Image drops what stands before the prompt.
CHATS = {"z_image": 1 + 4 + 1 + 10 + 1 + 1 + 1 + 9 + 1, "qwen_image": 10 + 1 + 1 + 1 + 9 + 1}
# It reads every prompt at full length, padding included, and the states of three layers.
READ_WHOLE = {"flux2": 512}
# Its latents are squares of four cells of the VAE.
PACKED = ("flux2",)


@pytest.fixture(scope="module", params=FAMILIES, name="name")
def _name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", name="folder")
def _folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(name, tmp_path_factory.mktemp("base") / f"tiny {name}")


@pytest.fixture(scope="module", name="model")
def _model(name: str, folder: Path) -> LoadedModel:
    return FAMILIES[name].load(folder, CPU, torch.float32, OPTIONS)


def test_a_folder_is_known_for_what_it_is(name: str, folder: Path, model: LoadedModel) -> None:
    assert family_of("auto", folder) is FAMILIES[name]
    assert FAMILIES[name].check(folder, OPTIONS) == []
    cell = 4 if name in PACKED else 2
    assert (model.name, model.family, model.vae_scale) == (f"tiny {name}", name, cell)
    assert model.default_size == (16, 16)
    assert model.latent_shape() == model.latent_shape((16, 16))
    assert model.latent_shape((12, 8))[1:] == (8 // cell, 12 // cell)
    with pytest.raises(ScdpoError, match="multiples of 4"):
        model.latent_shape((16, 18))
    assert not any(weight.requires_grad for weight in model.denoiser.parameters())


def test_every_other_family_says_what_it_is_instead(name: str, folder: Path) -> None:
    for other in FAMILIES.keys() - {name}:
        (problem,) = FAMILIES[other].check(folder)
        assert problem.what.startswith(f"This is a {FAMILIES[name].title} model")
        assert f"a {FAMILIES[other].title} model was expected" in problem.what
        assert f"'{name}'" in problem.what


def test_prompts_have_the_shapes_that_the_denoiser_takes(name: str, model: LoadedModel) -> None:
    words = model.encode_prompts(["a knife", "", "x" * 10])
    tokens = {"sd3": TOKENS + T5_TOKENS, "flux": T5_TOKENS, "chroma": T5_TOKENS, **CHATS, **READ_WHOLE}.get(
        name, TOKENS
    )
    width = 3 * WIDTH if name in READ_WHOLE else WIDTH if name in ("sd1", "sd2") else 2 * WIDTH
    assert words.embeddings.shape == (3, tokens, width)
    assert (words.pooled is None) == (name in ("sd1", "sd2", "chroma", *CHATS, *READ_WHOLE))
    assert (words.attention_mask is None) == (name not in ("chroma", *CHATS))
    if name in CHATS and words.attention_mask is not None:
        # Shorter by what the longest prompt of ten letters has more.
        assert (tokens - words.attention_mask.sum(1)).tolist() == [10 - len("a knife"), 10, 0]
    if words.pooled is not None:
        assert words.pooled.shape == (3, WIDTH)
        assert not torch.equal(words.pooled[0], words.pooled[1])
    assert not torch.equal(words.embeddings[0], words.embeddings[1])
    alone = model.encode_prompts(["a knife"]).embeddings
    torch.testing.assert_close(alone, words.embeddings[:1, : alone.shape[1]])


def test_latents_are_the_vaes_scaled_and_shifted(name: str, folder: Path, model: LoadedModel) -> None:
    images = torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with quiet():
        vae = DiffusionPipeline.from_pretrained(folder, local_files_only=True).vae
    with torch.no_grad():
        if name == "qwen_image":
            # One frame of a video, and each channel with its own shift.
            mean = vae.encode(images[:, :, None]).latent_dist.mean[:, :, 0]
            expected = (mean - 0.1 * torch.arange(16).view(1, 16, 1, 1)) * 0.5
        elif name in PACKED:
            # [N, C, h, 2, w, 2] -> [N, C, 2, 2, h, w], then as a batch norm in its final state.
            parts = vae.encode(images).latent_dist.mean.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
            expected = vae.bn.eval()(parts.permute(0, 1, 3, 5, 2, 4).flatten(1, 3))
        else:
            mean = vae.encode(images).latent_dist.mean
            expected = (mean - 0.1) * 0.5 if name in FLOWS else mean * 0.5
    torch.testing.assert_close(model.encode_images(images), expected)


@pytest.mark.parametrize("weighting", ["native", "exact"])
def test_the_error_is_that_of_the_textbook(name: str, model: LoadedModel, weighting: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    latents, noise = torch.randn((2, 2, *model.latent_shape()), generator=generator)
    words = model.encode_prompts(["one", "two"])
    if name in FLOWS:
        times = torch.tensor([100.0, 700.5])
        t = (times / 1000).view(-1, 1, 1, 1)
        noisy, target = (1 - t) * latents + t * noise, noise - latents
        weight = (1 - t.flatten()) ** 2
    else:
        times = torch.tensor([10, 700])
        a = model.alphas_cumprod[times].view(-1, 1, 1, 1)  # type: ignore[attr-defined]
        noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
        velocity = a.sqrt() * noise - (1 - a).sqrt() * latents
        target = velocity if model.prediction == "v_prediction" else noise
        weight = a.flatten() if model.prediction == "v_prediction" else torch.ones(2)
    with torch.no_grad():
        answer = model._predict(noisy, times, words)  # type: ignore[attr-defined]
        errors = model.errors(latents, noise, times, words, weighting)
    expected = ((answer - target) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(errors, expected * weight if weighting == "exact" else expected)


def test_timesteps_are_of_the_models_kind(name: str, model: LoadedModel) -> None:
    drawn = model.timesteps.draw(50, TimestepLaw(), torch.Generator().manual_seed(0))
    flow = name in FLOWS
    assert drawn.dtype == (torch.float32 if flow else torch.int64)
    assert model.timesteps.last(drawn)[0] == (1000.0 if flow else 999)
    assert model.prediction == ("flow" if flow else "epsilon" if name == "sdxl" else "v_prediction")


def test_samples_are_those_of_the_plain_pipeline(name: str, folder: Path, model: LoadedModel) -> None:
    with quiet():
        pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        settings: dict[str, Any] = {"height": 16, "width": 16}
        if name != "flux2":  # which knows the empty one alone
            settings["negative_prompt"] = [""]
        if name == "qwen_image":
            # Guidance by another name, and the tokens of the real tokenizer before the prompt.
            settings["true_cfg_scale"] = 3.0
            before = pipeline.prompt_template_encode.partition("{}")[0]
            pipeline.prompt_template_encode_start_idx = len(pipeline.tokenizer(before).input_ids)
        if name in WITH_T5:
            settings["max_sequence_length"] = T5_TOKENS
        if name not in FLOWS:
            pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        if name == "chroma":
            # As it is, diffusers adds the mask's ones and zeros to the attention (its issue 12116).
            encode = pipeline._get_t5_prompt_embeds
            pipeline._get_t5_prompt_embeds = lambda **asked: (lambda words, mask: (words, mask.bool()))(
                *encode(**asked)
            )
        theirs = pipeline(
            prompt=["a cat"],
            num_inference_steps=4,
            # Z-Image's pipeline counts how far the answer goes beyond the one with the prompt.
            guidance_scale=2.0 if name == "z_image" else 3.0,
            generator=torch.Generator().manual_seed(7),
            **settings,
        ).images[0]
    ours = model.sample(["a cat"], [7], 4, 3.0)[0]
    assert _difference(ours, theirs) <= 1
    # It is no test if every prompt draws the same.
    assert _difference(ours, model.sample(["a very different thing"], [7], 4, 3.0)[0]) > 0


def _difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def test_a_image_depends_on_its_own_seed_alone(model: LoadedModel) -> None:
    both = model.sample(["a cat", "a dog"], [1, 2], 3, 3.0)
    alone = model.sample(["a dog"], [2], 3, 3.0)
    assert _difference(both[1], alone[0]) <= 1
    assert _difference(both[1], both[0]) > 1


def test_released_encoders_come_back_when_they_are_needed(name: str, folder: Path) -> None:
    model = FAMILIES[name].load(folder, CPU, torch.float32, OPTIONS)
    before, denoiser = model.encode_prompts(["a cat"]), model.denoiser
    model.release_encoders()
    after = model.encode_prompts(["a cat"])
    assert torch.equal(after.embeddings, before.embeddings)
    assert model.denoiser is denoiser


def test_sixteen_bits_change_the_denoiser_and_little_else(
    name: str, folder: Path, model: LoadedModel
) -> None:
    half = FAMILIES[name].load(folder, CPU, torch.bfloat16, OPTIONS)
    assert {weight.dtype for weight in half.denoiser.parameters()} == {torch.bfloat16}
    # All but CLIP are large enough to be kept in 16 bits, and then their words are not quite the same.
    is_small = FAMILY_INFO[name].texts == ("clip",)
    assert (half.encoder_id == model.encoder_id) == is_small
    assert half.sample(["a cat"], [1], 2, 3.0)[0].size == (16, 16)
    latents, noise = torch.randn((2, 2, *model.latent_shape()), generator=torch.Generator().manual_seed(0))
    times = model.timesteps.draw(2, TimestepLaw(), torch.Generator().manual_seed(0))
    words = model.encode_prompts(["one", "two"])
    with torch.no_grad():
        exact = model.errors(latents, noise, times, words, "native")
        with torch.autocast("cpu", torch.bfloat16):
            near = half.errors(latents, noise, times, words, "native")
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(
        half.encode_prompts(["a cat"]).embeddings,
        model.encode_prompts(["a cat"]).embeddings,
        rtol=0.1,
        atol=0.1,
    )
