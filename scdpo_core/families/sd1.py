"""Stable Diffusion 1.x, and every smaller model of the same shape, the embedded one included."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..types import Conditioning, Problem, ScdpoError
from . import sd1_files
from .base import Prediction, Weighting
from .parameterisation import parameterisation

_PIXELS_AT_ONCE = 2 * 512 * 512
_PICTURES_AT_ONCE = 32


class SD1:
    """The family of UNet2DConditionModel, CLIPTextModel and AutoencoderKL."""

    name = "sd1"
    title = "Stable Diffusion 1.x"

    def check(self, base: str | Path) -> list[Problem]:
        """See `Family.check`."""
        return sd1_files.check(base)

    def load(
        self,
        base: str | Path,
        device: torch.device,
        dtype: torch.dtype,
        prediction: Prediction = "auto",
        configs: Path = sd1_files.CONFIGS,
    ) -> SD1Model:
        """See `Family.load`; `configs` describes the components of a single file."""
        problems = self.check(base)
        if problems:
            raise ScdpoError("\n".join(f"{problem.path}: {problem.what}" for problem in problems))
        return SD1Model(base, device, dtype, prediction, configs)


class SD1Model:
    """A loaded model; see `LoadedModel`. The encoders stay in float32: they run once, the denoiser often."""

    family = SD1.name

    def __init__(
        self,
        base: str | Path,
        device: torch.device,
        dtype: torch.dtype,
        prediction: Prediction,
        configs: Path,
    ) -> None:
        from diffusers import DDPMScheduler

        self._base, self._configs = base, configs
        pipeline = sd1_files.load_pipeline(base, configs=configs)
        self.name = sd1_files.MICRO if str(base) == sd1_files.MICRO else sd1_files.locate(base).stem
        self.dtype, self.device = dtype, device
        settings = dict(pipeline.scheduler.config)
        if prediction != "auto":
            settings["prediction_type"] = prediction
        self.parameterisation = parameterisation(settings.get("prediction_type", "epsilon"))
        # Latents have no range to be clipped to; the schedulers' default is made for pixels.
        self._schedule = settings | {"clip_sample": False, "thresholding": False}
        with sd1_files.quiet():
            schedule = DDPMScheduler.from_config(self._schedule)
            self.denoiser: nn.Module = pipeline.unet.to(device, dtype).requires_grad_(False).eval()
        self.alphas_cumprod: Tensor = schedule.alphas_cumprod.float().to(device)
        self.num_timesteps = len(self.alphas_cumprod)
        self.vae_scale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        self._channels = int(pipeline.vae.config.latent_channels)
        cells = pipeline.unet.config.sample_size
        height, width = (cells, cells) if isinstance(cells, int) else cells
        self.default_size = (width * self.vae_scale, height * self.vae_scale)
        self._encoders: _Encoders | None = self._take_encoders(pipeline)
        self.encoder_id = f"{self.family}-{self._encoders.fingerprint()}"

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """See `LoadedModel.latent_shape`.

        Raises:
            ScdpoError: the size is no whole number of latent cells that the denoiser can halve.
        """
        width, height = size or self.default_size
        halvings = 2 ** (len(self.denoiser.config.block_out_channels) - 1)  # type: ignore[union-attr,arg-type]
        step = self.vae_scale * halvings
        if width % step or height % step or min(width, height) < step:
            raise ScdpoError(f"Pictures of {width}x{height} do not fit this model: use multiples of {step}.")
        return self._channels, height // self.vae_scale, width // self.vae_scale

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """See `LoadedModel.encode_prompts`."""
        own = self._get_encoders()
        parts = []
        for first in range(0, len(prompts), _PICTURES_AT_ONCE):
            tokens = own.tokenizer(
                prompts[first : first + _PICTURES_AT_ONCE],
                padding="max_length",
                max_length=own.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            parts.append(own.text(input_ids=tokens.input_ids.to(self.device)).last_hidden_state)
        return Conditioning(torch.cat(parts).float())

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """See `LoadedModel.encode_pictures`."""
        vae = self._get_encoders().vae
        parts = [
            vae.encode(part.to(self.device, torch.float32)).latent_dist.mean
            for part in pictures.split(_at_once(pictures.shape[3], pictures.shape[2]))
        ]
        return torch.cat(parts) * float(vae.config.scaling_factor)

    def residuals(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        weighting: Weighting,
    ) -> Tensor:
        """See `LoadedModel.residuals`."""
        alpha_bar = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
        predicted = self._predict(noisy, timesteps, conditioning.embeddings)
        residual = predicted - self.parameterisation.target(latents, noise, alpha_bar)
        if weighting == "exact":
            residual = residual * self.parameterisation.exact_weight(alpha_bar).sqrt()
        return residual

    def errors(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        weighting: Weighting,
    ) -> Tensor:
        """See `LoadedModel.errors`."""
        return self.residuals(latents, noise, timesteps, conditioning, weighting).square().mean(dim=(1, 2, 3))

    def _predict(self, noisy: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        answer: Tensor = self.denoiser(
            noisy.to(self.dtype), timesteps, encoder_hidden_states=embeddings.to(self.dtype)
        ).sample
        return answer.float()

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        size: tuple[int, int] | None = None,
    ) -> list[Image.Image]:
        """See `LoadedModel.sample`. DDIM without added noise, whatever scheduler the model came with."""
        shape = self.latent_shape(size)
        pictures: list[Image.Image] = []
        at_once = _at_once(shape[2] * self.vae_scale, shape[1] * self.vae_scale)
        for first in range(0, len(prompts), at_once):
            some = slice(first, first + at_once)
            dice = [torch.Generator().manual_seed(seed) for seed in seeds[some]]
            noise = torch.stack([torch.randn(shape, generator=generator) for generator in dice])
            latents = self._denoise(noise.to(self.device), list(prompts[some]), steps, guidance)
            pictures += self._decode(latents)
        return pictures

    def _denoise(self, latents: Tensor, prompts: list[str], steps: int, guidance: float) -> Tensor:
        from diffusers import DDIMScheduler

        guided = guidance > 1
        words = self.encode_prompts([*prompts, *([""] * len(prompts) if guided else [])]).embeddings
        with sd1_files.quiet():
            scheduler = DDIMScheduler.from_config(self._schedule)
        scheduler.set_timesteps(steps, device=self.device)
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=mixed):
            for timestep in scheduler.timesteps:
                both = torch.cat([latents, latents]) if guided else latents
                predicted = self._predict(both, timestep.expand(len(both)), words)
                if guided:
                    asked, empty = predicted.chunk(2)
                    predicted = empty + guidance * (asked - empty)
                latents = scheduler.step(predicted, timestep, latents).prev_sample.float()
        return latents

    def _decode(self, latents: Tensor) -> list[Image.Image]:
        vae = self._get_encoders().vae
        pixels = vae.decode(latents / float(vae.config.scaling_factor)).sample
        colours = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return [Image.fromarray(picture) for picture in colours.permute(0, 2, 3, 1).cpu().numpy()]

    def release_encoders(self) -> None:
        """See `LoadedModel.release_encoders`."""
        self._encoders = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _get_encoders(self) -> _Encoders:
        if self._encoders is None:
            given = {"unet": self.denoiser}
            self._encoders = self._take_encoders(sd1_files.load_pipeline(self._base, given, self._configs))
        return self._encoders

    def _take_encoders(self, pipeline: Any) -> _Encoders:
        return _Encoders(
            pipeline.tokenizer,
            pipeline.text_encoder.to(self.device).requires_grad_(False).eval(),
            pipeline.vae.to(self.device).requires_grad_(False).eval(),
        )


@dataclass(frozen=True)
class _Encoders:
    tokenizer: Any
    text: Any
    vae: Any

    def fingerprint(self) -> str:
        """12 hexadecimal digits that change with any weight of the encoders and with the vocabulary."""
        digest = hashlib.sha256(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        digest.update(str(self.tokenizer.model_max_length).encode())
        for module in (self.text, self.vae):
            for _, tensor in sorted(module.state_dict().items()):
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]


def _at_once(width: int, height: int) -> int:
    """How many pictures of that size to put through the VAE together, so that 8 GB of memory suffice."""
    return max(1, min(_PICTURES_AT_ONCE, _PIXELS_AT_ONCE // (width * height)))
