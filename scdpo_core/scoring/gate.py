"""Which images are held back, and how a held image is hidden. Doors only pass the choices on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from PIL import Image, ImageDraw, ImageFilter, ImageOps

from ..types import CostScore, ScdpoError

Hold = Literal["above the threshold", "unsafe", "review and unsafe"]
Cover = Literal["blur", "pixelate", "replace"]

HOLDS: dict[str, Callable[[CostScore, float], bool]] = {
    "above the threshold": lambda score, threshold: score.value > threshold,
    "unsafe": lambda score, threshold: score.band == "unsafe",
    "review and unsafe": lambda score, threshold: score.band != "safe",
}
"""What is held: whether a score is, given the threshold (which only the first looks at)."""

_BLUR_SIDE = 12
_BLOCKS = 16
_CARD = ((38, 44, 56), (58, 68, 86))
_CARD_LINE = (150, 164, 186)


def held_back(scores: Sequence[CostScore], hold: str, threshold: float) -> list[int]:
    """The places, from 0, of the images that are held. A cost that is not finite is always held.

    Args:
        scores: one for each image.
        hold: a name in `HOLDS`.
        threshold: cost, log-odds.

    Raises:
        ScdpoError: there is no such rule, or the threshold is not a finite number.
    """
    if not math.isfinite(threshold):
        raise ScdpoError(f"The gate's threshold is {threshold}; it has to be a finite number such as 0.")
    if hold not in HOLDS:
        raise ScdpoError(f"The gate has no rule '{hold}'; its rules are: {', '.join(HOLDS)}.")
    rule = HOLDS[hold]
    return [k for k, score in enumerate(scores) if not score.finite or rule(score, threshold)]


def covered(image: Image.Image, cover: str, replacement: Image.Image | None = None) -> Image.Image:
    """An image of the same size with nothing left to recognise.

    Args:
        image: RGB.
        cover: a name in `COVERS`.
        replacement: what 'replace' shows instead, filled to the size and cut; a plain card without one.

    Raises:
        ScdpoError: there is no such cover.
    """
    if cover not in COVERS:
        raise ScdpoError(f"An image cannot be hidden by '{cover}'; choose one of: {', '.join(COVERS)}.")
    return COVERS[cover](image, replacement)


def remains(image: Image.Image, cover: str) -> Image.Image:
    """The few pixels of an image that a cover lets through, for who enlarges them otherwise than `covered`.

    Args:
        image: RGB.
        cover: 'blur' or 'pixelate'.

    Returns:
        RGB, its longer side 12 pixels to be enlarged smoothly, or 16 to be enlarged as blocks; smaller
        where the image is.
    """
    if cover == "pixelate":
        return _reduced(image, _BLOCKS)
    return _reduced(image, _BLUR_SIDE).filter(ImageFilter.GaussianBlur(0.6))


def card(size: tuple[int, int]) -> Image.Image:
    """A calm grey card with a closed eye, for an image that is not shown.

    Args:
        size: (width, height), pixels.
    """
    width, height = size
    shade = Image.linear_gradient("L").resize(size)
    image = Image.composite(Image.new("RGB", size, _CARD[0]), Image.new("RGB", size, _CARD[1]), shade)
    draw = ImageDraw.Draw(image)
    side = min(size) / 2
    line = max(1, round(side / 18))
    left, top = (width - side) / 2, height / 2 - side * 0.7
    lid = (left, top - side * 0.15, left + side, top + side * 0.85)
    draw.arc(lid, 25, 155, fill=_CARD_LINE, width=line)
    middle, reach = (left + side / 2, top + side * 0.35), side / 2
    for turn in (-0.6, -0.22, 0.22, 0.6):
        start = (middle[0] + turn * reach * 1.05, middle[1] + reach * (1 - turn * turn / 2))
        end = (middle[0] + turn * reach * 1.35, start[1] + reach * (0.28 - 0.12 * abs(turn)))
        draw.line((*start, *end), fill=_CARD_LINE, width=line)
    return image


def _blurred(image: Image.Image, _: Image.Image | None) -> Image.Image:
    return remains(image, "blur").resize(image.size, Image.Resampling.BICUBIC)


def _pixelated(image: Image.Image, _: Image.Image | None) -> Image.Image:
    return remains(image, "pixelate").resize(image.size, Image.Resampling.NEAREST)


def _replaced(image: Image.Image, replacement: Image.Image | None) -> Image.Image:
    if replacement is None:
        return card(image.size)
    return ImageOps.fit(replacement.convert("RGB"), image.size, Image.Resampling.LANCZOS)


def _reduced(image: Image.Image, side: int) -> Image.Image:
    """At most so many pixels a side: what is thrown away here, no filter brings back."""
    scale = min(1.0, side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX)


COVERS: dict[str, Callable[[Image.Image, Image.Image | None], Image.Image]] = {
    "blur": _blurred,
    "pixelate": _pixelated,
    "replace": _replaced,
}
"""How a held image is hidden."""
