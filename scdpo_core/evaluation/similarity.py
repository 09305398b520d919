"""Measure the similarity of two images, and whether the background is the requested one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

Colour = tuple[int, int, int]

_WINDOW = 11
_SIGMA = 1.5


def pixels(image: Image.Image) -> Tensor:
    """Return an image as float32 [3, H, W] in 0..1."""
    array = np.array(image.convert("RGB"), dtype=np.uint8)
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


def pixel_difference(one: Image.Image, other: Image.Image) -> float:
    """Return mean absolute difference of all channels, 0 (identical) to 1 (black against white).

    Raises:
        ValueError: the images differ in size.
    """
    _same_size(one, other)
    return float((pixels(one) - pixels(other)).abs().mean())


def ssim(one: Image.Image, other: Image.Image) -> float:
    """Structural similarity, mean over positions and colour channels: 1 for identical images.

    Wang, Bovik, Sheikh and Simoncelli 2004, "Image quality assessment: from error visibility to
    structural similarity", eq. 13 with their constants: an 11x11 Gaussian window of sigma 1.5,
    K1 = 0.01, K2 = 0.03, dynamic range 1. Each colour channel is compared on its own, because a knife
    that turned from gray to blue at equal brightness has changed. No downscaling.

    Raises:
        ValueError: the images differ in size or are smaller than the window.
    """
    _same_size(one, other)
    if min(one.size) < _WINDOW:
        raise ValueError(f"SSIM needs images of at least {_WINDOW} pixels a side, not {one.size}.")
    x, y = pixels(one)[:, None], pixels(other)[:, None]
    stacked = torch.cat([x, y, x * x, y * y, x * y])
    means = functional.conv2d(stacked, _window())
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = (means[k : k + 3] for k in range(0, 15, 3))
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    variances = mean_xx - mean_x**2 + mean_yy - mean_y**2
    structure = (2 * (mean_xy - mean_x * mean_y) + c2) / (variances + c2)
    return float((luminance * structure).mean())


def _window() -> Tensor:
    """Return the Gaussian window, [1, 1, 11, 11], sum 1."""
    offsets = torch.arange(_WINDOW, dtype=torch.float32) - _WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    line = line / line.sum()
    return torch.outer(line, line)[None, None]


def _same_size(one: Image.Image, other: Image.Image) -> None:
    if one.size != other.size:
        raise ValueError(f"Images of {one.size} and {other.size} pixels cannot be compared.")


def border_colour(image: Image.Image, width: int = 4) -> Colour:
    """Return median colour, channel by channel, of a frame of `width` pixels along the edges."""
    array = np.array(image.convert("RGB"), dtype=np.uint8)
    frame = np.ones(array.shape[:2], dtype=bool)
    frame[width:-width, width:-width] = False
    red, green, blue = np.median(array[frame], axis=0)
    return int(red), int(green), int(blue)


def nearest_colour(colour: Colour, palette: Mapping[str, Colour]) -> str:
    """Name of the palette entry with the smallest Euclidean distance in RGB."""

    def distance(name: str) -> int:
        return sum((a - b) ** 2 for a, b in zip(colour, palette[name], strict=True))

    return min(palette, key=distance)
