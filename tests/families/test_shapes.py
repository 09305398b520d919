"""The configurations that ship with us, against the original files' shapes at full size; without weights."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers
from torch import Tensor

from scdpo_core.families import FAMILIES
from scdpo_core.families.chroma import adapt as adapt_chroma
from scdpo_core.families.detect import of_header
from scdpo_core.families.flux import adapt as adapt_flux
from scdpo_core.families.flux2 import adapt as adapt_flux2
from scdpo_core.families.qwen_image import adapt as adapt_qwen_image
from scdpo_core.families.sd3 import adapt as adapt_sd3
from scdpo_core.families.text_encoders import CONFIGS
from scdpo_core.families.vaes import latent_space
from scdpo_core.families.z_image import adapt as adapt_z_image
from scdpo_core.io.safetensors_header import Header
from tests.support.original_files import chroma_shapes, flux_shapes, original_flux2, original_z_image
from tests.support.tiny import original_unet


def _config(family: str, part: str) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((CONFIGS / family / part / "config.json").read_text("utf-8"))
    return settings


def _meta(cls: Any, config: dict[str, Any]) -> dict[str, Tensor]:
    with torch.device("meta"):
        weights: dict[str, Tensor] = cls.from_config(config).state_dict()
    return weights


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_shipped_configurations_fit_the_original_unets_at_full_size(family: str) -> None:
    config = _config(family, "unet")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    originals = {f"model.diffusion_model.{name}": tensor for name, tensor in original_unet(unet).items()}
    # As counted in the original files.
    assert len(originals) == {"sd1": 686, "sd2": 686, "sdxl": 1680}[family]
    assert originals["model.diffusion_model.input_blocks.0.0.weight"].shape == (320, 4, 3, 3)
    parameters = sum(tensor.numel() for tensor in originals.values())
    millions = {"sd1": 860, "sd2": 866, "sdxl": 2567}[family]
    assert round(parameters / 1e6) == millions


def _joint_blocks(
    layers: int, width: int, places: int, *, norms: bool, dual: int
) -> dict[str, tuple[int, ...]]:
    """The shapes of an original SD 3 transformer."""
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, places**2, width),
        "x_embedder.proj.weight": (width, 16, 2, 2),
        "context_embedder.weight": (width, 4096),
        "y_embedder.mlp.0.weight": (width, 2048),
    }
    for number in range(layers):
        block = f"joint_blocks.{number}.x_block"
        shapes[f"{block}.attn.qkv.weight"] = (3 * width, width)
        if norms:
            shapes[f"{block}.attn.ln_q.weight"] = (64,)
        if number < dual:
            shapes[f"{block}.attn2.qkv.weight"] = (3 * width, width)
    return shapes


@pytest.mark.parametrize(
    ("layers", "width", "places", "norms", "dual", "billions"),
    [(24, 1536, 192, False, 0, 2.03), (24, 1536, 384, True, 13, 2.24), (38, 2432, 192, True, 0, 8.06)],
    ids=["3 medium", "3.5 medium", "3.5 large"],
)
def test_every_version_3_is_configured_from_its_shapes(
    layers: int, width: int, places: int, norms: bool, dual: int, billions: float
) -> None:
    changes = adapt_sd3(_joint_blocks(layers, width, places, norms=norms, dual=dual))
    assert changes["num_attention_heads"] == width // 64
    assert changes["pos_embed_max_size"] == places
    assert changes["dual_attention_layers"] == tuple(range(dual))
    config = _config("sd3", "transformer")
    weights = _meta(SD3Transformer2DModel, config | changes)
    learnt = sum(tensor.numel() for name, tensor in weights.items() if name != "pos_embed.pos_embed")
    assert learnt / 1e9 == pytest.approx(billions, abs=0.006)


@pytest.mark.parametrize(
    ("double", "single", "guided", "billions"),
    [(19, 38, True, 11.90), (19, 38, False, 11.89), (8, 38, True, 8.16)],
    ids=["dev", "schnell", "cut down"],
)
def test_every_flux_is_configured_from_its_shapes(
    double: int, single: int, guided: bool, billions: float
) -> None:
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    shapes = flux_shapes(double, single, guided=guided)
    originals = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    changes = adapt_flux(shapes)
    assert changes == {
        "num_layers": double,
        "num_single_layers": single,
        "num_attention_heads": 24,
        "guidance_embeds": guided,
    }
    config = _config("flux", "transformer")
    weights = _meta(FluxTransformer2DModel, config | changes)
    assert sum(tensor.numel() for tensor in weights.values()) / 1e9 == pytest.approx(billions, abs=0.006)
    named = convert_flux_transformer_checkpoint_to_diffusers(originals)
    assert {name: tensor.shape for name, tensor in named.items()} == {
        name: tensor.shape for name, tensor in weights.items()
    }


def test_z_image_is_configured_from_its_shapes() -> None:
    config = _config("z_image", "transformer")
    weights = _meta(ZImageTransformer2DModel, config)
    # As published: 6 billion.
    assert sum(tensor.numel() for tensor in weights.values()) / 1e9 == pytest.approx(6.155, abs=0.001)
    originals = original_z_image(weights)
    assert originals["layers.29.attention.qkv.weight"].shape == (3 * 3840, 3840)
    shapes = {name: tuple(tensor.shape) for name, tensor in originals.items()}
    changes = adapt_z_image(shapes)
    assert changes == {name: config[name] for name in changes}
    assert of_header(Header(shapes)).family == "z_image"
    named = convert_z_image_transformer_checkpoint_to_diffusers(dict(originals))
    assert {name: tensor.shape for name, tensor in named.items()} == {
        name: tensor.shape for name, tensor in weights.items()
    }


@pytest.mark.parametrize(
    ("double", "single", "heads", "words", "billions"),
    [(5, 20, 24, 7680, 3.88), (8, 24, 32, 12288, 9.08)],
    ids=["klein 4B", "klein 9B"],
)
def test_every_klein_is_configured_from_its_shapes(
    double: int, single: int, heads: int, words: int, billions: float
) -> None:
    from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers

    sizes = {
        "num_layers": double,
        "num_single_layers": single,
        "num_attention_heads": heads,
        "joint_attention_dim": words,
    }
    weights = _meta(Flux2Transformer2DModel, _config("flux2", "transformer") | sizes)
    assert sum(tensor.numel() for tensor in weights.values()) / 1e9 == pytest.approx(billions, abs=0.01)
    originals = original_flux2(weights)
    shapes = {name: tuple(tensor.shape) for name, tensor in originals.items()}
    assert adapt_flux2(shapes) == sizes
    assert of_header(Header(shapes)).family == "flux2"
    named = convert_flux2_transformer_checkpoint_to_diffusers(dict(originals))
    assert {name: tensor.shape for name, tensor in named.items()} == {
        name: tensor.shape for name, tensor in weights.items()
    }


@pytest.mark.parametrize(
    ("double", "single", "billions"), [(19, 38, 8.90), (8, 38, 6.41)], ids=["whole", "cut down"]
)
def test_every_chroma_is_configured_from_its_shapes(double: int, single: int, billions: float) -> None:
    from diffusers.loaders.single_file_utils import convert_chroma_transformer_checkpoint_to_diffusers

    shapes = chroma_shapes(double, single)
    changes = adapt_chroma(shapes)
    assert changes == {
        "num_layers": double,
        "num_single_layers": single,
        "num_attention_heads": 24,
        "approximator_num_channels": 64,
        "approximator_hidden_dim": 5120,
        "approximator_layers": 5,
    }
    weights = _meta(ChromaTransformer2DModel, _config("chroma", "transformer") | changes)
    assert sum(tensor.numel() for tensor in weights.values()) / 1e9 == pytest.approx(billions, abs=0.006)
    originals = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    named = convert_chroma_transformer_checkpoint_to_diffusers(originals)
    assert {name: tensor.shape for name, tensor in named.items()} == {
        name: tensor.shape for name, tensor in weights.items()
    }


def test_qwen_image_is_configured_from_its_shapes() -> None:
    config = _config("qwen_image", "transformer")
    weights = _meta(QwenImageTransformer2DModel, config)
    # As published: 20 billion.
    assert sum(tensor.numel() for tensor in weights.values()) / 1e9 == pytest.approx(20.43, abs=0.005)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    changes = adapt_qwen_image(shapes)
    assert changes == {name: config[name] for name in changes}
    assert of_header(Header(shapes)).family == "qwen_image"


def test_the_vae_of_qwen_image_ships_its_configuration() -> None:
    config = _config("qwen_image", "vae")
    weights = _meta(AutoencoderKLQwenImage, config)
    assert sum(tensor.numel() for tensor in weights.values()) / 1e6 == pytest.approx(126.89, abs=0.01)
    space = latent_space(config)
    assert (space.channels, space.scale) == (16, 8)


# Millions of parameters, as published.
TEXTS = {
    "clip_l": 123,
    "clip_h": 340,
    "clip_g": 695,
    "t5xxl": 4762,
    "qwen_3_4b": 4022,
    "qwen_3": 4022,
    "qwen_2.5_vl_7b": 7071,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_text_encoder_ships_its_configuration(family: str) -> None:
    import transformers

    for part in FAMILIES[family].layout.texts:  # type: ignore[attr-defined]
        cls = getattr(transformers, part.model)
        config = cls.config_class.from_pretrained(str(CONFIGS / family / part.folder), local_files_only=True)
        with torch.device("meta"):
            model = cls(config)
        millions = sum(weight.numel() for weight in model.parameters()) / 1e6
        # With or without a projection of a million.
        assert millions == pytest.approx(TEXTS[part.stem], abs=2)
        if part.own_tokenizer:
            assert (CONFIGS / family / part.tokenizer / "tokenizer_config.json").is_file()


@pytest.mark.parametrize(
    ("family", "channels", "scale", "shift"),
    [
        ("sd1", 4, 0.18215, None),
        ("sd2", 4, 0.18215, None),
        ("sdxl", 4, 0.13025, None),
        ("sd3", 16, 1.5305, 0.0609),
        ("flux", 16, 0.3611, 0.1159),
        ("z_image", 16, 0.3611, 0.1159),
        ("chroma", 16, 0.3611, 0.1159),
    ],
)
def test_every_vae_ships_its_configuration(
    family: str, channels: int, scale: float, shift: float | None
) -> None:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL.from_config(_config(family, "vae"))
    assert (vae.config.latent_channels, vae.config.scaling_factor) == (channels, scale)
    assert vae.config.shift_factor == shift
    # 83.65 million with four channels; the flows' have more channels and no convolution round the latents.
    millions = sum(weight.numel() for weight in vae.parameters()) / 1e6
    assert millions == pytest.approx(83.65 if channels == 4 else 83.82, abs=0.005)
