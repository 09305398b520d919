"""Single files in the original layouts, and parts from elsewhere: the same model as its diffusers folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scdpo_core.families import FAMILIES, LoadedModel, LoadOptions, family_of
from scdpo_core.families.components import in_a_sentence
from scdpo_core.types import ScdpoError
from tests.support.original_files import (
    write_sd2_file,
    write_sd3_file,
    write_sdxl_file,
    write_text_file,
    write_vae_file,
)
from tests.support.tiny import tiny_pipeline, write_single_file
from tests.support.tiny_families import flux_pipeline, sd2_pipeline, sd3_pipeline, sdxl_pipeline, tiny_folder
from tests.support.tiny_parts import T5_TOKENS

CPU = torch.device("cpu")


def _load(family: str, base: Path, **options: Any) -> LoadedModel:
    return FAMILIES[family].load(base, CPU, torch.float32, LoadOptions(**options))


def _same(one: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    for key, mine in one.state_dict().items():
        assert torch.equal(mine, theirs[key]), key


@pytest.mark.parametrize(
    ("family", "make", "write"),
    [
        ("sd1", tiny_pipeline, write_single_file),
        ("sd2", sd2_pipeline, write_sd2_file),
        ("sdxl", sdxl_pipeline, write_sdxl_file),
    ],
)
def test_a_single_file_is_the_same_model_as_its_folder(
    family: str, make: Any, write: Any, tmp_path: Path
) -> None:
    pipeline = make(tmp_path / "words")
    pipeline.save_pretrained(tmp_path / "folder")
    file = write(pipeline, tmp_path / "my model.safetensors")
    assert family_of("auto", file) is FAMILIES[family]
    assert FAMILIES[family].check(file) == []
    prediction = "auto" if family == "sdxl" else "v_prediction"
    one = _load(family, file, configs=tmp_path / "folder", prediction=prediction)
    other = _load(family, tmp_path / "folder")
    assert one.name == "my model"
    assert one.encoder_id == other.encoder_id
    _same(one.denoiser, other.denoiser)
    assert one.sample(["a"], [1], 2, 3.0)[0].tobytes() == other.sample(["a"], [1], 2, 3.0)[0].tobytes()
    one.release_encoders()
    assert len(one.encode_prompts(["a"]).embeddings) == 1


def test_a_file_of_version_3_holds_everything_but_t5s_vocabulary(tmp_path: Path) -> None:
    pipeline = sd3_pipeline(tmp_path / "words")
    pipeline.save_pretrained(tmp_path / "folder")
    file = write_sd3_file(pipeline, tmp_path / "sd3.safetensors")
    assert family_of("auto", file) is FAMILIES["sd3"]
    (notice,) = FAMILIES["sd3"].check(file)
    assert "tokenizer of t5xxl" in notice.what
    assert not notice.fatal
    other = _load("sd3", tmp_path / "folder", t5_tokens=T5_TOKENS)
    # The configuration of the transformer is read off its shapes, not taken from the folder.
    assert other.denoiser.config.num_layers == 2  # type: ignore[union-attr]
    config = tmp_path / "folder" / "transformer" / "config.json"
    settings = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps(settings | {"num_layers": 7, "qk_norm": None}), "utf-8")
    words = tmp_path / "folder"
    options = {"configs": tmp_path / "folder", "t5_tokens": T5_TOKENS}
    one = _load("sd3", file, text_encoders=words / "tokenizer_3", **options)
    _same(one.denoiser, other.denoiser)
    assert one.encoder_id == other.encoder_id
    without = _load("sd3", file, **options)
    assert not without.encode_prompts(["a"]).embeddings[:, -T5_TOKENS:].any()


def test_a_fine_tune_of_v_is_known_by_its_marks(tmp_path: Path) -> None:
    pipeline = sdxl_pipeline(tmp_path / "words")
    pipeline.save_pretrained(tmp_path / "folder")
    plain = write_sdxl_file(pipeline, tmp_path / "plain.safetensors")
    marked = write_sdxl_file(pipeline, tmp_path / "marked.safetensors", ("v_pred", "ztsnr"))
    told = {"modelspec.prediction_type": "v"}
    said = write_sdxl_file(pipeline, tmp_path / "said.safetensors", metadata=told)
    configs = tmp_path / "folder"
    models = {file.stem: _load("sdxl", file, configs=configs) for file in (plain, marked, said)}
    facts = {stem: (model.prediction, model.zero_snr) for stem, model in models.items()}
    assert facts == {
        "plain": ("epsilon", False),
        "marked": ("v_prediction", True),
        "said": ("v_prediction", False),
    }
    ends = {stem: float(model.alphas_cumprod[-1]) for stem, model in models.items()}  # type: ignore[attr-defined]
    assert ends["marked"] == 0
    assert ends["plain"] == ends["said"] > 0.001
    # What the artist says wins over the marks.
    told_off = _load("sdxl", marked, configs=configs, zero_snr="off", prediction="epsilon")
    assert (told_off.prediction, told_off.zero_snr) == ("epsilon", False)
    with pytest.raises(ScdpoError, match="nothing to learn"):
        _load("sdxl", plain, configs=configs, zero_snr="on")


def test_at_the_end_of_a_zero_snr_schedule_errors_and_images_stay_numbers(tmp_path: Path) -> None:
    pipeline = sdxl_pipeline(tmp_path / "words")
    pipeline.save_pretrained(tmp_path / "folder")
    file = write_sdxl_file(pipeline, tmp_path / "marked.safetensors", ("v_pred", "ztsnr"))
    model = _load("sdxl", file, configs=tmp_path / "folder")
    latents, noise = torch.randn((2, 1, *model.latent_shape()), generator=torch.Generator().manual_seed(0))
    words, last = model.encode_prompts(["a"]), torch.tensor([999])
    with torch.no_grad():
        residual = model.residuals(latents, noise, last, words, "native")
        answer = model._predict(noise, last, words)  # type: ignore[attr-defined]
        # v = 0 * eps - 1 * x0 where nothing of the image is left.
        torch.testing.assert_close(residual, answer + latents)
        assert torch.equal(
            model.errors(latents, noise, last, words, "exact"), torch.zeros(1)
        )  # alpha_bar is 0, and any answer implies the same noise
    (image,) = model.sample(["a"], [1], 3, 3.0)
    low, high = image.convert("L").getextrema()
    assert low < high


def test_sizes_default_to_those_of_an_uncropped_image(tmp_path: Path) -> None:
    model = _load("sdxl", tiny_folder("sdxl", tmp_path / "xl"))
    generator = torch.Generator().manual_seed(0)
    noisy, times = torch.randn((2, *model.latent_shape((12, 8))), generator=generator), torch.tensor([9, 9])
    words = model.encode_prompts(["a", "b"])
    plain, cropped = (torch.tensor([[8, 12, top, 0, 8, 12]] * 2) for top in (0, 4))

    def answer(sizes: Tensor | None) -> Tensor:
        given = type(words)(words.embeddings, words.pooled, sizes)
        with torch.no_grad():
            return model._predict(noisy, times, given)  # type: ignore[attr-defined,no-any-return]

    assert torch.equal(answer(None), answer(plain))
    assert not torch.equal(answer(None), answer(cropped))


def test_the_kind_of_a_version_2_file_is_told_by_one_bias(tmp_path: Path) -> None:
    from scdpo_core.families.sd2 import _TELLING

    pipeline = sd2_pipeline(tmp_path / "words")
    pipeline.scheduler.register_to_config(prediction_type="epsilon")
    pipeline.save_pretrained(tmp_path / "folder")
    plain = write_sd2_file(pipeline, tmp_path / "plain.safetensors")
    # A tiny model has no such layer, so that its configuration counts.
    assert _load("sd2", plain, configs=tmp_path / "folder").prediction == "epsilon"
    for spread, prediction in ((0.2, "v_prediction"), (0.05, "epsilon")):
        bias = torch.tensor([spread, -spread])
        file = tmp_path / f"{prediction}.safetensors"
        save_file(load_file(plain) | {_TELLING: bias}, str(file))
        assert _load("sd2", file, configs=tmp_path / "folder").prediction == prediction


def test_another_vae_replaces_the_models_own(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path / "words")
    pipeline.save_pretrained(tmp_path / "folder")
    other = tiny_pipeline(tmp_path / "words", seed=5)
    file = write_vae_file(other, tmp_path / "vae.safetensors")
    other.vae.save_pretrained(tmp_path / "other" / "vae", safe_serialization=True)
    own = _load("sd1", tmp_path / "folder")
    ids = {own.encoder_id}
    for place in (file, tmp_path / "other", tmp_path / "other" / "vae"):
        model = _load("sd1", tmp_path / "folder", vae=place, configs=tmp_path / "folder")
        ids.add(model.encoder_id)
        assert model._encoders is not None  # type: ignore[attr-defined]
        _same(model._encoders.vae, other.vae)  # type: ignore[attr-defined]
    assert len(ids) == 2
    foreign = flux_pipeline(tmp_path / "words")
    foreign.vae.save_pretrained(tmp_path / "foreign", safe_serialization=True)
    with pytest.raises(ScdpoError, match=r"16 channels and .* takes 4"):
        _load("sd1", tmp_path / "folder", vae=tmp_path / "foreign")


def test_text_encoders_come_from_the_artists_folder(tmp_path: Path) -> None:
    pipeline = flux_pipeline(tmp_path / "words")
    whole = tmp_path / "whole"
    pipeline.save_pretrained(whole)
    # A folder without its text encoders, as artists have the transformer alone.
    bare = tmp_path / "bare"
    shutil.copytree(whole, bare)
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.rmtree(bare / part)
    texts = tmp_path / "texts"
    texts.mkdir()
    write_text_file(pipeline.text_encoder, texts / "clip_l.safetensors")
    write_text_file(pipeline.text_encoder_2, texts / "t5xxl_fp16.safetensors")
    pipeline.tokenizer_2.save_pretrained(texts / "t5_tokenizer")
    expected = _load("flux", whole, t5_tokens=T5_TOKENS)
    told = " ".join(problem.what for problem in FAMILIES["flux"].check(bare))
    assert "clip_l" in told
    assert "--text-encoders" in told
    for place in (texts, whole):
        model = _load("flux", bare, t5_tokens=T5_TOKENS, text_encoders=place, configs=whole)
        assert model.encoder_id == expected.encoder_id
        assert torch.equal(
            model.encode_prompts(["a cat"]).embeddings, expected.encode_prompts(["a cat"]).embeddings
        )


def test_without_t5_version_3_sees_zeros_in_its_place(tmp_path: Path) -> None:
    sd3_pipeline(tmp_path / "words", t5=False).save_pretrained(tmp_path / "folder")
    (notice,) = FAMILIES["sd3"].check(tmp_path / "folder")
    assert "zeros take its place" in notice.what
    assert not notice.fatal
    model = _load("sd3", tmp_path / "folder", t5_tokens=T5_TOKENS)
    words = model.encode_prompts(["a cat"]).embeddings
    assert not words[:, -T5_TOKENS:].any()
    assert words[:, :-T5_TOKENS].any()
    assert model.sample(["a cat"], [1], 2, 3.0)[0].size == (16, 16)
    longer = _load("sd3", tmp_path / "folder", t5_tokens=2 * T5_TOKENS)
    assert longer.encoder_id != model.encoder_id
    with pytest.raises(ScdpoError, match="beyond 32 pixels"):
        model.latent_shape((64, 64))


def test_the_guidance_embedding_is_told_alike_in_training_and_as_asked_in_drawing(tmp_path: Path) -> None:
    folder = tiny_folder("flux", tmp_path / "dev")
    seen: list[list[float]] = []
    model = _load("flux", folder, t5_tokens=T5_TOKENS, guidance=1.5)
    real = model.denoiser.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["guidance"].tolist())
        return real(*args, **kwargs)

    model.denoiser.forward = forward  # type: ignore[method-assign]
    latents, noise = torch.randn((2, 2, *model.latent_shape()), generator=torch.Generator().manual_seed(0))
    words = model.encode_prompts(["a", "b"])
    with torch.no_grad():
        model.errors(latents, noise, torch.tensor([10.0, 900.0]), words, "native")
    model.sample(["a"], [0], 1, 3.5)
    assert seen == [[1.5, 1.5], [3.5]]

    flux_pipeline(tmp_path / "words", guided=False).save_pretrained(tmp_path / "schnell")
    schnell = _load("flux", tmp_path / "schnell", t5_tokens=T5_TOKENS)
    assert schnell.sample(["a"], [0], 1, 3.5)[0].size == (16, 16)


def test_a_file_with_holes_is_told_in_a_sentence(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path / "words")
    pipeline.save_pretrained(tmp_path / "folder")
    file = write_single_file(pipeline, tmp_path / "model.safetensors")
    whole = load_file(file)
    for hole, sentence in (
        ("model.diffusion_model.middle_block.0.in_layers.2.weight", "weights of the unet are missing"),
        ("first_stage_model.decoder.conv_in.bias", "weights of the vae are missing"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "clip_l lacks"),
    ):
        save_file({name: tensor for name, tensor in whole.items() if name != hole}, str(file))
        with pytest.raises(ScdpoError, match=f"could not be loaded.*{sentence}"):
            _load("sd1", file, configs=tmp_path / "folder")


def test_weights_in_eight_bits_are_widened(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path / "words")
    pipeline.save_pretrained(tmp_path / "folder")
    file = write_single_file(pipeline, tmp_path / "model.safetensors")
    narrow = {
        name: tensor.to(torch.float8_e4m3fn) if name.startswith("model.diffusion_model.") else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(narrow, str(file))
    model = FAMILIES["sd1"].load(file, CPU, torch.bfloat16, LoadOptions(configs=tmp_path / "folder"))
    assert {weight.dtype for weight in model.denoiser.parameters()} == {torch.bfloat16}
    expected = narrow["model.diffusion_model.out.2.bias"].to(torch.bfloat16)
    assert torch.equal(model.denoiser.get_parameter("conv_out.bias"), expected)


@pytest.mark.parametrize("factor", ["scale_weight", "weight_scale"])
def test_scaled_eight_bit_weights_get_their_factor_back(tmp_path: Path, factor: str) -> None:
    pipeline = tiny_pipeline(tmp_path / "words")
    pipeline.save_pretrained(tmp_path / "folder")
    file = write_single_file(pipeline, tmp_path / "model.safetensors")
    whole = load_file(file)
    name = "model.diffusion_model.time_embed.0.weight"
    rows = "model.diffusion_model.time_embed.2.weight"
    scaled = dict(whole)
    scale = whole[name].abs().max() / 448
    each = whole[rows].abs().amax(1) / 448
    scaled[name] = (whole[name] / scale).to(torch.float8_e4m3fn)
    scaled[rows] = (whole[rows] / each[:, None]).to(torch.float8_e4m3fn)
    scaled[f"{name.removesuffix('weight')}{factor}"] = scale.reshape(1)
    scaled[f"{rows.removesuffix('weight')}{factor}"] = each
    scaled["model.diffusion_model.scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    save_file(scaled, str(file))
    model = FAMILIES["sd1"].load(file, CPU, torch.float32, LoadOptions(configs=tmp_path / "folder"))
    for loaded, key in (("time_embedding.linear_1", name), ("time_embedding.linear_2", rows)):
        weight = model.denoiser.get_parameter(f"{loaded}.weight")
        # Three bits of mantissa: within a sixteenth.
        torch.testing.assert_close(weight, whole[key], rtol=1 / 16, atol=float(whole[key].abs().max()) / 448)


def test_what_is_too_large_for_the_card_is_not_called_broken(tmp_path: Path) -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError), in_a_sentence(tmp_path):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match=r"^MPS backend"), in_a_sentence(tmp_path):
        raise RuntimeError("MPS backend out of memory")
    with pytest.raises(ScdpoError, match="could not be loaded: half of it"), in_a_sentence(tmp_path):
        raise RuntimeError("half of it")
