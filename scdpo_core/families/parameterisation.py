"""What a denoiser predicts, as polymorphism: everybody else only sees errors.

Every parameterisation has one number for how noisy a latent is, its level. For diffusion that is the
schedule's cumulative alpha, x_t = sqrt(ab) x_0 + sqrt(1 - ab) eps; for rectified flow it is the time,
x_t = (1 - t) x_0 + t eps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..types import ScdpoError


@dataclass(frozen=True)
class MinSnr:
    """The error of the noise, held down where the signal-to-noise ratio exceeds gamma; see `error_weight`."""

    gamma: float


Weighting = Literal["native", "exact"] | MinSnr
"""'native': the squared error of what the network predicts; 'exact': of the noise that this implies."""


class Parameterisation(Protocol):
    """How noise is mixed in, the target of a network, and how its error relates to the error of the noise.

    Attributes:
        name: as diffusers' schedulers call it.
    """

    name: str

    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the network sees, shaped as `latents`; `level` broadcasts to it."""
        ...

    def target(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What a perfect network would answer, shaped as `latents`; `level` broadcasts to it."""
        ...

    def exact_weight(self, level: Tensor) -> Tensor:
        """Factor that turns the squared error of the answer into that of the noise it implies."""
        ...

    def snr(self, level: Tensor) -> Tensor:
        """Signal-to-noise ratio of what the network sees: the squares of both factors, divided."""
        ...

    def image_residual(self, prediction: Tensor, noisy: Tensor, image: Tensor, level: Tensor) -> Tensor:
        """The image that an answer implies minus `image`, shaped as `noisy`; bounded at every level.

        Its square is the error of x_0. Where the answer is the noise, that error grows without bound towards
        pure noise and is held down by min(1, SNR). OURS: what `redirect` minimises.

        Args:
            prediction: the network's answer.
            noisy: what it saw; need not be made of `image`.
            image: the scaled latent that is to be behind the noise.
            level: broadcasts to them.
        """
        ...

    def image_weight(self, level: Tensor) -> Tensor:
        """What the square of `image_residual` is to the squared error of x_0, shaped as `level`."""
        ...


class _Diffusion:
    """Noise is mixed in so that the variance stays 1; the level is ab, the cumulative alpha."""

    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """sqrt(ab) x_0 + sqrt(1 - ab) eps."""
        return level.sqrt() * latents + (1 - level).sqrt() * noise

    def snr(self, level: Tensor) -> Tensor:
        """ab / (1 - ab)."""
        return level / (1 - level)


class Epsilon(_Diffusion):
    """The network predicts the noise (Ho et al. 2020)."""

    name = "epsilon"

    def target(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The noise itself."""
        return noise

    def exact_weight(self, level: Tensor) -> Tensor:
        """1: the native error is the noise's."""
        return torch.ones_like(level)

    def image_residual(self, prediction: Tensor, noisy: Tensor, image: Tensor, level: Tensor) -> Tensor:
        """sqrt(min(1, SNR)) ((x_t - s e) / a - x) = (x_t - s e - a x) / max(a, s); a, s: both factors."""
        a, s = level.sqrt(), (1 - level).sqrt()
        return (noisy - s * prediction - a * image) / torch.maximum(a, s)

    def image_weight(self, level: Tensor) -> Tensor:
        """min(1, SNR)."""
        return self.snr(level).clamp_max(1.0)


class Velocity(_Diffusion):
    """The network predicts v = sqrt(ab) eps - sqrt(1 - ab) x_0 (Salimans and Ho 2022)."""

    name = "v_prediction"

    def target(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The velocity."""
        return level.sqrt() * noise - (1 - level).sqrt() * latents

    def exact_weight(self, level: Tensor) -> Tensor:
        """ab: the implied noise is sqrt(ab) v + sqrt(1 - ab) x_t, and x_t is known."""
        return level

    def image_residual(self, prediction: Tensor, noisy: Tensor, image: Tensor, level: Tensor) -> Tensor:
        """sqrt(ab) x_t - sqrt(1 - ab) v - x: as good where no signal is left, ab = 0."""
        return level.sqrt() * noisy - (1 - level).sqrt() * prediction - image

    def image_weight(self, level: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(level)


class Flow:
    """The network predicts eps - x_0, along a straight line (Liu et al. 2023); the level is t, 0..1."""

    name = "flow"

    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """(1 - t) x_0 + t eps."""
        return (1 - level) * latents + level * noise

    def target(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The direction from the image to the noise."""
        return noise - latents

    def exact_weight(self, level: Tensor) -> Tensor:
        """(1 - t)^2: the implied noise is x_t + (1 - t) v, and x_t is known."""
        return (1 - level).square()

    def image_residual(self, prediction: Tensor, noisy: Tensor, image: Tensor, level: Tensor) -> Tensor:
        """x_t - t v - x."""
        return noisy - level * prediction - image

    def image_weight(self, level: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(level)

    def snr(self, level: Tensor) -> Tensor:
        """((1 - t) / t)^2."""
        return ((1 - level) / level).square()


PARAMETERISATIONS: dict[str, Parameterisation] = {
    "epsilon": Epsilon(),
    "v_prediction": Velocity(),
    "flow": Flow(),
}


def error_weight(own: Parameterisation, level: Tensor, weighting: Weighting) -> Tensor:
    """Factor of the squared error of the answer at these levels, in their shape.

    Min-SNR (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy") weights the
    error of the image that the answer implies by min(SNR, gamma). That error is the noise's divided by
    SNR, whatever the network predicts, so the weight is min(1, gamma / SNR) times `exact_weight`: for the
    noise min(SNR, gamma) / SNR, for v min(SNR, gamma) / (SNR + 1), both as in the paper's code.
    """
    if weighting == "native":
        return torch.ones_like(level)
    if weighting == "exact":
        return own.exact_weight(level)
    return own.exact_weight(level) * (weighting.gamma / own.snr(level)).clamp_max(1.0)


def image_scale(own: Parameterisation, level: Tensor, weighting: Weighting) -> Tensor:
    """Factor of `image_residual` for a weighting of the error of x_0, shaped as `level`.

    1 but for min-SNR (Hang et al. 2023), which multiplies the error of x_0 by min(SNR, gamma); what the
    residual is held down by already is taken into account.
    """
    if not isinstance(weighting, MinSnr):
        return torch.ones_like(level)
    wanted = own.snr(level).clamp_max(weighting.gamma)
    return (wanted / own.image_weight(level).clamp_min(torch.finfo(level.dtype).tiny)).sqrt()


def parameterisation(name: str) -> Parameterisation:
    """The parameterisation of that name.

    Raises:
        ScdpoError: it is none that can be trained; lists those that can.
    """
    if name not in PARAMETERISATIONS:
        raise ScdpoError(
            f"This model predicts '{name}', which cannot be trained here. "
            f"Models that predict one of these can: {', '.join(PARAMETERISATIONS)}."
        )
    return PARAMETERISATIONS[name]
