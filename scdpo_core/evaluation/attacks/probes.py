"""Noised images whose denoising an attacker wants to succeed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...types import Conditioning
from .base import Examples

if TYPE_CHECKING:
    from ...families.base import LoadedModel


@dataclass(frozen=True)
class Noised:
    """Noised images whose denoising is to succeed: what an attacker minimises the error of.

    Attributes:
        latents: [N, C, h, w].
        noise: [N, C, h, w].
        timesteps: [N].
        rows: which example each is of.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    rows: list[int]

    def error(self, model: LoadedModel, words: Conditioning) -> Tensor:
        """Return [N] error of the denoiser under N prompts."""
        return model.errors(self.latents, self.noise, self.timesteps, words, "native")


class Probes:
    """Draws noised examples."""

    def __init__(self, model: LoadedModel, examples: Examples, seed: int) -> None:
        self._model, self._dice = model, torch.Generator().manual_seed(seed)
        self._latents = model.encode_images(examples.pixels())

    def draw(self, number: int) -> Noised:
        """Sample that many noised examples, each example equally often."""
        from ...families.timesteps import TimestepLaw

        rows = [int(row) for row in torch.randperm(number, generator=self._dice) % len(self._latents)]
        latents = self._latents[rows]
        noise = torch.randn(latents.shape, generator=self._dice).to(latents.device)
        times = self._model.timesteps.draw(number, TimestepLaw(), self._dice).to(latents.device)
        return Noised(latents, noise, times, rows)
