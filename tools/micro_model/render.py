"""Drawing a scene from the art: the training images of the embedded world."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from scdpo_core.micro.world import BACKGROUNDS, Concept, Scene

from .art import Art

SIZE = 64


@dataclass(frozen=True)
class Augment:
    """How far a rendering strays from the clean drawing; 0 everywhere is the generator's own look.

    Attributes:
        rotate: largest rotation, degrees.
        colour: largest relative change of brightness, contrast and saturation.
        blur: largest Gaussian blur radius, pixels.
        noise: largest standard deviation of pixel noise, 0..255.
        wander: extra range of position and size, relative.
        flip: whether subjects may be mirrored.
    """

    rotate: float = 0.0
    colour: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    wander: float = 0.0
    flip: bool = False


SLOTS = {0: (), 1: ((32.0, 32.0, 46.0),), 2: ((19.0, 19.0, 36.0), (45.0, 45.0, 36.0))}
"""Centre and size of each subject, pixels. Two stand on the diagonal: drawings are round enough to be a
fifth larger there than side by side."""

CLEAN = Augment()
STRONG = Augment(rotate=18.0, colour=0.35, blur=1.2, noise=10.0, wander=0.35, flip=True)


def render(scene: Scene, art: Art, rng: random.Random, style: str, augment: Augment = CLEAN) -> Image.Image:
    """Draw a scene as a 64x64 RGB image.

    Args:
        scene: what to draw; of two subjects the first stands top left, the second bottom right.
        art: the sprites.
        rng: the only source of randomness.
        style: a key of `art.PACKAGES`.
        augment: how far to stray from the clean drawing.

    Raises:
        LookupError: the style has no drawing of a subject.
    """
    base = BACKGROUNDS[scene.background]
    shade = tuple(max(0, min(255, channel + rng.randint(-5, 5))) for channel in base)
    canvas = Image.new("RGB", (SIZE, SIZE), shade)
    for subject, (x, y, size) in zip(scene.subjects, SLOTS[len(scene.subjects)], strict=True):
        sprite = _stray(_sprite(art, style, subject), rng, augment)
        spread = 0.05 + augment.wander
        side = round(size * rng.uniform(1 - spread, 1 + 0.5 * spread))
        reach = (3.0 if len(scene.subjects) == 1 else 1.5) * (1 + 3 * augment.wander)
        left = round(x + rng.uniform(-reach, reach) - side / 2)
        top = round(y + rng.uniform(-reach, reach) - side / 2)
        scaled = sprite.resize((side, side), Image.Resampling.LANCZOS)
        canvas.paste(scaled, (left, top), scaled)
    return _degrade(canvas, rng, augment)


def paint_over(image: Image.Image, subject: int, colour: tuple[int, int, int]) -> Image.Image:
    """Copy a two-subject image without its first (0) or second (1) subject."""
    width, height = image.size
    corner = ((0, 0), (width, height))[subject]
    twin = image.copy()
    # A pixel short of the diagonal, where the other subject may reach it.
    shift = (-1, 1)[subject]
    ImageDraw.Draw(twin).polygon([corner, (width + shift, 0), (0, height + shift)], fill=colour)
    return twin


def _sprite(art: Art, style: str, subject: Concept) -> Image.Image:
    sprite = art.sprite(style, subject.code)
    if sprite is None:
        raise LookupError(f"The style '{style}' has no drawing of '{subject.name}'.")
    return sprite


def _stray(sprite: Image.Image, rng: random.Random, augment: Augment) -> Image.Image:
    if augment.flip and rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augment.rotate:
        angle = rng.uniform(-augment.rotate, augment.rotate)
        sprite = sprite.rotate(angle, Image.Resampling.BICUBIC)
    if augment.colour:
        alpha = sprite.getchannel("A")
        rgb = sprite.convert("RGB")
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            rgb = enhance(rgb).enhance(1 + rng.uniform(-augment.colour, augment.colour))
        sprite = rgb.convert("RGBA")
        sprite.putalpha(alpha)
    return sprite


def _degrade(canvas: Image.Image, rng: random.Random, augment: Augment) -> Image.Image:
    if augment.blur and rng.random() < 0.5:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0, augment.blur)))
    if augment.noise and rng.random() < 0.5:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(
            0, rng.uniform(0, augment.noise), (SIZE, SIZE, 3)
        )
        pixels = np.clip(np.asarray(canvas, np.float32) + noise, 0, 255)
        canvas = Image.fromarray(pixels.astype(np.uint8))
    return canvas
