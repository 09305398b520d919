"""Drawing the same thing as another hand would: sprites with fewer colours, other outlines, other weight.

A tower that knows a handful of drawings of each thing learns those drawings. Warping a whole image does
not change how it is drawn; this does: gradients become flat areas, small details go, outlines come or
thicken, shapes grow thinner or fatter, and what was drawn in ink alone is coloured in.
"""

from __future__ import annotations

import random

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageStat

_PALE = 0.12  # mean saturation, 0..1, under which a drawing counts as one in ink alone


def redrawings(sprite: Image.Image, count: int, seed: str) -> list[Image.Image]:
    """Make `count` versions of an RGBA sprite, always the same for a seed."""
    return [redraw(sprite, random.Random(f"{seed}/{number}")) for number in range(count)]


def redraw(sprite: Image.Image, rng: random.Random) -> Image.Image:
    """Redraw an RGBA sprite in another style, of the same size."""
    if rng.random() < 0.75 and _is_ink(sprite):
        sprite = _coloured_in(sprite, rng)
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


def _is_ink(sprite: Image.Image) -> bool:
    """Return whether a drawing is all dark and without colour."""
    _, saturation, value = sprite.convert("RGB").convert("HSV").split()
    alpha = sprite.getchannel("A")
    if not alpha.getbbox():
        return False
    strength, light = (ImageStat.Stat(part, alpha).mean[0] / 255 for part in (saturation, value))
    return strength < _PALE and light < 0.3


def _coloured_in(sprite: Image.Image, rng: random.Random) -> Image.Image:
    """Ink over one colour that fills its outline."""
    width, height = sprite.size
    # A border of one pixel lets the outside run round a drawing that touches the edge.
    outside = Image.new("L", (width + 2, height + 2), 0)
    outside.paste(sprite.getchannel("A").point([255 if step > 96 else 0 for step in range(256)]), (1, 1))
    ImageDraw.floodfill(outside, (0, 0), 128)
    inside = outside.crop((1, 1, width + 1, height + 1))
    inside = inside.point([0 if step == 128 else 255 for step in range(256)])
    hue, strength, light = rng.randrange(256), rng.randint(20, 230), rng.randint(150, 255)
    paint = Image.new("HSV", sprite.size, (hue, strength, light)).convert("RGBA")
    filled = Image.new("RGBA", sprite.size, (0, 0, 0, 0))
    filled.paste(paint, (0, 0), inside)
    return Image.alpha_composite(filled, sprite)


def _tinted(colours: Image.Image, rng: random.Random) -> Image.Image:
    """Other paints from the same box: hues turned by at most 20 of 256 steps, so that blood stays red."""
    hue, saturation, value = colours.convert("HSV").split()
    turn, strength, light = rng.randint(-20, 20), rng.uniform(0.5, 1.4), rng.uniform(0.75, 1.2)
    turned = hue.point([(step + turn) % 256 for step in range(256)])
    stronger = saturation.point([min(255, round(step * strength)) for step in range(256)])
    lighter = value.point([min(255, round(step * light)) for step in range(256)])
    return Image.merge("HSV", (turned, stronger, lighter)).convert("RGB")
