"""IMAGE and MASK tensors of ComfyUI into the core's pictures, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..scdpo_core.preferences.pictures import to_rgb

A = TypeVar("A")
B = TypeVar("B")

_THREADS = 8


def to_pictures(images: Tensor) -> list[Image.Image]:
    """The pictures that Save Image would write, as RGB; what is transparent becomes white.

    Fractions of a level are cut off as Save Image does it, so that a score here is the score of the file.

    Args:
        images: [B, H, W, C] of 0..1, with 1, 3 or 4 channels; what is no number becomes black.
    """
    values = images.detach().float().cpu().numpy()
    return in_threads(_to_picture, list(values))


def in_threads(work: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """Do the same with each of a few pictures, in threads: NumPy and Pillow let others run meanwhile."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(len(items), _THREADS)) as pool:
        return list(pool.map(work, items))


def to_images(pictures: Sequence[Image.Image]) -> Tensor:
    """[B, H, W, 3] float32 of 0..1, of RGB pictures of one size."""
    return torch.stack([torch.from_numpy(np.array(picture, np.float32) / 255.0) for picture in pictures])


def _to_picture(value: NDArray[np.float32]) -> Image.Image:
    if value.shape[-1] == 1:
        value = value.repeat(3, axis=-1)
    levels = value * np.float32(255.0)
    np.clip(levels, 0.0, 255.0, out=levels)
    with np.errstate(invalid="ignore"):
        return to_rgb(Image.fromarray(levels.astype(np.uint8)))


def to_mask(pictures: Sequence[Image.Image]) -> Tensor:
    """[B, H, W] float32 of 0..1, of grey pictures of one size."""
    return to_images(pictures)
