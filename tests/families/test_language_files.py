"""Families whose words are a language model's, from single files, as artists and ComfyUI have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from scdpo_core.families import FAMILIES, LoadedModel, LoadOptions
from tests.support.original_files import original_z_image, write_vae_file
from tests.support.tiny_families import qwen_image_pipeline, tiny_folder, z_image_pipeline

CPU = torch.device("cpu")


def _load(family: str, base: Path, **options: Any) -> LoadedModel:
    return FAMILIES[family].load(base, CPU, torch.float32, LoadOptions(**options))


def test_z_image_is_a_file_beside_a_folder(tmp_path: Path) -> None:
    pipeline = z_image_pipeline(tmp_path / "words")
    whole = tmp_path / "whole"
    pipeline.save_pretrained(whole)
    tensors = original_z_image(pipeline.transformer.state_dict())
    expected = _load("z_image", whole)
    words = expected.encode_prompts(["a cat"])
    for prefix in ("", "model.diffusion_model."):
        file = tmp_path / f"z_image{len(prefix)}.safetensors"
        save_file({f"{prefix}{name}": tensor.contiguous() for name, tensor in tensors.items()}, file)
        told = " ".join(problem.what for problem in FAMILIES["z_image"].check(file))
        assert "lacks the VAE" in told and "lacks the text encoder qwen_3_4b" in told
        # One folder has all the rest: text encoder, tokenizer and VAE.
        model = _load("z_image", file, text_encoders=whole, configs=whole)
        assert torch.equal(model.encode_prompts(["a cat"]).embeddings, words.embeddings)
        (mine,) = model.sample(["a cat"], [1], 2, 3.0)
        (theirs,) = expected.sample(["a cat"], [1], 2, 3.0)
        assert mine.tobytes() == theirs.tobytes()
    # As ComfyUI's users have them: flat files, and the tokenizer where ComfyUI keeps it.
    flat = tmp_path / "flat"
    flat.mkdir()
    encoder = {f"model.{name}": tensor for name, tensor in pipeline.text_encoder.state_dict().items()}
    save_file(encoder, flat / "qwen_3_4b.safetensors")
    vae = write_vae_file(pipeline, tmp_path / "ae.safetensors")
    (problem,) = FAMILIES["z_image"].check(file, LoadOptions(vae=vae, text_encoders=flat))
    assert "qwen25_tokenizer" in problem.what
    pipeline.tokenizer.save_pretrained(flat / "qwen25_tokenizer")
    model = _load("z_image", file, text_encoders=flat, vae=vae, configs=whole)
    assert torch.equal(model.encode_prompts(["a cat"]).embeddings, words.embeddings)


def test_8_bits_with_a_factor_are_read_in_z_image_too(tmp_path: Path) -> None:
    pipeline = z_image_pipeline(tmp_path / "words")
    whole = tmp_path / "whole"
    pipeline.save_pretrained(whole)
    tensors = original_z_image(pipeline.transformer.state_dict())
    name = "layers.0.attention.qkv.weight"
    factor = tensors[name].abs().max() / 448
    stored = tensors | {
        name: (tensors[name] / factor).to(torch.float8_e4m3fn),
        name.replace("weight", "weight_scale"): factor,
    }
    save_file({each: tensor.contiguous() for each, tensor in stored.items()}, tmp_path / "fp8.safetensors")
    model = _load("z_image", tmp_path / "fp8.safetensors", text_encoders=whole, configs=whole)
    query = model.denoiser.get_submodule("layers.0.attention.to_q").weight
    expected = (tensors[name] / factor).to(torch.float8_e4m3fn).float() * factor
    torch.testing.assert_close(query, expected.chunk(3)[0])


def test_qwen_image_is_a_file_beside_a_folder(tmp_path: Path) -> None:
    whole = tiny_folder("qwen_image", tmp_path / "whole")
    pipeline = qwen_image_pipeline(tmp_path / "words")
    file = tmp_path / "qwen_image.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in pipeline.transformer.state_dict().items()}, file)
    told = " ".join(problem.what for problem in FAMILIES["qwen_image"].check(file))
    assert "lacks the VAE" in told and "lacks the text encoder qwen_2.5_vl_7b" in told
    model = _load("qwen_image", file, text_encoders=whole, configs=whole)
    expected = _load("qwen_image", whole)
    assert {name: weight.shape for name, weight in model.denoiser.state_dict().items()} == {
        name: weight.shape for name, weight in expected.denoiser.state_dict().items()
    }
    (mine,) = model.sample(["a cat"], [1], 2, 3.0)
    (theirs,) = expected.sample(["a cat"], [1], 2, 3.0)
    assert mine.tobytes() == theirs.tobytes()


def test_padded_prompts_give_the_answers_that_they_give_alone(tmp_path: Path) -> None:
    for family in ("z_image", "qwen_image"):
        model = _load(family, tiny_folder(family, tmp_path / family))
        noisy = torch.randn((2, *model.latent_shape()), generator=torch.Generator().manual_seed(0))
        times = torch.tensor([300.0, 700.0])
        # Longer by more than the 32 tokens to which Z-Image fills up.
        both = model.encode_prompts(["a cat", "a cat " * 9])
        together = model.predict(noisy, times, both)
        for index, prompt in enumerate(["a cat", "a cat " * 9]):
            alone = model.predict(
                noisy[index : index + 1], times[index : index + 1], model.encode_prompts([prompt])
            )
            torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-3, atol=1e-4)
