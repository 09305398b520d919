"""Errors of policy and reference on the same pictures, noise and timesteps: two forward passes, one network.

The reference is the network with its LoRA switched off, once, as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..types import Conditioning, PairBatch, PairErrors

if TYPE_CHECKING:
    from ..families.base import LoadedModel, Weighting
    from ..lora.adapter import LoraAdapter


@dataclass(frozen=True)
class Draw:
    """What chance decides for a batch of B pairs.

    Attributes:
        timesteps: [B] int64.
        noise: [B, C, h, w] standard normal; both pictures of a pair get the same.
    """

    timesteps: Tensor
    noise: Tensor


@dataclass(frozen=True)
class PairResiduals:
    """Prediction minus target, [2B, C, h, w], the B chosen pictures first; `reference` has no gradient."""

    policy: Tensor
    reference: Tensor

    def errors(self) -> PairErrors:
        """Mean squares, [B, 2]."""
        both = [side.square().flatten(1).mean(1).view(2, -1).T for side in (self.policy, self.reference)]
        return PairErrors(*both)


def draw(
    index: int, seed: int, pairs: int, shape: tuple[int, ...], num_timesteps: int, device: torch.device
) -> Draw:
    """Timesteps and noise of the batch of that index.

    They come from a CPU generator of their own, so a resumed run, another device and another
    number of samples drawn in between all see the same.
    """
    # A large odd factor keeps neighbouring seeds from sharing batches at shifted indices.
    generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + index) % 2**63)
    timesteps = torch.randint(num_timesteps, (pairs,), generator=generator)
    noise = torch.randn((pairs, *shape), generator=generator)
    return Draw(timesteps.to(device, non_blocking=True), noise.to(device, non_blocking=True))


def pair_residuals(
    model: LoadedModel, adapter: LoraAdapter, batch: PairBatch, chance: Draw, weighting: Weighting
) -> PairResiduals:
    """Residuals of both networks on both pictures of B pairs, each in one forward pass of 2B pictures."""
    latents = batch.latents.transpose(0, 1).flatten(0, 1)
    noise, timesteps = torch.cat([chance.noise] * 2), torch.cat([chance.timesteps] * 2)
    words = twice(batch.conditioning)
    with torch.no_grad(), adapter.disabled():
        reference = model.residuals(latents, noise, timesteps, words, weighting)
    policy = model.residuals(latents, noise, timesteps, words, weighting)
    return PairResiduals(policy, reference)


def noise_residuals(
    model: LoadedModel, adapter: LoraAdapter, batch: PairBatch, chance: Draw
) -> tuple[Tensor, Tensor]:
    """Residuals [B, C, h, w] of policy and reference on pure noise at the last timestep, for DUO's prior."""
    timesteps = torch.full_like(chance.timesteps, model.num_timesteps - 1)
    # No picture at all: whatever is left of one at the last timestep differs from schedule to schedule.
    empty = torch.zeros_like(chance.noise)
    with torch.no_grad(), adapter.disabled():
        reference = model.residuals(empty, chance.noise, timesteps, batch.conditioning, "native")
    return model.residuals(empty, chance.noise, timesteps, batch.conditioning, "native"), reference


def twice(conditioning: Conditioning) -> Conditioning:
    """The same prompts for the rejected pictures as for the chosen ones."""
    pooled = conditioning.pooled
    return Conditioning(
        torch.cat([conditioning.embeddings] * 2), None if pooled is None else torch.cat([pooled] * 2)
    )
