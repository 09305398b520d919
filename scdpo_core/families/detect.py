"""What kind of model a file or folder is, told from names and shapes alone, before any long work."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..family_info import FAMILY_INFO, trainable
from ..io.safetensors_header import Header, read_header
from ..types import ScdpoError
from .component_layout import DENOISER_PREFIX, VAE_PREFIXES

_LATENT_CHANNELS = 4
_SQUARES = 64
"""16 channels of latents in squares of 2x2 cells."""
_BESIDE_QWEN_IMAGE = {
    "time_text_embed.addition_t_embedding.": "a Qwen-Image model of layers",
    "__index_timestep_zero__": "a Qwen-Image model that edits images (Edit 2511)",
    "transformer_blocks.0.img_mlp.w1.": "a Lens model",
}
_BESIDE_Z_IMAGE = {
    "siglip_embedder.": "a Z-Image model that also reads images (Omni or Edit)",
    "dec_net.": "a Z-Image model of pixels, without a VAE",
    "clip_text_pooled_proj.": "a NewBie model",
}


@dataclass(frozen=True)
class Kind:
    """What a file or folder is.

    Attributes:
        family: its name in `FAMILIES`; None if it cannot be trained.
        title: with its article: 'a Stable Diffusion XL model'.
        advice: what to do when it cannot be trained; may be empty.
    """

    family: str | None
    title: str
    advice: str = ""


def detect(path: Path) -> Kind:
    """What a diffusers folder or a .safetensors file is.

    Raises:
        ScdpoError: it cannot be read; says why and what to do.
    """
    return _of_folder(path) if path.is_dir() else of_header(read_header(path))


def of_header(header: Header) -> Kind:
    """What a file with this header is."""
    for recognise in (_foreign, _transformer, _unet, _single_part):
        kind = recognise(header)
        if kind is not None:
            return kind
    return Kind(None, "no model that is known here", _known())


def _known() -> str:
    titles = ", ".join(info.title for info in trainable())
    return f"Models of these families can be trained: {titles}."


def _plain(family: str) -> Kind:
    return Kind(family, f"a {FAMILY_INFO[family].title} model")


_TEXT_ENCODERS = (
    "text_model.",
    "encoder.block.",
    "transformer.resblocks.",
    "cond_stage_model.",
    "model.embed_tokens.",
    "model.language_model.",
    "language_model.",
    "embed_tokens.",
)
_LORA = re.compile(r"lora_(unet|te\d?|transformer)_|\.lora[_.](A|B|up|down|linear_layer)|\.(hada|lokr)_w\d")
# Names that no trainable model has, and what they mean.
_FOREIGN: tuple[tuple[str, str], ...] = (
    (r"control_model\.|controlnet_|input_hint_block\.", "a ControlNet"),
    (r"(emb_params|string_to_param|clip_[lg])$", "a textual inversion"),
    (r".*\.(absmax|quant_state|quant_map)", "a 4-bit or 8-bit bitsandbytes file"),
    (r"(model\.diffusion_model\.)?(nerf_|img_in_patch\.)", "a Chroma1-Radiance model, which draws pixels"),
    (r"(model\.diffusion_model\.)?(single_stream|double_stream)_modulation", "a FLUX.2 model"),
    (r"(model\.diffusion_model\.)?txt_in\.individual_token_refiner\.", "a Hunyuan Video model"),
    (r"(model\.diffusion_model\.)?double_layers\.", "an AuraFlow model"),
    (r"(model\.diffusion_model\.)?(head\.modulation|patchify_proj\.)", "a video model"),
    (r"edm_(mean|std)$|edm_vpred\.", "an EDM model (such as Playground 2.5 or CosXL)"),
    (
        r"clip_txt_mapper\.|(model\.diffusion_model\.)?down_blocks\.\d+\.0\.channelwise",
        "a Stable Cascade model",
    ),
)


def _foreign(header: Header) -> Kind | None:
    if any(_LORA.search(name) for name in header.shapes):
        return Kind(None, "a LoRA, not a base model", "Give the model that it was made for.")
    for pattern, title in _FOREIGN:
        if any(re.match(pattern, name) for name in header.shapes):
            return Kind(None, title, _known())
    return None


def _transformer(header: Header) -> Kind | None:
    if header.begins(f"{DENOISER_PREFIX}joint_blocks.", "joint_blocks."):
        return _plain("sd3")
    if header.begins(f"{DENOISER_PREFIX}distilled_guidance_layer.", "distilled_guidance_layer."):
        return _plain("chroma")
    if header.begins(f"{DENOISER_PREFIX}double_blocks.", "double_blocks."):
        channels = header.shape(f"{DENOISER_PREFIX}img_in.weight", "img_in.weight")
        if channels[1:] != (_SQUARES,):
            return Kind(
                None, "a FLUX.1 model with extra channels (Fill, Depth or Canny)", "Use the plain one."
            )
        return _plain("flux")
    if header.begins(f"{DENOISER_PREFIX}cap_embedder.", "cap_embedder."):
        return _next_dit(header)
    if header.shape(f"{DENOISER_PREFIX}txt_norm.weight", "txt_norm.weight"):
        return _two_streams(header)
    return None


def _two_streams(header: Header) -> Kind | None:
    """Qwen-Image, whose checkpoints have diffusers' names; its siblings differ in latents or in a part."""
    for part, title in _BESIDE_QWEN_IMAGE.items():
        if header.begins(f"{DENOISER_PREFIX}{part}", part):
            return Kind(None, title, "Use the plain model.")
    squares = header.shape(f"{DENOISER_PREFIX}img_in.weight", "img_in.weight")
    if squares[1:] == (_SQUARES,):
        return _plain("qwen_image")
    return Kind(None, "a model that is built like Qwen-Image", _known())


