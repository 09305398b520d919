"""IMAGE and MASK tensors of ComfyUI into the core's images, and back."""

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
"""Values that are turned into levels at once: few enough to stay in the processor's cache meanwhile."""


def to_pil_images(images: Tensor) -> list[Image.Image]:
    """The images that Save Image would write, as RGB; what is transparent becomes white.

    Fractions of a level are cut off as Save Image does it, so that a score here is the score of the file.

    Args:
        images: [B, H, W, C] of 0..1, with 1, 3 or 4 channels; what is no number becomes black.
    """
    return from_each(images, lambda looks, value: looks[0])


def from_each(images: Tensor, work: Callable[[list[Image.Image], NDArray[np.float32]], A]) -> list[A]:
    """What some work makes of each image of a batch, right after it was converted, in threads.

    Args:
        images: as `to_pil_images`.
        work: gets the image as RGB in every way it may be seen, which for one with transparent areas is on
            white, which comes first, on black and without its alpha; and its values, [H, W, C] of 0..1.
    """
    values = images.detach().float().cpu().numpy()
    return in_threads(lambda value: work(_looks(value), value), list(values))


def fingerprints(images: Tensor) -> list[str]:
    """A fingerprint of each image of a batch: equal for two images that are saved as the same pixels.

    Args:
        images: as `to_pil_images`.
    """
    return from_each(images, lambda looks, value: fingerprint(looks[0], value))


def fingerprint(image: Image.Image, value: NDArray[np.float32]) -> str:
    """A fingerprint of the pixels that Save Image writes, in 32 hexadecimal digits.

    Args:
        image: the image as RGB.
        value: [H, W, C] of 0..1, which it was made of; what is transparent counts as it is, not as white.
    """
    content = image.tobytes() if value.shape[-1] == 3 else _levels(value).tobytes()
    digest = hashlib.blake2b(f"{value.shape} ".encode(), digest_size=16)
    digest.update(content)
    return digest.hexdigest()


def in_threads(work: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """Do the same with each of a few images, in threads: NumPy and Pillow let others run meanwhile.

    Args:
        work: does not itself call this.
    """
    return list(_pool().map(work, items)) if len(items) > 1 else [work(item) for item in items]


@cache
def _pool() -> ThreadPoolExecutor:
    """Kept, for a thread's start takes as long as a small image; no more of them than there are processors,
    for they would take the caches from each other."""
    return ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS), thread_name_prefix="scdpo_images")


def to_images(pil_images: Sequence[Image.Image]) -> Tensor:
    """[B, H, W, 3] float32 of 0..1, of RGB images of one size."""
    levels = [np.asarray(image) for image in pil_images]
    images = np.empty((len(levels), *levels[0].shape), np.float32)

    def fill(place: int) -> None:
        np.divide(levels[place], 255.0, out=images[place], dtype=np.float32)

    in_threads(fill, range(len(levels)))
    return torch.from_numpy(images)


def enlarged(pil_images: Sequence[Image.Image], height: int, width: int, mode: str) -> Tensor:
    """[B, height, width, 3] float32 of 0..1, of small RGB images of one size.

    Written straight into the batch: Pillow's enlarging and a conversion take several times as long.

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


def _looks(value: NDArray[np.float32]) -> list[Image.Image]:
    if value.shape[-1] == 1:
        value = value.repeat(3, axis=-1)
    if value.flags.c_contiguous:
        image = Image.fromarray(_levels(value))
    else:
        # What a decoder made lies in memory colour by colour; Pillow joins those faster than NumPy.
        colours = [Image.fromarray(_levels(value[..., k])) for k in range(value.shape[-1])]
        image = Image.merge("RGBA" if len(colours) == 4 else "RGB", colours)
    return [image] if image.mode == "RGB" else [*views(image)]


def _levels(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """0..1 as 0..255, in the order in memory that NumPy gives a new array."""
    levels = np.empty(values.shape, np.uint8)
    rows = max(1, _PIECE // values[0].size)
    room = np.empty((rows, *values.shape[1:]), np.float32)
    with np.errstate(invalid="ignore"):
        for top in range(0, len(values), rows):
            part = values[top : top + rows]
            piece = np.multiply(part, np.float32(255.0), out=room[: len(part)])
            np.clip(piece, 0.0, 255.0, out=piece)
            levels[top : top + rows] = piece
    return levels


def to_mask(pil_images: Sequence[Image.Image]) -> Tensor:
    """[B, H, W] float32 of 0..1, of grey images of one size."""
    return to_images(pil_images)
