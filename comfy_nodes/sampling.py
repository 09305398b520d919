"""Generate images with ComfyUI's sampler and previews."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.samplers
import nodes
from comfy_api.latest import io
from torch import Tensor


def sampling_inputs(seeds: int, most: int) -> list[Any]:
    """Declare KSampler's inputs with its defaults, for nodes that use `seeds` seeds, at most `most`."""
    return [
        io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
        io.Int.Input("seeds", default=seeds, min=1, max=most),
        io.Int.Input("steps", default=20, min=1, max=10000),
        io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1),
        io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS),
        io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS),
        io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01),
    ]


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
    """Generate images [B, H, W, 3] of 0..1 like KSampler and VAE Decode."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    latent = nodes.common_ksampler(
        model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=denoise
    )[0]
    images: Tensor = vae.decode(latent["samples"])
    return images.reshape(-1, *images.shape[-3:])
