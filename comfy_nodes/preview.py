"""Small pictures with their cost, shown in a node."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
from PIL import Image

from ..scdpo_core.scoring import wording
from ..scdpo_core.scoring.image_sheet import with_badge
from ..scdpo_core.types import CostScore
from .convert import in_threads

LARGEST, SMALLEST = 512, 256
"""Longest side of a preview, pixels; small pictures are enlarged so that the badge can be read."""
MOST = 9
"""Images that a node shows, so that a badge can still be read; the whole batch goes on all the same."""
_MANY, _LARGEST_OF_MANY = 4, 384
"""A node shows four and more side by side, each a quarter of its area at most."""


def badges(
    pictures: Sequence[Image.Image], scores: Sequence[CostScore], held: Collection[int] = ()
) -> dict[str, Any]:
    """The `ui` of a node that shows images with a badge each; of many, the MOST with the highest costs.

    Args:
        pictures: RGB.
        scores: one for each.
        held: the places of those that a gate has held.
    """
    chosen = sorted(wording.highest(scores, MOST))
    numbered = len(scores) > MOST
    return show(
        [
            with_badge(
                picture,
                f"{f'{k}: ' if numbered else ''}{wording.label(scores[k])}{', held' if k in held else ''}",
                scores[k].band,
            )
            for k, picture in zip(chosen, small([pictures[k] for k in chosen]), strict=True)
        ]
    )


def small(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures in the size that a node shows them in."""
    largest = LARGEST if len(pictures) < _MANY else _LARGEST_OF_MANY
    return in_threads(lambda picture: _sized(picture, largest), pictures)


def show(pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """The `ui` of a node that shows these pictures as they are.

    JPEG, because PNG would take longer than the scoring itself.
    """
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"scdpo_{uuid.uuid4().hex[:10]}"
    files = [f"{name}_{number:03}.jpg" for number in range(len(pictures))]

    def save(item: tuple[str, Image.Image]) -> None:
        item[1].save(folder / item[0], "JPEG", quality=88)

    in_threads(save, list(zip(files, pictures, strict=True)))
    return {
        "images": [{"filename": file, "subfolder": "", "type": "temp"} for file in files],
        "animated": (False,),
    }


def keep(picture: Image.Image) -> None:
    """End a node's live previews with this picture: the page goes on showing the last one."""
    comfy.utils.ProgressBar(1).update_absolute(1, 1, ("JPEG", picture, max(picture.size)))


def _sized(picture: Image.Image, largest: int) -> Image.Image:
    longest = max(picture.size)
    if longest > largest:
        return picture.reduce(-(-longest // largest))
    times = -(-SMALLEST // longest)
    size = (picture.width * times, picture.height * times)
    return picture if times == 1 else picture.resize(size, Image.Resampling.NEAREST)
