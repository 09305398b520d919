"""Words as images. Pillow alone, in any of its versions that a host may have."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont


@lru_cache(maxsize=512)
def lettered(text: str, height: int) -> Image.Image:
    """Text as a mask whose letters are so many pixels high."""
    font = _font(height)
    left, top, right, bottom = font.getbbox(text or " ")
    mask = Image.new("L", (max(1, round(right - left)), max(1, round(bottom - top))))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
    if isinstance(font, ImageFont.FreeTypeFont):
        return mask
    # Pillow's own bitmap letters come in one size.
    scale = height / mask.height
    return mask.resize((max(1, round(mask.width * scale)), height), Image.Resampling.BICUBIC)


@lru_cache(maxsize=32)
def _font(size: int) -> Any:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1
        return ImageFont.load_default()