def _next_dit(header: Header) -> Kind:
    """Z-Image is built like Lumina Image 2.0, whose modulations are one layer further.

    Its siblings have parts that it lacks.
    """
    for part, title in _BESIDE_Z_IMAGE.items():
        if header.begins(f"{DENOISER_PREFIX}{part}", part):
            return Kind(None, title, "Use the plain model.")
    modulation = "layers.0.adaLN_modulation.0.weight"
    squares = header.shape(f"{DENOISER_PREFIX}x_embedder.weight", "x_embedder.weight")
    if header.shape(f"{DENOISER_PREFIX}{modulation}", modulation) and squares[1:] == (_SQUARES,):
        return _plain("z_image")
    return Kind(None, "a Lumina Image 2.0 model, or another that is built like it", _known())


def _unet(header: Header) -> Kind | None:
    first = header.shape(f"{DENOISER_PREFIX}input_blocks.0.0.weight")
    if not first:
        return None
    widths = (shape[1:] for name, shape in header.shapes.items() if name.endswith("attn2.to_k.weight"))
    context = next((width[0] for width in widths if width), 0)
    if header.begins("conditioner.embedders.0.model.") or context == 1280:
        return Kind(None, "a Stable Diffusion XL refiner", "Train the base model instead.")
    if header.begins("conditioner.embedders.1.") or context == 2048:
        family = "sdxl"
    elif header.begins("cond_stage_model.model.") or context == 1024:
        family = "sd2"
    else:
        family = "sd1"
    if first[1:2] != (_LATENT_CHANNELS,):
        title = f"a {FAMILY_INFO[family].title} model with extra channels (inpainting, depth or instructions)"
        return Kind(None, title, "Use the plain model.")
    return _plain(family)


def _single_part(header: Header) -> Kind | None:
    if header.begins("down_blocks.", "transformer_blocks.", "all_x_embedder."):
        title = "the denoiser of a diffusers folder"
        return Kind(None, title, "Give the folder above it, with its model_index.json.")
    if header.begins("decoder.", *VAE_PREFIXES):
        return Kind(None, "a VAE alone", "Give it as --vae, beside a base model.")
    if header.begins(*_TEXT_ENCODERS):
        title = "a text encoder alone"
        return Kind(None, title, "Give its folder as --text-encoders, beside a base model.")
    return None


def _of_folder(folder: Path) -> Kind:
    if not (folder / "model_index.json").is_file():
        found = sorted(folder.glob("*.safetensors"))
        hint = f" It holds {found[0].name}: give that file itself." if found else ""
        raise ScdpoError(f"This is no diffusers model folder: it has no model_index.json.{hint}")
    pipeline = read_config(folder / "model_index.json").get("_class_name", "StableDiffusionPipeline")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file() and str(read_config(scheduler).get("_class_name", "")).startswith("EDM"):
        return Kind(None, "an EDM model (such as Playground 2.5 or CosXL)", _known())
    families = [info.name for info in trainable() if info.pipeline == pipeline]
    if not families:
        return Kind(None, f"a {pipeline}", _known())
    return _plain(families[0] if len(families) == 1 else _with_one_text_encoder(folder))


def _with_one_text_encoder(folder: Path) -> str:
    """Which of the families that share a pipeline: OpenCLIP's text encoder is that of version 2."""
    width = read_config(folder / "unet" / "config.json").get("cross_attention_dim")
    if width in (768, 1024):
        return "sd2" if width == 1024 else "sd1"
    activation = read_config(folder / "text_encoder" / "config.json").get("hidden_act", "quick_gelu")
    return "sd2" if activation == "gelu" else "sd1"


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a component.

    Raises:
        ScdpoError: there are none, or they cannot be read; says which file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScdpoError(f"{path.parent.name}/{path.name} is missing. Copy the model again.") from None
    except (OSError, ValueError) as error:
        raise ScdpoError(
            f"{path.parent.name}/{path.name} cannot be read ({error}). Copy it again."
        ) from error
    if not isinstance(value, dict):
        raise ScdpoError(f"{path.parent.name}/{path.name} holds no settings. Copy the model again.")
    return value
