"""A UNet that predicts a rectified flow: a family for benchmarks, since no released one has this shape.

The UNet keeps the input and the timesteps of the v-prediction model that it was fine-tuned from. A flow's
x_t = (1 - t) x_0 + t eps is a variance-preserving x_t of the same signal-to-noise ratio, scaled by
sqrt((1 - t)^2 + t^2); `to_diffusion` undoes the scale and says how noisy it is. Only the answer differs:
eps - x_0.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from scdpo_core.families import registered
from scdpo_core.families.diffusers_family import DiffusersFamily
from scdpo_core.families.flow import FlowModel
from scdpo_core.families.sd1 import LAYOUT, SD1Model
from scdpo_core.family_info import FamilyInfo
from scdpo_core.types import Conditioning

PIPELINE = "StableDiffusionFlowPipeline"
"""What model_index.json says; diffusers has no such pipeline, and the product alone refuses it by name."""

_OFFSET, _COUNT = 0.008, 1000


def cosine_timestep(angle: Tensor) -> Tensor:
    """Timestep of the embedded model's schedule (squared cosine, Nichol and Dhariwal 2021) with that noise.

    Its alpha_bar at timestep k is f(k + 1) / f(0), f(k) = cos^2((k / 1000 + 0.008) / 1.008 * pi / 2); a
    variance-preserving x_t = cos(angle) x_0 + sin(angle) eps has alpha_bar = cos^2(angle).

    Args:
        angle: 0 for a clean image, pi / 2 for noise; any shape.

    Returns:
        float timesteps, 0..999.
    """
    clean = math.cos(_OFFSET / (1 + _OFFSET) * math.pi / 2)
    share = torch.acos(angle.cos() * clean) * (1 + _OFFSET) * 2 / math.pi - _OFFSET
    return (share * _COUNT - 1).clamp(0, _COUNT - 1)


def to_diffusion(noisy: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Scale a flow's noisy latents to a variance-preserving x_t.

    Args:
        noisy: [N, C, h, w] = (1 - t) x_0 + t eps.
        level: [N] times t, 0..1.

    Returns:
        [N, C, h, w] = cos(angle) x_0 + sin(angle) eps, and [N] angles.
    """
    scale = torch.hypot(1 - level, level).view(-1, 1, 1, 1)
    return noisy / scale, torch.atan2(level, 1 - level)


class FlowUNetModel(FlowModel, SD1Model):
    """A loaded model; see `LoadedModel`. Its LoRAs have the layers and keys of Stable Diffusion 1."""

    def _predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        scaled, angle = to_diffusion(noisy, timesteps / self.timesteps.count)
        return super()._predict(scaled, cosine_timestep(angle), conditioning)


FLOW_UNET = DiffusersFamily(
    FamilyInfo(
        name="unet_flow",
        title="Stable Diffusion 1 (rectified flow)",
        pipeline=PIPELINE,
        denoiser="unet",
        lora_keys="sd1",
    ),
    LAYOUT,
    FlowUNetModel,
)
"""Told by the pipeline that a folder's model_index.json names."""


def flow_unet() -> AbstractContextManager[None]:
    """Let the family 'auto' recognise such folders while the block runs: `with flow_unet(): run_job(...)`."""
    return registered(FLOW_UNET)
