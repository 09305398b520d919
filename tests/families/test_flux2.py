"""FLUX.2 klein: packed latents, three layers of Qwen3, files in Black Forest Labs' names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline, compute_empirical_mu
from safetensors.torch import save_file
from torch import Tensor

from scdpo_core.families import FAMILIES, LoadOptions, family_of
from scdpo_core.families.flux2 import position_ids, shift
from scdpo_core.types import ScdpoError
from tests.support.original_files import original_flux2
from tests.support.tiny import original_vae
from tests.support.tiny_families import flux2_pipeline
from tests.support.tiny_language import chat_tokenizer, language_model

CPU = torch.device("cpu")


def test_places_count_rows_columns_and_words() -> None:
    latents, words = torch.zeros(1, 4, 2, 3), torch.zeros(1, 5, 8)
    image = Flux2KleinPipeline._prepare_latent_ids(latents)[0]
    text = Flux2KleinPipeline._prepare_text_ids(words)[0]
    assert torch.equal(position_ids(2, 3, 1, CPU), image.float())
    assert torch.equal(position_ids(1, 1, 5, CPU), text.float())


def test_the_shift_by_hand() -> None:
    # 4,096 tokens (1024 pixels): 1.15 at 200 steps, 2.26 at 10; at 105 half way between.
    few, many = 8.73809524e-05 * 4096 + 1.89833333, 0.00016927 * 4096 + 0.45666666
    assert shift(4096, 10) == pytest.approx(few)
    assert shift(4096, 200) == pytest.approx(many)
    assert shift(4096, 105) == pytest.approx((few + many) / 2)
    for tokens, steps in ((256, 4), (4096, 28), (9216, 50)):
        assert shift(tokens, steps) == pytest.approx(compute_empirical_mu(tokens, steps))


def _single_files(pipeline: Any, folder: Path, prefix: str = "") -> tuple[Path, Path]:
    """The transformer and the VAE as Black Forest Labs name them."""
    folder.mkdir(exist_ok=True)
    transformer = original_flux2(pipeline.transformer.state_dict())
    save_file(
        {f"{prefix}{name}": tensor.contiguous() for name, tensor in transformer.items()},
        folder / "flux2.safetensors",
    )
    inside = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}
    vae: dict[str, Tensor] = {}
    for name, tensor in original_vae(pipeline.vae).items():
        part, _, rest = name.partition(".")
        vae[f"{inside.get(part, part)}.{rest}"] = tensor.contiguous()
    save_file(vae, folder / "ae.safetensors")
    return folder / "flux2.safetensors", folder / "ae.safetensors"


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_single_files_are_the_same_model_as_the_folder(prefix: str, tmp_path: Path) -> None:
    pipeline = flux2_pipeline(tmp_path / "words")
    whole = tmp_path / "whole"
    pipeline.save_pretrained(whole)
    base, vae = _single_files(pipeline, tmp_path / "files", prefix)
    # Heads are 128 wide in every real one, so that the tiny one's number is not read off its shapes.
    expected = FAMILIES["flux2"].load(whole, CPU, torch.float32)
    assert family_of("auto", base).name == "flux2"
    told = " ".join(problem.what for problem in FAMILIES["flux2"].check(base))
    assert "the VAE" in told and "text encoder qwen_3" in told
    options = LoadOptions(vae=vae, text_encoders=whole, configs=whole)
    assert FAMILIES["flux2"].check(base, options) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scdpo_core.families.flux2._HEAD", 16)
        model = FAMILIES["flux2"].load(base, CPU, torch.float32, options)
    theirs = expected.denoiser.state_dict()
    assert model.denoiser.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.denoiser.state_dict().items())
    assert model.encoder_id == expected.encoder_id
    images = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(model.encode_images(images), expected.encode_images(images))


def test_another_familys_vae_is_refused(tmp_path: Path) -> None:
    pipeline = flux2_pipeline(tmp_path / "words")
    whole = tmp_path / "whole"
    pipeline.save_pretrained(whole)
    plain = {name: tensor for name, tensor in original_vae(pipeline.vae).items() if "bn." not in name}
    save_file({name: tensor.contiguous() for name, tensor in plain.items()}, tmp_path / "ae.safetensors")
    with pytest.raises(ScdpoError, match=r"the VAE lacks bn\.running_mean: .* another kind of VAE"):
        FAMILIES["flux2"].load(
            whole, CPU, torch.float32, LoadOptions(vae=tmp_path / "ae.safetensors", configs=whole)
        )


def test_a_text_encoder_of_the_other_size_is_refused(tmp_path: Path) -> None:
    flux2_pipeline(tmp_path / "words").save_pretrained(tmp_path / "whole")
    texts = tmp_path / "whole" / "text_encoder"
    shutil.rmtree(texts)
    language_model("Qwen3Model", 64, layers=28).save_pretrained(texts)
    chat_tokenizer().save_pretrained(tmp_path / "whole" / "tokenizer")
    with pytest.raises(ScdpoError, match="takes words of 96 numbers and its text encoder gives 192"):
        FAMILIES["flux2"].load(tmp_path / "whole", CPU, torch.float32)
