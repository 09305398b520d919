"""Covers that hide an image, by name; the same name hides equally well in every host."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from typing import Literal

from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from ..types import ScdpoError

Cover = Literal["blur", "pixelate", "black", "replace"]

BLUR_SIDE = 12
"""Longer side, in pixels, of all that a blurred image keeps."""
PIXELATE_SIDE = 16
"""Longer side, in blocks, of all that a pixelated image keeps."""

_CARD = ((38, 44, 56), (58, 68, 86))
_CARD_LINE = (150, 164, 186)
_PAPER, _INK = (16, 16, 16), (235, 235, 235)
_LETTER = (6, 11)  # pixels, of Pillow's bitmap font
_MARGIN = 8


def covered(image: Image.Image, cover: str, replacement: Image.Image | None = None) -> Image.Image:
    """Return an RGB image of the same size in which nothing can be recognised.

    Args:
        image: of any mode; alpha is dropped, so that neither hidden text nor hidden colours remain.
        cover: a name in `COVERS`.
        replacement: what 'replace' shows, scaled and cropped to fill; a plain card without one.

    Raises:
        ScdpoError: there is no such cover.
    """
    if cover not in COVERS:
        raise ScdpoError(f"An image cannot be hidden by '{cover}'; choose one of: {', '.join(COVERS)}.")
    return COVERS[cover](image.convert("RGB"), replacement)


def reduced(image: Image.Image, cover: str) -> Image.Image:
    """Return the few pixels that 'blur' or 'pixelate' let through, for a caller who enlarges them itself.

    What is averaged away here cannot be restored by any filter.

    Returns:
        RGB; longer side `BLUR_SIDE`, to be enlarged smoothly, or `PIXELATE_SIDE`, to be enlarged as blocks;
        less where the image is smaller.
    """
    side = PIXELATE_SIDE if cover == "pixelate" else BLUR_SIDE
    rgb = image.convert("RGB")
    scale = min(1.0, side / max(rgb.size))
    size = (max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale)))
    small = rgb.resize(size, Image.Resampling.BOX)
    return small if cover == "pixelate" else small.filter(ImageFilter.GaussianBlur(0.6))


def card(size: tuple[int, int]) -> Image.Image:
    """Draw a grey card with a closed eye, (width, height) pixels."""
    width, height = size
    shade = Image.linear_gradient("L").resize(size)
    image = Image.composite(Image.new("RGB", size, _CARD[0]), Image.new("RGB", size, _CARD[1]), shade)
    draw = ImageDraw.Draw(image)
    side = min(size) / 2
    line = max(1, round(side / 18))
    left, top = (width - side) / 2, height / 2 - side * 0.7
    draw.arc((left, top - side * 0.15, left + side, top + side * 0.85), 25, 155, fill=_CARD_LINE, width=line)
    middle, radius = (left + side / 2, top + side * 0.35), side / 2
    for angle in (-0.6, -0.22, 0.22, 0.6):
        start = (middle[0] + angle * radius * 1.05, middle[1] + radius * (1 - angle * angle / 2))
        end = (middle[0] + angle * radius * 1.35, start[1] + radius * (0.28 - 0.12 * abs(angle)))
        draw.line((*start, *end), fill=_CARD_LINE, width=line)
    return image


def text_card(size: tuple[int, int], sentence: str) -> Image.Image:
    """Draw a dark card with a sentence, (width, height) pixels; a card that is too small cuts the text."""
    scale = max(1, min(size) // 320)
    small = (max(1, size[0] // scale), max(1, size[1] // scale))
    image = Image.new("RGB", small, _PAPER)
    columns = max(4, (small[0] - 2 * _MARGIN) // _LETTER[0])
    # The font that every Pillow has knows Latin-1 only.
    text = sentence.encode("latin-1", "replace").decode("latin-1")
    lines = textwrap.wrap(text, columns)[: max(1, (small[1] - 2 * _MARGIN) // _LETTER[1])]
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    for number, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + number * _LETTER[1]), line, _INK, font)
    return image.resize(size, Image.Resampling.NEAREST)


def _blur(image: Image.Image, _: Image.Image | None) -> Image.Image:
    return reduced(image, "blur").resize(image.size, Image.Resampling.BICUBIC)


def _pixelate(image: Image.Image, _: Image.Image | None) -> Image.Image:
    return reduced(image, "pixelate").resize(image.size, Image.Resampling.NEAREST)


def _black(image: Image.Image, _: Image.Image | None) -> Image.Image:
    return Image.new("RGB", image.size)


def _replace(image: Image.Image, replacement: Image.Image | None) -> Image.Image:
    if replacement is None:
        return card(image.size)
    return ImageOps.fit(replacement.convert("RGB"), image.size, Image.Resampling.LANCZOS)


COVERS: Mapping[str, Callable[[Image.Image, Image.Image | None], Image.Image]] = {
    "blur": _blur,
    "pixelate": _pixelate,
    "black": _black,
    "replace": _replace,
}
"""How an image can be hidden, by name."""
