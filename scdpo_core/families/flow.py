"""Models of a transformer and a rectified flow: what Stable Diffusion 3, FLUX.1, Z-Image and others share."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from .components import Reader, quiet
from .latent_model import LatentModel
from .parameterisation import Flow
from .sampling import Denoiser, Start, begin, keep_outside
from .timesteps import ContinuousTimesteps


class FlowModel(LatentModel):
    """A transformer that looks at squares of 2x2 cells and predicts a flow; see `LoadedModel`."""

    even_times: ClassVar[bool] = True
    """Whether a sampler's times lie at even distances before they are shifted, down to one step from 0."""

    def _scheduler(self, reader: Reader) -> dict[str, Any]:
        settings = reader.scheduler()
        self.parameterisation = Flow()
        self.timesteps = ContinuousTimesteps(int(settings.get("num_train_timesteps", 1000)))
        return settings

    usual_side: ClassVar[int] = 1024
    """Pixels of a side of the images that the model was made for, where the VAE's settings do not say."""

    def _own_size(self) -> tuple[int, int]:
        side = int(self._get_encoders().vae.config.get("sample_size") or self.usual_side)
        return side, side

    def _cells(self) -> int:
        return 2

    def _level(self, timesteps: Tensor) -> Tensor:
        return timesteps / self.timesteps.count

    def _text_dtype(self, index: int) -> torch.dtype:
        """Billions of weights are kept in 16 bits beside a 16-bit model; T5 and Qwen overflow in fp16."""
        is_large = self._layout.texts[index].kind != "clip"
        return torch.bfloat16 if is_large and self.dtype != torch.float32 else torch.float32

    def _denoise(self, noise: Tensor, predict: Denoiser, steps: int, start: Start | None) -> Tensor:
        """Euler steps along the flow, at the times that the model's own schedule chooses."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        with quiet():
            # A single step is the end already: to stretch the times towards their end divides by zero.
            changes = {"shift_terminal": None} if steps == 1 else {}
            scheduler = FlowMatchEulerDiscreteScheduler.from_config(self._schedule, **changes)
        scheduler.set_timesteps(steps, device=self.device, **self._times(noise, steps))
        latents, timesteps = begin(noise, scheduler.timesteps, start, self.add_noise)
        for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
            predicted = predict(latents, timestep.expand(len(latents)))
            latents = scheduler.step(predicted, timestep, latents).prev_sample.float()
            latents = keep_outside(latents, noise, following, start, self.add_noise)
        return latents

    def _times(self, latents: Tensor, steps: int) -> dict[str, Any]:
        """Larger images stay noisy longer, if the schedule says so (Esser et al. 2024, section 5.3.2)."""
        even = {"sigmas": [1 - step / steps for step in range(steps)]} if self.even_times else {}
        own = self._schedule
        if not own.get("use_dynamic_shifting", False):
            return even
        tokens = math.prod(latents.shape[2:]) // self._cells() ** 2
        few, many = own.get("base_image_seq_len", 256), own.get("max_image_seq_len", 4096)
        low, high = own.get("base_shift", 0.5), own.get("max_shift", 1.15)
        return even | {"mu": low + (high - low) * (tokens - few) / (many - few)}
