"""Recognise judged images, and grids that the host makes of them, by their pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from PIL import Image, ImageChops

_OPAQUE = 254  # alpha without its lowest bit


def digest(image: Image.Image) -> bytes:
    """Hash an image: equal only for images with the same mode, size, palette and pixels."""
    header = f"{image.mode} {image.size} {image.getpalette()}".encode()
    return hashlib.blake2b(header + image.tobytes(), digest_size=16).digest()


def unmarked(image: Image.Image) -> Image.Image:
    """Drop an alpha channel that holds nothing but the text that Forge hides in its lowest bits."""
    marked = image.mode == "RGBA" and image.getchannel("A").getextrema()[0] >= _OPAQUE
    return image.convert("RGB") if marked else image


@dataclass(frozen=True)
class Grid:
    """A grid of judged images, before the host has drawn it.

    Attributes:
        images: row by row.
        columns: images in a row.
        rows: how many.
        cell: (width, height) of a cell, pixels; smaller images are centred in it.
    """

    images: tuple[Image.Image, ...]
    columns: int
    rows: int
    cell: tuple[int, int]

    def shows(self, image: Image.Image) -> bool:
        """Return whether an image is this grid: these images in their positions, one colour around them."""
        size = (self.columns * self.cell[0], self.rows * self.cell[1])
        # Forge and Forge Neo draw grids with an alpha channel, A1111 without one.
        if image.mode not in ("RGB", "RGBA") or image.size != size:
            return False
        expected, around = image.copy(), Image.new("L", size, 255)
        for number, part in enumerate(self.images):
            position = (
                number % self.columns * self.cell[0] + (self.cell[0] - part.width) // 2,
                number // self.columns * self.cell[1] + (self.cell[1] - part.height) // 2,
            )
            expected.paste(part, position)
            around.paste(0, (*position, position[0] + part.width, position[1] + part.height))
        # Band by band: where there is alpha, Pillow looks at nothing else.
        if any(band.getbbox() is not None for band in ImageChops.difference(image, expected).split()):
            return False
        return all(sum(map(bool, band.histogram(around))) <= 1 for band in image.split())
