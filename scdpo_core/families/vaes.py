"""Between images and the latents that a denoiser sees: what differs from one kind of VAE to the next."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

_SQUARE = 2
# Black Forest Labs keep these two inside of the encoder and the decoder.
_QUANT_CONV = re.compile(r"^(?:encoder|decoder)\.(?=(?:post_)?quant_conv\.)")


class LatentSpace(Protocol):
    """A VAE's calls, and the scale that gives its latents mean 0 and variance 1.

    Attributes:
        channels: of a latent.
        scale: pixels per latent cell, along either axis.
    """

    @property
    def channels(self) -> int: ...  # noqa: D102

    @property
    def scale(self) -> int: ...  # noqa: D102

    def encode(self, vae: Any, images: Tensor) -> Tensor:
        """Encode images [N, 3, H, W] as unscaled latents [N, C, h, w], the mean of their distribution."""
        ...

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Decode unscaled latents [N, C, h, w] to images [N, 3, H, W] in -1..1."""
        ...

    def scaled(self, latents: Tensor) -> Tensor:
        """Bring latents to the denoiser's mean and variance."""
        ...

    def unscaled(self, latents: Tensor) -> Tensor:
        """Undo `scaled`."""
        ...


@dataclass(frozen=True)
class ImageSpace:
    """Of an AutoencoderKL: one scale and one shift for all channels; see `LatentSpace`."""

    channels: int
    scale: int
    factor: float
    shift: float

    def encode(self, vae: Any, images: Tensor) -> Tensor:
        """See `LatentSpace.encode`."""
        mean: Tensor = vae.encode(images).latent_dist.mean
        return mean

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """See `LatentSpace.decode`."""
        pixels: Tensor = vae.decode(latents).sample
        return pixels

    def scaled(self, latents: Tensor) -> Tensor:
        """See `LatentSpace.scaled`."""
        return (latents - self.shift) * self.factor

    def unscaled(self, latents: Tensor) -> Tensor:
        """See `LatentSpace.unscaled`."""
        return latents / self.factor + self.shift


@dataclass(frozen=True)
class VideoSpace:
    """Of a VAE for videos (Wan's, Qwen-Image's): an image is one frame, and each channel has its own mean and
    standard deviation; see `LatentSpace`."""

    scale: int
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    @property
    def channels(self) -> int:
        """See `LatentSpace`."""
        return len(self.means)

    def encode(self, vae: Any, images: Tensor) -> Tensor:
        """See `LatentSpace.encode`."""
        mean: Tensor = vae.encode(images[:, :, None]).latent_dist.mean
        return mean[:, :, 0]

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """See `LatentSpace.decode`."""
        frames: Tensor = vae.decode(latents[:, :, None]).sample
        return frames[:, :, 0]

    def scaled(self, latents: Tensor) -> Tensor:
        """See `LatentSpace.scaled`."""
        return (latents - self._each(self.means, latents)) / self._each(self.deviations, latents)

    def unscaled(self, latents: Tensor) -> Tensor:
        """See `LatentSpace.unscaled`."""
        return latents * self._each(self.deviations, latents) + self._each(self.means, latents)

    def _each(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)


@dataclass(frozen=True)
class PackedSpace:
    """Of FLUX.2's VAE: squares of 2x2 cells are the channels of one, and each of those has its own mean and
    variance, which the VAE carries; see `LatentSpace`."""

    channels: int
    scale: int
    means: Tensor
    deviations: Tensor

    def encode(self, vae: Any, images: Tensor) -> Tensor:
        """See `LatentSpace.encode`."""
        return pixel_unshuffle(vae.encode(images).latent_dist.mean, _SQUARE)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """See `LatentSpace.decode`."""
        pixels: Tensor = vae.decode(pixel_shuffle(latents, _SQUARE)).sample
        return pixels

    def scaled(self, latents: Tensor) -> Tensor:
        """See `LatentSpace.scaled`."""
        return (latents - self.means.to(latents)) / self.deviations.to(latents)

    def unscaled(self, latents: Tensor) -> Tensor:
        """See `LatentSpace.unscaled`."""
        return latents * self.deviations.to(latents) + self.means.to(latents)


def latent_space(config: Mapping[str, Any], statistics: nn.BatchNorm2d | None = None) -> LatentSpace:
    """Return the latent space of a VAE.

    Args:
        config: as diffusers' classes have it.
        statistics: of its packed latents, where it has any.
    """
    if statistics is not None:
        assert statistics.running_mean is not None and statistics.running_var is not None
        return PackedSpace(
            _SQUARE**2 * int(config["latent_channels"]),
            _SQUARE * 2 ** (len(config["block_out_channels"]) - 1),
            statistics.running_mean.view(1, -1, 1, 1).clone(),
            (statistics.running_var + statistics.eps).sqrt().view(1, -1, 1, 1),
        )
    if "temperal_downsample" in config:
        return VideoSpace(
            2 ** len(config["temperal_downsample"]),
            tuple(config["latents_mean"]),
            tuple(config["latents_std"]),
        )
    return ImageSpace(
        int(config["latent_channels"]),
        2 ** (len(config["block_out_channels"]) - 1),
        float(config["scaling_factor"]),
        float(config.get("shift_factor") or 0.0),
    )


def latent_channels(config: Mapping[str, Any]) -> int:
    """Return how many channels the latents of a VAE with this config.json have."""
    return int(config.get("z_dim") or config.get("latent_channels") or 4)


def packed_names(tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Rename the tensors of FLUX.2's VAE, in diffusers' or Black Forest Labs' names, as diffusers does.

    Args:
        tensors: of the file.
        config: of the VAE, as diffusers has it.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    named = {_QUANT_CONV.sub("", name): tensor for name, tensor in tensors.items()}
    if not any(name.startswith("encoder.down.") for name in named):
        return named
    statistics = {name: tensor for name, tensor in named.items() if name.startswith("bn.")}
    return {**convert_ldm_vae_checkpoint(named, config), **statistics}
