"""From a denoiser's answers to errors: what training asks of a latent model, whatever it predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ..types import Conditioning
from .parameterisation import Parameterisation, Weighting, error_weight, image_scale


class ResidualModel(ABC):
    """The part of `LoadedModel` that compares answers with targets.

    Attributes:
        parameterisation: what the denoiser predicts.
    """

    parameterisation: Parameterisation

    @abstractmethod
    def _level(self, timesteps: Tensor) -> Tensor:
        """[N] levels of the parameterisation at [N] timesteps."""

    @abstractmethod
    def _predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's answer to [N, C, h, w] of any type, in float32."""

    @abstractmethod
    def _bring_denoiser(self) -> None:
        """Make sure that the denoiser is on its device."""

    def residuals(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        weighting: Weighting,
    ) -> Tensor:
        """See `LoadedModel.residuals`."""
        prediction = self.predict(self.add_noise(latents, noise, timesteps), timesteps, conditioning)
        return self.error_residuals(prediction, latents, noise, timesteps, weighting)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """See `LoadedModel.add_noise`."""
        return self.parameterisation.noisy(latents, noise, self._levels(timesteps))

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See `LoadedModel.predict`."""
        self._bring_denoiser()
        return self._predict(noisy, timesteps, conditioning)

    def error_residuals(
        self, prediction: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor, weighting: Weighting
    ) -> Tensor:
        """See `LoadedModel.error_residuals`."""
        level = self._levels(timesteps)
        residual = prediction - self.parameterisation.target(latents, noise, level)
        if weighting != "native":
            residual = residual * error_weight(self.parameterisation, level, weighting).sqrt()
        return residual

    def image_residuals(
        self, prediction: Tensor, noisy: Tensor, image: Tensor, timesteps: Tensor, weighting: Weighting
    ) -> Tensor:
        """See `LoadedModel.image_residuals`."""
        level = self._levels(timesteps)
        residual = self.parameterisation.image_residual(prediction, noisy, image, level)
        return residual * image_scale(self.parameterisation, level, weighting)

    def _levels(self, timesteps: Tensor) -> Tensor:
        return self._level(timesteps).view(-1, 1, 1, 1)

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
