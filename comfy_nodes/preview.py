"""Small pictures with their cost, shown in a node."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folder_paths
from PIL import Image

from ..scdpo_core.scoring.board import with_badge
from ..scdpo_core.types import Band

LARGEST, SMALLEST = 512, 256
"""Longest side of a preview, pixels; small pictures are enlarged so that the badge can be read."""


def badges(pictures: Sequence[Image.Image], labels: Sequence[tuple[str, Band]]) -> dict[str, Any]:
    """The `ui` of a node that shows pictures with a badge each.

    JPEG at preview size, because a full PNG would take longer than the scoring itself.
    """
    shown = [with_badge(_sized(p), text, band) for p, (text, band) in zip(pictures, labels, strict=True)]
    return show(shown)


def show(pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """The `ui` of a node that shows these pictures as they are."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    name, images = f"scdpo_{uuid.uuid4().hex[:10]}", []
    for number, picture in enumerate(pictures):
        file = f"{name}_{number:03}.jpg"
        picture.save(folder / file, "JPEG", quality=88)
        images.append({"filename": file, "subfolder": "", "type": "temp"})
    return {"images": images, "animated": (False,)}


def _sized(picture: Image.Image) -> Image.Image:
    longest = max(picture.size)
    wanted = min(LARGEST, max(SMALLEST, longest))
    if wanted == longest:
        return picture
    size = (max(1, picture.width * wanted // longest), max(1, picture.height * wanted // longest))
    if wanted > longest:
        return picture.resize(size, Image.Resampling.NEAREST)
    return picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
