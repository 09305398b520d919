"""What a denoiser predicts, as polymorphism: everybody else only sees errors.

A noisy latent is x_t = sqrt(ab) x_0 + sqrt(1 - ab) eps, with ab the schedule's cumulative alpha.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..types import ScdpoError


class Parameterisation(Protocol):
    """The target of a network, and how its error relates to the error of the noise."""

    def target(self, latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
        """What a perfect network would answer, shaped as `latents`; `alpha_bar` broadcasts to it."""
        ...

    def exact_weight(self, alpha_bar: Tensor) -> Tensor:
        """Factor that turns the squared error of the answer into that of the noise it implies."""
        ...


class Epsilon:
    """The network predicts the noise (Ho et al. 2020)."""

    def target(self, latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
        """The noise itself."""
        return noise

    def exact_weight(self, alpha_bar: Tensor) -> Tensor:
        """1: the native error is the noise's."""
        return torch.ones_like(alpha_bar)


class Velocity:
    """The network predicts v = sqrt(ab) eps - sqrt(1 - ab) x_0 (Salimans and Ho 2022)."""

    def target(self, latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
        """The velocity."""
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents

    def exact_weight(self, alpha_bar: Tensor) -> Tensor:
        """ab: the implied noise is sqrt(ab) v + sqrt(1 - ab) x_t, and x_t is known."""
        return alpha_bar


PARAMETERISATIONS: dict[str, Parameterisation] = {"epsilon": Epsilon(), "v_prediction": Velocity()}


def parameterisation(name: str) -> Parameterisation:
    """The parameterisation that a diffusers scheduler calls `name`.

    Raises:
        ScdpoError: it is none that can be trained; lists those that can.
    """
    if name not in PARAMETERISATIONS:
        raise ScdpoError(
            f"This model predicts '{name}', which cannot be trained here. "
            f"Models that predict one of these can: {', '.join(PARAMETERISATIONS)}."
        )
    return PARAMETERISATIONS[name]
