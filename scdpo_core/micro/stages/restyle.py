"""Drawing the same thing as another hand would: sprites with fewer colours, other outlines, other weight.

A tower that knows a handful of drawings of each thing learns those drawings. Warping a whole picture does
not change how it is drawn; this does: gradients become flat areas, small details go, outlines come or
thicken, shapes grow thinner or fatter.
"""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageChops, ImageFilter, ImageStat

from ..art import Art

_VARIANTS = 5  # redrawn versions of every sprite; more only cost memory
_AS_IT_IS = 0.4


class Restyled(Art):
    """The art, with most sprites redrawn.

    Args:
        art: the drawings.
        rng: chooses among the versions of a sprite.
    """

    rng: random.Random

    def __init__(self, art: Art, rng: random.Random) -> None:
        """Draw from `art` what `rng` chooses."""
        super().__init__(art.folder)
        object.__setattr__(self, "rng", rng)

    def sprite(self, style: str, code: str) -> Image.Image | None:
        """The sprite as it is, or one of its redrawn versions."""
        if self.rng.random() < _AS_IT_IS:
            return super().sprite(style, code)
        return _redrawn(self.folder, style, code, self.rng.randrange(_VARIANTS))


@lru_cache(maxsize=40000)
def _redrawn(folder: Path, style: str, code: str, number: int) -> Image.Image | None:
    sprite = Art(folder).sprite(style, code)
    return None if sprite is None else redraw(sprite, random.Random(f"{style}/{code}/{number}"))


def redraw(sprite: Image.Image, rng: random.Random) -> Image.Image:
    """An RGBA sprite as another hand would draw it, of the same size."""
    colours, alpha = sprite.convert("RGB"), sprite.getchannel("A")
    # What lies under transparent pixels is arbitrary and must not count among the colours.
    mean = ImageStat.Stat(colours, alpha).mean if alpha.getbbox() else [0, 0, 0]
    under = Image.new("RGB", sprite.size, tuple(round(value) for value in mean))
    colours = Image.composite(colours, under, alpha)
    if rng.random() < 0.6:
        colours = colours.filter(ImageFilter.MedianFilter(rng.choice((3, 5))))
    if rng.random() < 0.7:
        flat = colours.quantize(rng.randint(3, 9), Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        colours = flat.convert("RGB")
    if rng.random() < 0.5:
        colours = _tinted(colours, rng)
    weight = rng.random()
    if weight < 0.25:
        alpha = alpha.filter(ImageFilter.MinFilter(3))
    elif weight < 0.5:
        alpha, colours = alpha.filter(ImageFilter.MaxFilter(3)), colours.filter(ImageFilter.ModeFilter(3))
    if rng.random() < 0.35:
        inner = alpha.filter(ImageFilter.MinFilter(rng.choice((3, 5))))
        edge = ImageChops.subtract(alpha, inner)
        dark = rng.randint(0, 90)
        ink = Image.blend(colours, Image.new("RGB", sprite.size, (dark,) * 3), rng.uniform(0.4, 1.0))
        colours = Image.composite(ink, colours, edge)
    drawn = colours.convert("RGBA")
    drawn.putalpha(alpha)
    return drawn


def _tinted(colours: Image.Image, rng: random.Random) -> Image.Image:
    """Other paints from the same box: hues turned by at most 20 of 256 steps, so that blood stays red."""
    hue, saturation, value = colours.convert("HSV").split()
    turn, strength, light = rng.randint(-20, 20), rng.uniform(0.5, 1.4), rng.uniform(0.75, 1.2)
    turned = hue.point([(step + turn) % 256 for step in range(256)])
    stronger = saturation.point([min(255, round(step * strength)) for step in range(256)])
    lighter = value.point([min(255, round(step * light)) for step in range(256)])
    return Image.merge("HSV", (turned, stronger, lighter)).convert("RGB")
