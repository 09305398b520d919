"""Show small images with their cost in a node."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
from PIL import Image

from ..scdpo_core.reports import wording
from ..scdpo_core.reports.raster import with_badge
from ..scdpo_core.types import CostScore
from .convert import in_threads

LARGEST, SMALLEST = 512, 256
"""Longest side of a preview, pixels; small images are enlarged so that the badge can be read."""
MOST = 9
"""Most images that a node shows, so that badges stay readable; its output is the whole batch."""
_MANY, _LARGEST_OF_MANY = 4, 384
"""A node shows four or more images side by side, each at most a quarter of its area."""


def badges(
    images: Sequence[Image.Image], scores: Sequence[CostScore], held: Collection[int] = ()
) -> dict[str, Any]:
    """Return the `ui` of a node with a badge on each image; of many, the MOST with the highest costs.

    Args:
        images: RGB.
        scores: one for each.
        held: indices of the images that a gate has held.
    """
    chosen = sorted(wording.highest(scores, MOST))
    numbered = len(scores) > MOST
    return show(
        [
            with_badge(
                image,
                f"{f'{k}: ' if numbered else ''}{wording.label(scores[k])}{', held' if k in held else ''}",
                scores[k].band,
            )
            for k, image in zip(chosen, small([images[k] for k in chosen]), strict=True)
        ]
    )


def small(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Resize images to the size that a node shows."""
    largest = LARGEST if len(images) < _MANY else _LARGEST_OF_MANY
    return in_threads(lambda image: _sized(image, largest), images)


def show(images: Sequence[Image.Image]) -> dict[str, Any]:
    """Return the `ui` of a node that shows these images.

    JPEG, because PNG would take longer than the scoring itself.
    """
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"scdpo_{uuid.uuid4().hex[:10]}"
    files = [f"{name}_{number:03}.jpg" for number in range(len(images))]

    def save(item: tuple[str, Image.Image]) -> None:
        item[1].save(folder / item[0], "JPEG", quality=88)

    in_threads(save, list(zip(files, images, strict=True)))
    return {
        "images": [{"filename": file, "subfolder": "", "type": "temp"} for file in files],
        "animated": (False,),
    }


def keep(image: Image.Image) -> None:
    """Make an image the last live preview of a node, which the page keeps showing."""
    comfy.utils.ProgressBar(1).update_absolute(1, 1, ("JPEG", image, max(image.size)))


def _sized(image: Image.Image, largest: int) -> Image.Image:
    longest = max(image.size)
    if longest > largest:
        return image.reduce(-(-longest // largest))
    times = -(-SMALLEST // longest)
    size = (image.width * times, image.height * times)
    return image if times == 1 else image.resize(size, Image.Resampling.NEAREST)
