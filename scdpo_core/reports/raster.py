"""What hosts show as one image: text, badges, rows of images, pairs; for any Pillow since 9.5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..types import Band, CostScore
from .wording import label

Colour = tuple[int, int, int]

PAPER, INK, SOFT, FAINT = (250, 250, 248), (30, 34, 40), (96, 102, 110), (212, 215, 219)
BAND_COLOURS: Mapping[Band, Colour] = {
    "safe": (27, 120, 55),
    "review": (158, 96, 0),
    "unsafe": (183, 28, 28),
}
"""Dark enough for white text (contrast above 4.5)."""


@dataclass(frozen=True)
class Strip:
    """One row of a comparison.

    Attributes:
        title: what was done, such as 'strength 1'.
        images: RGB, of one size in all rows; column k has the same seed in every row.
        scores: one for each image.
    """

    title: str
    images: Sequence[Image.Image]
    scores: Sequence[CostScore]


@dataclass(frozen=True)
class BadgedRow:
    """One row of images with a badge each.

    Attributes:
        title: above the row.
        images: of any size.
        badges: text and band of the colour, one for each image.
    """

    title: str
    images: Sequence[Image.Image]
    badges: Sequence[tuple[str, Band]]


@lru_cache(maxsize=512)
def text_mask(text: str, height: int) -> Image.Image:
    """Render text as an 8-bit mask whose letters are `height` pixels high."""
    font = _font(height)
    left, top, right, bottom = font.getbbox(text or " ")
    mask = Image.new("L", (max(1, round(right - left)), max(1, round(bottom - top))))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
    if isinstance(font, ImageFont.FreeTypeFont):
        return mask
    # Pillow's bitmap font has a single size.
    scale = height / mask.height
    return mask.resize((max(1, round(mask.width * scale)), height), Image.Resampling.BICUBIC)


@lru_cache(maxsize=32)
def _font(size: int) -> Any:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1
        return ImageFont.load_default()


def write(
    image: Image.Image,
    text: str,
    position: tuple[float, float],
    height: int,
    colour: Colour,
    *,
    centred: bool = False,
) -> None:
    """Write a line of text at its upper left corner, or centred on it horizontally."""
    mask = text_mask(text, height)
    left = position[0] - mask.width / 2 if centred else position[0]
    image.paste(colour, (max(0, round(left)), round(position[1])), mask)


def fitted(image: Image.Image, side: int) -> Image.Image:
    """Scale an image to a longer side of `side` pixels, as RGB; small drawings keep hard pixels."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return image.convert("RGB").resize(size, resampling)


def paste_centred(sheet: Image.Image, image: Image.Image, left: int, top: int, side: int) -> None:
    """Paste an image into the middle of a square cell."""
    sheet.paste(image, (left + (side - image.width) // 2, top + (side - image.height) // 2))


def with_badge(image: Image.Image, text: str, band: Band) -> Image.Image:
    """Return a copy of an image with a label in its lower left corner, in the colour of a band."""
    badged = image.convert("RGB").copy()
    side = max(12, min(badged.size) // 12)
    mask = text_mask(text, side)
    pad = max(2, side // 3)
    width, height = min(badged.width, mask.width + 2 * pad), mask.height + pad
    plate = Image.new("RGB", (width, height), BAND_COLOURS[band])
    plate.paste((255, 255, 255), (pad, pad // 2), mask)
    badged.paste(plate, (0, badged.height - height))
    return badged


def comparison(strips: Sequence[Strip], side: int = 256) -> Image.Image:
    """Draw rows of images with their costs, each row under its title.

    Args:
        strips: at least one, each with the same number of images.
        side: longer side of each image on the sheet, pixels.
    """
    return badged_rows(
        [
            BadgedRow(strip.title, strip.images, [(label(score), score.band) for score in strip.scores])
            for strip in strips
        ],
        side,
    )


def badged_rows(rows: Sequence[BadgedRow], side: int = 256) -> Image.Image:
    """Draw rows of images with a badge each, each row under its title.

    Args:
        rows: at least one.
        side: longer side of each image on the sheet, pixels.
    """
    cells = [[fitted(image, side) for image in row.images] for row in rows]
    width, height = (max(cell.size[axis] for row in cells for cell in row) for axis in (0, 1))
    gap, head = max(4, side // 40), max(18, side // 9)
    title_width = max(text_mask(row.title, head // 2).width for row in rows)
    columns = max(len(row) for row in cells)
    sheet_width = max(columns * (width + gap) + gap, title_width + 2 * gap)
    sheet = Image.new("RGB", (sheet_width, len(rows) * (head + height + gap) + gap), PAPER)
    for number, row in enumerate(rows):
        top = gap + number * (head + height + gap)
        write(sheet, row.title, (gap, top + head // 4), head // 2, INK)
        for column, (cell, badge) in enumerate(zip(cells[number], row.badges, strict=True)):
            sheet.paste(with_badge(cell, *badge), (gap + column * (width + gap), top + head))
    return sheet


def pair_card(
    chosen: Image.Image,
    rejected: Image.Image,
    prompt: str,
    side: int = 256,
    titles: tuple[str, str] = ("chosen", "rejected"),
) -> Image.Image:
    """Draw two images side by side under their titles, with the prompt below.

    Args:
        chosen: RGB.
        rejected: RGB.
        prompt: cut after 120 characters.
        side: of each image, pixels.
        titles: above the two.
    """
    head = max(14, side // 12)
    sheet = Image.new("RGB", (2 * side + 2, side + 2 * head), PAPER)
    colours = (BAND_COLOURS["safe"], BAND_COLOURS["unsafe"])
    for left, image, title, colour in zip((0, side + 2), (chosen, rejected), titles, colours, strict=True):
        paste_centred(sheet, fitted(image, side), left, head, side)
        write(sheet, title, (left + 4, head // 4), head // 2, colour)
    write(sheet, prompt[:120], (4, head + side + head // 4), head // 2, INK)
    return sheet


def grid(images: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Lay out images of one size in rows.

    Args:
        images: at least one.
        columns: at most.
    """
    columns, (width, height) = min(columns, len(images)), images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + 8) - 8, rows * (height + 8) - 8), PAPER)
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * (width + 8), number // columns * (height + 8)))
    return sheet
