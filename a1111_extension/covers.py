"""Images that show nothing of the original: blurred, pixelated, black, or black with a sentence."""

from __future__ import annotations

import hashlib
import textwrap

from PIL import Image, ImageDraw, ImageFont

_CELLS = 12
"""Squares along the shorter side of a pixelated image; what is seen through so few is mood and colour."""
_LETTER = (6, 11)
_MARGIN = 8
_OPAQUE = 254  # alpha without its lowest bit
_PAPER, _INK = (16, 16, 16), (235, 235, 235)


def pixelated(image: Image.Image) -> Image.Image:
    """The image in a few large squares; RGB, of its size."""
    return _few(image).resize(image.size, Image.Resampling.NEAREST)


def blurred(image: Image.Image) -> Image.Image:
    """The image so blurred that no more is left of it than of a pixelated one; RGB, of its size."""
    return _few(image).resize(image.size, Image.Resampling.BICUBIC)


def black(image: Image.Image) -> Image.Image:
    """A black image of the same size."""
    return Image.new("RGB", image.size)


def notice(size: tuple[int, int], sentence: str) -> Image.Image:
    """A dark image that says why there is no other.

    Args:
        size: (width, height), pixels.
        sentence: what it says; cut where the image is too small.
    """
    scale = max(1, min(size) // 320)
    small = (max(1, size[0] // scale), max(1, size[1] // scale))
    card = Image.new("RGB", small, _PAPER)
    columns = max(4, (small[0] - 2 * _MARGIN) // _LETTER[0])
    # The font that Pillow always has knows Latin-1 alone.
    text = sentence.encode("latin-1", "replace").decode("latin-1")
    lines = textwrap.wrap(text, columns)[: max(1, (small[1] - 2 * _MARGIN) // _LETTER[1])]
    pen, font = ImageDraw.Draw(card), ImageFont.load_default()
    for number, line in enumerate(lines):
        pen.text((_MARGIN, _MARGIN + number * _LETTER[1]), line, _INK, font)
    return card.resize(size, Image.Resampling.NEAREST)


def digest(image: Image.Image) -> bytes:
    """Equal for images with the same pixels alone."""
    told = f"{image.mode} {image.size} {image.getpalette()}".encode()
    return hashlib.blake2b(told + image.tobytes(), digest_size=16).digest()


def unmarked(image: Image.Image) -> Image.Image:
    """The image without alpha if that has nothing but the text that Forge hides in its lowest bits."""
    marked = image.mode == "RGBA" and image.getchannel("A").getextrema()[0] >= _OPAQUE
    return image.convert("RGB") if marked else image


def _few(image: Image.Image) -> Image.Image:
    # Forge hides text in the alpha channel, and colours lie beneath what is transparent.
    rgb = image.convert("RGB")
    cell = max(1, min(rgb.size) // _CELLS)
    return rgb.resize((max(1, rgb.width // cell), max(1, rgb.height // cell)), Image.Resampling.BOX)
