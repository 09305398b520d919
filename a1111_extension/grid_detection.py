"""Grids that the host puts together from images: told from any other image by what they show."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageChops


@dataclass(frozen=True)
class Grid:
    """A grid of judged images, before the host has drawn it.

    Attributes:
        images: row by row.
        columns: images in a row.
        rows: how many.
        cell: (width, height) of a place, pixels; smaller images stand in its middle.
    """

    images: tuple[Image.Image, ...]
    columns: int
    rows: int
    cell: tuple[int, int]

    def shows(self, image: Image.Image) -> bool:
        """Whether an image is this grid: these images in their places, and one colour around them."""
        size = (self.columns * self.cell[0], self.rows * self.cell[1])
        # Forge and Forge Neo draw grids with an alpha channel, A1111 without one.
        if image.mode not in ("RGB", "RGBA") or image.size != size:
            return False
        wanted, around = image.copy(), Image.new("L", size, 255)
        for number, part in enumerate(self.images):
            place = (
                number % self.columns * self.cell[0] + (self.cell[0] - part.width) // 2,
                number // self.columns * self.cell[1] + (self.cell[1] - part.height) // 2,
            )
            wanted.paste(part, place)
            around.paste(0, (*place, place[0] + part.width, place[1] + part.height))
        # Band by band: where there is alpha, Pillow looks at nothing else.
        if any(band.getbbox() is not None for band in ImageChops.difference(image, wanted).split()):
            return False
        return all(sum(map(bool, band.histogram(around))) <= 1 for band in image.split())
