"""Every module that a LoRA can train in every family, from diffusers' and transformers' own classes.

The networks have the real models' topology (blocks, layers, which of them attend) in small widths, on the
meta device: names do not depend on widths, and weights of this size are quick to make up.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from diffusers import (
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from scdpo_core.family_info import FAMILY_INFO
from scdpo_core.lora.formats.keys import TEXT_ENCODERS, text_module

FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux", "chroma", "flux2", "z_image", "qwen_image")
WIDTH = 64
ORIGINAL_ONLY = (
    "distilled_guidance_layer.",
    "time_guidance_embed.",
    "double_stream_modulation_",
    "single_stream_modulation.",
)
"""Beginnings of modules of Chroma and FLUX.2 that ComfyUI knows by their original names and no others."""
_LEVELS = {"block_out_channels": (64, 128, 256, 256), "norm_num_groups": 32}
_XL_LEVELS = {
    "block_out_channels": (64, 128, 256),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 96,
}


def denoiser(family: str, *, blocks: int = 0) -> nn.Module:
    """A family's denoiser on the meta device; SD3's has attention on itself in its first blocks, as 3.5's.

    Args:
        family: its name.
        blocks: of SD3, Z-Image and Qwen-Image; 0: as many as the real one has.
    """
    with torch.device("meta"):
        if family == "flux":
            return FluxTransformer2DModel(
                in_channels=64,
                num_layers=19,
                num_single_layers=38,
                attention_head_dim=32,
                num_attention_heads=2,
                joint_attention_dim=48,
                pooled_projection_dim=24,
                guidance_embeds=True,
                axes_dims_rope=(8, 12, 12),
            )
        if family == "chroma":
            return ChromaTransformer2DModel(
                in_channels=64,
                num_layers=19,
                num_single_layers=38,
                attention_head_dim=32,
                num_attention_heads=2,
                joint_attention_dim=48,
                axes_dims_rope=(8, 12, 12),
                approximator_hidden_dim=80,
            )
        if family == "qwen_image":
            return QwenImageTransformer2DModel(
                num_layers=blocks or 60,
                attention_head_dim=32,
                num_attention_heads=2,
                joint_attention_dim=48,
                axes_dims_rope=(8, 12, 12),
            )
        if family == "flux2":
            return Flux2Transformer2DModel(
                in_channels=128,
                num_layers=8,
                num_single_layers=24,
                attention_head_dim=32,
                num_attention_heads=2,
                joint_attention_dim=48,
                axes_dims_rope=(8, 8, 8, 8),
                guidance_embeds=False,
            )
        if family == "z_image":
            return ZImageTransformer2DModel(
                # The embedder of the times has its real widths from here on.
                dim=1024,
                n_layers=blocks or 30,
                n_heads=8,
                n_kv_heads=8,
                cap_feat_dim=48,
                axes_dims=[32, 48, 48],
            )
        if family == "sd3":
            blocks = blocks or 24
            return SD3Transformer2DModel(
                sample_size=4,
                num_layers=blocks,
                attention_head_dim=64,
                num_attention_heads=blocks,
                joint_attention_dim=48,
                caption_projection_dim=64 * blocks,
                pooled_projection_dim=40,
                pos_embed_max_size=4,
                dual_attention_layers=tuple(range(min(13, blocks - 1))),
                qk_norm="rms_norm",
            )
        levels = _XL_LEVELS if family == "sdxl" else _LEVELS
        return UNet2DConditionModel(
            attention_head_dim=8,
            cross_attention_dim={"sd1": 768, "sd2": 1024, "sdxl": 2048}[family],
            use_linear_projection=family != "sd1",
            **levels,
        )


def text_encoders(family: str) -> dict[str, nn.Module]:
    """A family's CLIP text encoders on the meta device, by owner (see `keys.TEXT_ENCODERS`)."""

    def config(layers: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_attention_heads=2, num_hidden_layers=layers
        )

    if "clip" not in FAMILY_INFO[family].texts:
        return {}
    with torch.device("meta"):
        encoders: dict[str, nn.Module] = {
            TEXT_ENCODERS[0]: CLIPTextModel(config(23 if family == "sd2" else 12))
        }
        if family in ("sdxl", "sd3"):
            encoders[TEXT_ENCODERS[1]] = CLIPTextModelWithProjection(config(32))
    return encoders


@cache
def module_shapes(family: str, *, blocks: int = 0, text: bool = True) -> dict[str, tuple[int, ...]]:
    """Canonical path -> shape of the weight, of every linear layer and convolution of a family.

    Without CLIP's final projection, which ComfyUI has no LoRA key for in most families, and without
    `ORIGINAL_ONLY`.
    """
    networks = {"": denoiser(family, blocks=blocks), **(text_encoders(family) if text else {})}
    return {
        text_module(owner, name) if owner else name: tuple(module.weight.shape)
        for owner, network in networks.items()
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and name != "text_projection"
        and not name.startswith(ORIGINAL_ONLY)
    }


def lora_for(
    shapes: dict[str, tuple[int, ...]],
    *,
    rank: int = 2,
    alpha: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
) -> dict[str, Tensor]:
    """A LoRA with random weights on modules of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for module, (rows, inputs, *kernel) in shapes.items():
        down = torch.randn(rank, inputs, *kernel, generator=generator) / math.sqrt(inputs)
        up = torch.randn(rows, rank, *[1] * len(kernel), generator=generator)
        state |= {
            f"{module}.down": down.to(dtype),
            f"{module}.up": up.to(dtype),
            f"{module}.alpha": torch.tensor(alpha),
        }
    return state
