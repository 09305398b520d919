"""Errors of policy and reference on the same images, noise and timesteps: two forward passes, one network.

The reference is the network with its LoRA switched off, once, as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..devices import sent
from ..types import Conditioning, PairBatch, PairErrors

if TYPE_CHECKING:
    from ..families.base import LoadedModel
    from ..families.parameterisation import Weighting
    from ..families.timesteps import TimestepLaw, Timesteps
    from ..lora.adapter import LoraAdapter


@dataclass(frozen=True)
class NoiseSample:
    """Timesteps and noise of a batch of B pairs.

    Attributes:
        timesteps: [B] as the model's `Timesteps` draws them.
        noise: [B, C, h, w] standard normal; both images of a pair get the same.
    """

    timesteps: Tensor
    noise: Tensor

    @classmethod
    def sent(cls, timesteps: Tensor, noise: Tensor, device: torch.device) -> NoiseSample:
        """Thrown on the CPU, used on the device; without waiting for a GPU."""
        return cls(sent(timesteps, device), sent(noise, device))


@dataclass(frozen=True)
class PairResiduals:
    """Prediction minus target, [2B, C, h, w], the B chosen images first; `reference` has no gradient."""

    policy: Tensor
    reference: Tensor

    def errors(self) -> PairErrors:
        """Mean squares, [B, 2]."""
        return PairErrors(mean_squares(self.policy), mean_squares(self.reference))


def draw(
    index: int,
    seed: int,
    pairs: int,
    shape: tuple[int, ...],
    timesteps: Timesteps,
    law: TimestepLaw,
    device: torch.device,
    share: slice = slice(None),
) -> NoiseSample:
    """Timesteps and noise of the batch of that index, or of the `share` of its pairs.

    They come from a CPU generator of their own, so a resumed run, another device and another
    number of samples drawn in between all see the same.
    """
    # A large odd factor keeps neighbouring seeds from sharing batches at shifted indices.
    generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + index) % 2**63)
    times = timesteps.draw(pairs, law, generator)
    noise = torch.randn((pairs, *shape), generator=generator)
    return NoiseSample.sent(times[share], noise[share], device)


def autocast_for(model: LoadedModel) -> AbstractContextManager[object]:
    """In which a network with 16-bit weights and its LoRA of 32 bits understand each other."""
    if model.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(model.device.type, model.dtype)


def reference_residuals(
    model: LoadedModel,
    adapter: LoraAdapter,
    batch: PairBatch,
    noise_sample: NoiseSample,
    weighting: Weighting,
) -> Tensor:
    """Prediction minus target without the LoRA, [2B, C, h, w], chosen first; without gradient."""
    with torch.no_grad(), adapter.disabled():
        return _residuals(model, batch, noise_sample, weighting, batch.conditioning)


def policy_residuals(
    model: LoadedModel,
    batch: PairBatch,
    noise_sample: NoiseSample,
    weighting: Weighting,
    conditioning: Conditioning | None = None,
) -> Tensor:
    """Prediction minus target with the LoRA, [2B, C, h, w], chosen first: one forward pass of 2B images.

    `conditioning` is the policy's, where its text encoders train along.
    """
    return _residuals(model, batch, noise_sample, weighting, conditioning or batch.conditioning)


def _residuals(
    model: LoadedModel,
    batch: PairBatch,
    noise_sample: NoiseSample,
    weighting: Weighting,
    conditioning: Conditioning,
) -> Tensor:
    query = pair_query(model, batch, noise_sample, conditioning)
    return pair_error_residuals(
        model, model.predict(query.noisy, query.timesteps, query.conditioning), batch, noise_sample, weighting
    )


@dataclass(frozen=True)
class Query:
    """What a network is asked: N noisy latents, each with its timestep and its prompt.

    Attributes:
        noisy: [N, C, h, w].
        timesteps: [N].
        conditioning: of N prompts.
    """

    noisy: Tensor
    timesteps: Tensor
    conditioning: Conditioning


def pair_query(
    model: LoadedModel, batch: PairBatch, noise_sample: NoiseSample, conditioning: Conditioning
) -> Query:
    """Both images of B pairs under their prompts, N = 2B, chosen first."""
    latents = batch.latents.transpose(0, 1).flatten(0, 1)
    timesteps = torch.cat([noise_sample.timesteps] * 2)
    noisy = model.add_noise(latents, torch.cat([noise_sample.noise] * 2), timesteps)
    return Query(noisy, timesteps, conditioning.map(lambda part: torch.cat([part] * 2)))


def pair_error_residuals(
    model: LoadedModel, prediction: Tensor, batch: PairBatch, noise_sample: NoiseSample, weighting: Weighting
) -> Tensor:
    """Prediction minus target, [2B, C, h, w], of the answers to a `pair_query`."""
    latents = batch.latents.transpose(0, 1).flatten(0, 1)
    noise, timesteps = torch.cat([noise_sample.noise] * 2), torch.cat([noise_sample.timesteps] * 2)
    return model.error_residuals(prediction, latents, noise, timesteps, weighting)


def predict_all(model: LoadedModel, queries: Sequence[Query]) -> list[Tensor]:
    """The answers to several queries, [N, C, h, w] each; those of one shape go through together."""
    answers: dict[int, Tensor] = {}
    shapes: dict[tuple[torch.Size, torch.Size], list[int]] = {}
    for number, query in enumerate(queries):
        words = query.conditioning
        # Prompts with masks are padded to one length.
        length = 1 if words.attention_mask is None else 2
        shape = (query.noisy.shape[1:], words.embeddings.shape[length:])
        shapes.setdefault(shape, []).append(number)
    for numbers in shapes.values():
        some = [queries[number] for number in numbers]
        together = some[0] if len(some) == 1 else _joined(some)
        found = model.predict(together.noisy, together.timesteps, together.conditioning)
        parts = found.split([len(query.timesteps) for query in some])
        answers |= dict(zip(numbers, parts, strict=True))
    return [answers[number] for number in range(len(queries))]


def _joined(queries: Sequence[Query]) -> Query:
    return Query(
        torch.cat([query.noisy for query in queries]),
        torch.cat([query.timesteps for query in queries]),
        Conditioning.concat([query.conditioning for query in queries]),
    )


def pair_residuals(
    model: LoadedModel,
    adapter: LoraAdapter,
    batch: PairBatch,
    noise_sample: NoiseSample,
    weighting: Weighting,
    conditioning: Conditioning | None = None,
) -> PairResiduals:
    """Residuals of both networks on both images of B pairs, each in one forward pass of 2B images."""
    reference = reference_residuals(model, adapter, batch, noise_sample, weighting)
    return PairResiduals(policy_residuals(model, batch, noise_sample, weighting, conditioning), reference)


def mean_squares(residuals: Tensor) -> Tensor:
    """[B, 2] errors of [2B, C, h, w] residuals, chosen first."""
    return residuals.square().flatten(1).mean(1).view(2, -1).T


def noise_residuals(
    model: LoadedModel,
    adapter: LoraAdapter,
    batch: PairBatch,
    noise_sample: NoiseSample,
    conditioning: Conditioning | None = None,
) -> tuple[Tensor, Tensor]:
    """Residuals [B, C, h, w] of policy and reference on pure noise at the last timestep, for DUO's prior."""
    timesteps = model.timesteps.last(noise_sample.timesteps)
    # No image at all: whatever is left of one at the last timestep differs from schedule to schedule.
    empty = torch.zeros_like(noise_sample.noise)
    with torch.no_grad(), adapter.disabled():
        reference = model.residuals(empty, noise_sample.noise, timesteps, batch.conditioning, "native")
    own = conditioning or batch.conditioning
    return model.residuals(empty, noise_sample.noise, timesteps, own, "native"), reference
