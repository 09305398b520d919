"""Convert ComfyUI's IMAGE and MASK tensors to Pillow images, and back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..scdpo_core.io.alpha_views import views

A = TypeVar("A")
B = TypeVar("B")

_THREADS = 8
_PIECE = 1 << 17
"""Values converted at a time: few enough to stay in the CPU's cache."""


def to_pil_images(images: Tensor) -> list[Image.Image]:
    """Convert to the images that Save Image would write, as RGB; transparent areas become white.

    Values are truncated to 8 bits like Save Image does, so that a score here is the score of the file.

    Args:
        images: [B, H, W, C] of 0..1, with 1, 3 or 4 channels; NaN becomes black.
    """
    return from_each(images, lambda looks, value: looks[0])


def from_each(images: Tensor, work: Callable[[list[Image.Image], NDArray[np.float32]], A]) -> list[A]:
    """Apply `work` to each image of a batch right after its conversion, in threads.

    Args:
        images: as `to_pil_images`.
        work: gets the image as RGB in every way it may be seen, which for one with transparent areas is on
            white, which comes first, on black and without its alpha; and its values, [H, W, C] of 0..1.
    """
    values = images.detach().float().cpu().numpy()
    return in_threads(lambda value: work(_renderings(value), value), list(values))


def fingerprints(images: Tensor) -> list[str]:
    """Hash each image of a batch; equal for images that are saved as the same pixels.

    Args:
        images: as `to_pil_images`.
    """
    return from_each(images, lambda looks, value: fingerprint(looks[0], value))


def fingerprint(image: Image.Image, value: NDArray[np.float32]) -> str:
    """Hash the pixels that Save Image writes, as 32 hexadecimal digits.

    Args:
        image: the image as RGB.
        value: its values, [H, W, C] of 0..1; transparent areas are hashed as they are, not as white.
    """
    content = image.tobytes() if value.shape[-1] == 3 else _levels(value).tobytes()
    digest = hashlib.blake2b(f"{value.shape} ".encode(), digest_size=16)
    digest.update(content)
    return digest.hexdigest()


def in_threads(work: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """Apply `work` to a few images in threads; NumPy and Pillow release the interpreter lock.

    Args:
        work: does not itself call this.
    """
    return list(_pool().map(work, items)) if len(items) > 1 else [work(item) for item in items]


@cache
def _pool() -> ThreadPoolExecutor:
    """Return the shared pool: starting a thread takes as long as a small image, and more threads than
    processors would compete for the caches."""
    return ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS), thread_name_prefix="scdpo_images")


def to_images(pil_images: Sequence[Image.Image]) -> Tensor:
    """Convert RGB images of one size to [B, H, W, 3] float32 of 0..1."""
    arrays = [np.asarray(image) for image in pil_images]
    images = np.empty((len(arrays), *arrays[0].shape), np.float32)

    def fill(place: int) -> None:
        np.divide(arrays[place], 255.0, out=images[place], dtype=np.float32)

    in_threads(fill, range(len(arrays)))
    return torch.from_numpy(images)


def enlarged(pil_images: Sequence[Image.Image], height: int, width: int, mode: str) -> Tensor:
    """Enlarge small RGB images of one size to [B, height, width, 3] float32 of 0..1.

    Writes directly into the batch: Pillow's resize and a conversion take several times as long.

    Args:
        mode: 'linear', or 'nearest-exact' for blocks.
    """
    small = to_images(pil_images).numpy()
    down, across = (
        functional.interpolate(torch.eye(few)[None], size=many, mode=mode)[0].T.numpy()
        for few, many in zip(small.shape[1:3], (height, width), strict=True)
    )
    wide = np.einsum("Ww,bhwc->bhWc", across, small).reshape(*small.shape[:2], width * 3)
    images = np.empty((len(pil_images), height, width * 3), np.float32)
    in_threads(lambda place: np.matmul(down, wide[place], out=images[place]), range(len(pil_images)))
    return torch.from_numpy(images.reshape(-1, height, width, 3))


def _renderings(value: NDArray[np.float32]) -> list[Image.Image]:
    if value.shape[-1] == 1:
        value = value.repeat(3, axis=-1)
    if value.flags.c_contiguous:
        image = Image.fromarray(_levels(value))
    else:
        # A VAE's output is stored channel by channel; Pillow joins channels faster than NumPy.
        colours = [Image.fromarray(_levels(value[..., k])) for k in range(value.shape[-1])]
        image = Image.merge("RGBA" if len(colours) == 4 else "RGB", colours)
    return [image] if image.mode == "RGB" else [*views(image)]


def _levels(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Convert 0..1 to 0..255, in C order."""
    levels = np.empty(values.shape, np.uint8)
    rows = max(1, _PIECE // values[0].size)
    buffer = np.empty((rows, *values.shape[1:]), np.float32)
    with np.errstate(invalid="ignore"):
        for top in range(0, len(values), rows):
            rows_in = values[top : top + rows]
            scaled = np.multiply(rows_in, np.float32(255.0), out=buffer[: len(rows_in)])
            np.clip(scaled, 0.0, 255.0, out=scaled)
            levels[top : top + rows] = scaled
    return levels


def to_mask(pil_images: Sequence[Image.Image]) -> Tensor:
    """Convert grey images of one size to [B, H, W] float32 of 0..1."""
    return to_images(pil_images)
