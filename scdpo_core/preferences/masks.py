"""Masks of pairs: white where the two images differ, black where they are to stay the same.

my_pairs/masks/weapon/a.png        beside chosen/weapon/a.png and rejected/weapon/a.png
"""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..io.files import atomic_path
from ..io.images import open_image, to_pixels

FOLDER = "masks"
_ENDINGS = (".png", ".webp", ".jpg", ".jpeg", ".bmp")


def write_mask(folder: Path, pair_id: str, mask: Image.Image) -> Path:
    """Write the mask of a pair, unless it is there already; returns its file.

    Args:
        folder: the preference folder.
        pair_id: of the pair.
        mask: grey image, white where the images differ.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / FOLDER / f"{pair_id}.png"
    if not path.is_file():
        with atomic_path(path) as temporary:
            mask.save(temporary, format="PNG")
    return path


def mask_of(folder: Path, pair_id: str) -> Path | None:
    """Return the mask of a pair in a preference folder, if there is one.

    Args:
        folder: the preference folder.
        pair_id: of the pair, '/' between subfolders.
    """
    names = (folder / FOLDER / f"{pair_id}{ending}" for ending in _ENDINGS)
    # Where the name is too long for the file system, pathlib raises.
    return next((path for path in names if os.path.isfile(path)), None)


def latent_mask(path: Path, size: tuple[int, int], latent_shape: tuple[int, int, int]) -> Tensor:
    """Return a mask on the grid of the latents, [1, h, w], 0..1; cropped as the pair's images are.

    Args:
        path: the image; its brightness counts.
        size: (width, height) in pixels that the pair's images are brought to.
        latent_shape: (C, h, w) of their latents.

    Raises:
        ScdpoError: it cannot be read.
    """
    brightness = to_pixels(open_image(path), size).mean(0, keepdim=True) / 2 + 0.5
    return adaptive_avg_pool2d(brightness[None], latent_shape[1:])[0].clamp(0, 1)
