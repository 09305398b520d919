"""IMAGE and MASK tensors of ComfyUI into the core's pictures, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..scdpo_core.preferences.pictures import to_rgb


def to_pictures(images: Tensor) -> list[Image.Image]:
    """The pictures that Save Image would write, as RGB; what is transparent becomes white.

    Fractions of a level are cut off as Save Image does it, so that a score here is the score of the file.

    Args:
        images: [B, H, W, C] of 0..1, with 1, 3 or 4 channels; what is no number counts as 0.
    """
    levels = (images.detach().float() * 255.0).nan_to_num(0.0, 255.0, 0.0).clamp(0.0, 255.0)
    pixels = levels.to(torch.uint8).cpu().numpy()
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, axis=-1)
    return [to_rgb(Image.fromarray(picture)) for picture in pixels]


def to_images(pictures: Sequence[Image.Image]) -> Tensor:
    """[B, H, W, 3] float32 of 0..1, of RGB pictures of one size."""
    return torch.stack([torch.from_numpy(np.array(picture, np.float32) / 255.0) for picture in pictures])


def to_mask(pictures: Sequence[Image.Image]) -> Tensor:
    """[B, H, W] float32 of 0..1, of grey pictures of one size."""
    return to_images(pictures)
