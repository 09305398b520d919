"""Models of a UNet and a diffusion schedule: Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..devices import sent
from ..types import Conditioning, ScdpoError
from .chunks import TextEncoder
from .components import Encoders, Reader, quiet
from .latent_model import LatentModel
from .parameterisation import parameterisation
from .sampling import Denoiser, Start, begin, keep_outside
from .timesteps import DiscreteTimesteps


class UNetModel(LatentModel):
    """A UNet2DConditionModel with one CLIP, whose last states it reads; see `LoadedModel`.

    Attributes:
        alphas_cumprod: [steps] of the noise schedule, on the model's device.
    """

    alphas_cumprod: Tensor

    def _scheduler(self, reader: Reader) -> dict[str, Any]:
        from diffusers import DDPMScheduler

        settings = self._marked(reader)
        own = self._options
        if own.prediction != "auto":
            settings["prediction_type"] = own.prediction
        if own.zero_snr != "auto":
            settings["rescale_betas_zero_snr"] = own.zero_snr == "on"
        self.parameterisation = parameterisation(settings.get("prediction_type", "epsilon"))
        self.zero_snr = bool(settings.get("rescale_betas_zero_snr", False))
        if self.zero_snr:
            if self.prediction == "epsilon":
                raise ScdpoError(
                    "a model of the noise cannot have a schedule that ends in pure noise: there it would "
                    "have nothing to learn. Set prediction to 'v_prediction' or zero_snr to 'off'"
                )
            # Drawing has to begin at the very end, where there is no image left.
            settings |= {"timestep_spacing": "trailing"}
        # Latents have no range to be clipped to; the schedulers' default is made for pixels.
        settings |= {"clip_sample": False, "thresholding": False}
        schedule = DDPMScheduler.from_config(settings)
        self.alphas_cumprod = schedule.alphas_cumprod.float().to(self.device)
        self.timesteps = DiscreteTimesteps(len(self.alphas_cumprod))
        return settings

    def _marked(self, reader: Reader) -> dict[str, Any]:
        """The settings that the model came with, and what a single file says of itself on top."""
        settings = reader.scheduler()
        if reader.header is not None:
            if reader.header.prediction is not None:
                settings["prediction_type"] = reader.header.prediction
            settings["rescale_betas_zero_snr"] = reader.header.zero_snr
        return settings

    def _own_size(self) -> tuple[int, int]:
        cells = self.denoiser.config.sample_size  # type: ignore[union-attr]
        height, width = (cells, cells) if isinstance(cells, int) else cells  # type: ignore[misc]
        return width * self.vae_scale, height * self.vae_scale

    def _cells(self) -> int:
        return int(2 ** (len(self.denoiser.config.block_out_channels) - 1))  # type: ignore[union-attr,arg-type]

    def _level(self, timesteps: Tensor) -> Tensor:
        return self.alphas_cumprod[timesteps]

    def _encode(
        self, encoders: Encoders, prompts: list[str], chunks: int, known: Conditioning | None = None
    ) -> Conditioning:
        text = encoders.texts[0]
        assert isinstance(text, TextEncoder)  # the family needs it, and the checks looked for it
        return Conditioning(text.chunked(prompts, chunks, self._most_chunks).words)

    def _added(self, noisy: Tensor, conditioning: Conditioning) -> dict[str, Tensor] | None:
        """What the UNet is told beside the words."""
        return None

    def _predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        extra: dict[str, Any] = {}
        added = self._added(noisy, conditioning)
        if added is not None:
            extra["added_cond_kwargs"] = added
        answer: Tensor = self.denoiser(
            noisy.to(self.dtype),
            timesteps,
            encoder_hidden_states=conditioning.embeddings.to(self.dtype),
            **extra,
        ).sample
        return answer.float()

    def _denoise(self, noise: Tensor, predict: Denoiser, steps: int, start: Start | None) -> Tensor:
        """DDIM (Song et al. 2021)."""
        from diffusers import DDIMScheduler

        with quiet():
            scheduler = DDIMScheduler.from_config(self._schedule)
        scheduler.set_timesteps(steps, device=self.device)
        latents, timesteps = begin(noise, scheduler.timesteps, start, self.add_noise)
        for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
            predicted = predict(latents, timestep.expand(len(latents)))
            latents = scheduler.step(predicted, timestep, latents).prev_sample.float()
            latents = keep_outside(latents, noise, following, start, self.add_noise)
        return latents


@lru_cache(maxsize=64)
def uncropped(height: int, width: int, device: torch.device) -> Tensor:
    """[1, 6] sizes of an uncropped image, see `Conditioning.sizes`; kept, so that a step copies nothing."""
    return sent(torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32), device)
