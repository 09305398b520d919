"""Pictures by ComfyUI's own sampler, with its previews."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import nodes
from torch import Tensor


def draw(
    model: Any,
    vae: Any,
    seed: int,
    *,
    positive: Any,
    negative: Any,
    latent_image: Any,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    denoise: float,
) -> Tensor:
    """[B, H, W, 3] of 0..1, as KSampler and VAE Decode would make them."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    latent = nodes.common_ksampler(
        model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=denoise
    )[0]
    images: Tensor = vae.decode(latent["samples"])
    return images.reshape(-1, *images.shape[-3:])
