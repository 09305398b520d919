"""Loading, checking and driving models of Stable Diffusion 1's shape, on tiny random ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from scdpo_core.families import FAMILIES, LoadOptions, family
from scdpo_core.families.components import quiet
from scdpo_core.families.sd1 import SD1, SD1Model
from scdpo_core.families.text_encoders import CONFIGS, clip_tokenizer
from scdpo_core.types import Conditioning, ScdpoError
from tests.support.tiny import (
    LATENT_CHANNELS,
    TOKENS,
    WIDTH,
    tiny_pipeline,
    tiny_sd_folder,
    write_single_file,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module", name="model")
def _model(folder: Path) -> SD1Model:
    return SD1().load(folder, CPU, torch.float32)


def test_an_unknown_family_is_named_with_the_choices() -> None:
    assert family("sd1") is FAMILIES["sd1"]
    with pytest.raises(ScdpoError, match=r"'sd9'.*sd1"):
        family("sd9")


def test_a_folder_says_what_it_holds(model: SD1Model, folder: Path) -> None:
    assert (model.name, model.family, model.vae_scale, model.timesteps.count) == ("tiny", "sd1", 2, 1000)
    assert model.default_size == (16, 16)
    assert model.latent_shape() == (LATENT_CHANNELS, 8, 8)
    # Width comes first in a size and last in a shape.
    assert model.latent_shape((32, 8)) == (LATENT_CHANNELS, 4, 16)
    assert not any(parameter.requires_grad for parameter in model.denoiser.parameters())
    assert SD1().check(folder) == []


def test_a_size_that_does_not_fit_is_refused(model: SD1Model) -> None:
    with pytest.raises(ScdpoError, match="multiples of 4"):
        model.latent_shape((16, 18))


def test_encoding_is_repeatable_and_scaled(model: SD1Model, folder: Path) -> None:
    images = torch.rand((3, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = model.encode_images(images)
    assert latents.shape == (3, LATENT_CHANNELS, 8, 8)
    assert torch.equal(latents, model.encode_images(images))
    whole = AutoencoderKL.from_pretrained(folder, subfolder="vae", local_files_only=True)
    with torch.no_grad():
        mean = whole.encode(images).latent_dist.mean
    torch.testing.assert_close(latents, mean * 0.5)

    words = model.encode_prompts(["a knife", "", "x" * 500])
    # Eight chunks are the most; the other prompts are repeated.
    assert words.embeddings.shape == (3, 8 * TOKENS, WIDTH)
    assert not torch.equal(words.embeddings[0], words.embeddings[1])


def test_the_error_is_that_of_the_textbook(model: SD1Model) -> None:
    generator = torch.Generator().manual_seed(3)
    latents, noise = torch.randn((2, 2, LATENT_CHANNELS, 8, 8), generator=generator)
    timesteps = torch.tensor([10, 700])
    words = model.encode_prompts(["one", "two"])
    alpha_bar = model.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
    with torch.no_grad():
        answer = model.denoiser(noisy, timesteps, encoder_hidden_states=words.embeddings).sample
        native = model.errors(latents, noise, timesteps, words, "native")
        exact = model.errors(latents, noise, timesteps, words, "exact")
    velocity = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents
    torch.testing.assert_close(native, ((answer - velocity) ** 2).mean((1, 2, 3)))
    torch.testing.assert_close(exact, native * alpha_bar.flatten())


def test_a_model_of_noise_has_the_same_error_either_way(tmp_path: Path) -> None:
    model = SD1().load(tiny_sd_folder(tmp_path, prediction_type="epsilon"), CPU, torch.float32)
    latents, noise = torch.randn((2, 1, LATENT_CHANNELS, 8, 8), generator=torch.Generator().manual_seed(0))
    words, timesteps = Conditioning(torch.zeros(1, TOKENS, WIDTH)), torch.tensor([500])
    with torch.no_grad():
        native = model.errors(latents, noise, timesteps, words, "native")
        assert torch.equal(native, model.errors(latents, noise, timesteps, words, "exact"))
        told = SD1().load(tmp_path, CPU, torch.float32, LoadOptions(prediction="v_prediction"))
        assert not torch.equal(native, told.errors(latents, noise, timesteps, words, "native"))


def test_samples_are_those_of_the_plain_pipeline(model: SD1Model, folder: Path) -> None:
    with quiet():
        pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        theirs = pipeline(
            ["a cat"], num_inference_steps=4, guidance_scale=3.0, generator=torch.Generator().manual_seed(7)
        ).images[0]
    ours = model.sample(["a cat"], [7], 4, 3.0)[0]
    assert ours.size == (16, 16)
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


def test_a_image_depends_on_its_own_seed_alone(model: SD1Model) -> None:
    both = model.sample(["a cat", "a dog"], [1, 2], 3, 3.0)
    alone = model.sample(["a dog"], [2], 3, 3.0)
    assert np.abs(np.asarray(both[1], int) - np.asarray(alone[0], int)).max() <= 1
    assert np.abs(np.asarray(both[1], int) - np.asarray(both[0], int)).max() > 1


def test_released_encoders_come_back_when_they_are_needed(folder: Path) -> None:
    model = SD1().load(folder, CPU, torch.float32)
    before = model.encode_prompts(["a cat"]).embeddings
    denoiser = model.denoiser
    model.release_encoders()
    assert model._encoders is None
    assert torch.equal(model.encode_prompts(["a cat"]).embeddings, before)
    assert model.denoiser is denoiser


def test_the_encoder_id_follows_the_encoders_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    def changed(part: str, file: str) -> str:
        copy = tmp_path / part
        shutil.copytree(folder, copy)
        tensors = load_file(copy / part / file)
        name = sorted(tensors)[0]
        save_file(tensors | {name: tensors[name] + 0.01}, str(copy / part / file), metadata={"format": "pt"})
        return SD1().load(copy, CPU, torch.float32).encoder_id

    own = SD1().load(folder, CPU, torch.float32).encoder_id
    assert SD1().load(folder, CPU, torch.bfloat16).encoder_id == own
    assert changed("unet", "diffusion_pytorch_model.safetensors") == own
    assert changed("vae", "diffusion_pytorch_model.safetensors") != own
    assert changed("text_encoder", "model.safetensors") != own


def test_a_single_file_is_the_same_model_as_its_folder(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path / "words")
    pipeline.save_pretrained(tmp_path / "folder")
    file = write_single_file(pipeline, tmp_path / "model.safetensors")
    assert SD1().check(file) == []
    one = SD1().load(file, CPU, torch.float32, LoadOptions(configs=tmp_path / "folder"))
    other = SD1().load(tmp_path / "folder", CPU, torch.float32)
    assert one.name == "model"
    assert one.encoder_id == other.encoder_id
    for (key, mine), (_, theirs) in zip(
        one.denoiser.state_dict().items(), other.denoiser.state_dict().items(), strict=True
    ):
        assert torch.equal(mine, theirs), key
    one.release_encoders()
    assert one.encode_prompts(["a"]).embeddings.shape == (1, TOKENS, WIDTH)


def test_the_shipped_tokenizer_is_clips() -> None:
    tokenizer = clip_tokenizer(CONFIGS / "sd1" / "tokenizer")
    # Known of CLIP: 'a photo of a cat' between the start and end tokens, which are the last two of 49,408.
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert len(tokenizer) == 49408


def _without(*parts: str) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        for part in parts:
            target = folder / part
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        return folder

    return spoil


def _class_name(folder: Path) -> Path:
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionXLPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _cut_weights(folder: Path) -> Path:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return folder


def _pickled_weights(folder: Path) -> Path:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    return folder


def _broken_config(folder: Path) -> Path:
    (folder / "vae" / "config.json").write_text("{", encoding="utf-8")
    return folder


def _inpainting(folder: Path) -> Path:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 9}))
    return folder


def _file(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    return make


def _tensors(*keys: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        save_file({key: torch.zeros(1) for key in keys}, str(folder / "other.safetensors"))
        return folder / "other.safetensors"

    return make


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: folder / "nowhere", "no such base model"),
        (_without("model_index.json"), "no model_index.json"),
        (_class_name, "This is a Stable Diffusion XL model; a Stable Diffusion 1.x model was expected"),
        (_without("vae"), "vae has no weights"),
        (_without("tokenizer"), "tokenizer is missing"),
        (_without("scheduler/scheduler_config.json"), "scheduler_config.json"),
        (_cut_weights, "damaged or incomplete"),
        (_pickled_weights, "pickled weights"),
        (_broken_config, "config.json"),
        (_inpainting, "inpainting"),
        (_file("model.ckpt", b"PK\x03\x04"), "Pickle files"),
        (_file("model.safetensors", b"PK\x03\x04 and more"), "renamed pickle"),
        (_file("model.safetensors", b"\x10\x00"), "damaged or incomplete"),
        (_tensors("model.diffusion_model.joint_blocks.0.x"), "Stable Diffusion 3"),
        (_tensors("lora_unet_x.alpha"), "a LoRA"),
        (_tensors("anything"), "no model that is known here"),
    ],
)
def test_a_base_that_cannot_be_used_is_told_in_a_sentence(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], Path], sentence: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    base = spoil(copy)
    problems = SD1().check(base)
    assert any(sentence in f"{problem.path} {problem.what}" for problem in problems), problems
    with pytest.raises(ScdpoError, match=r"\w"):
        SD1().load(base, CPU, torch.float32)


def test_weights_that_do_not_fit_their_configuration_are_told_in_a_sentence(
    folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({"conv_in.weight": torch.zeros(3, 3)}, str(weights), metadata={"format": "pt"})
    with pytest.raises(ScdpoError, match="could not be loaded"):
        SD1().load(copy, CPU, torch.float32)
