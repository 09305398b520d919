"""The base model at work, and what the suite paints into images: marks, other styles, one thing alone."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw

from scdpo_core.evaluation import micro_requests
from scdpo_core.evaluation.attacks import to_pixels
from scdpo_core.evaluation.judges import ImageRequest
from scdpo_core.evaluation.similarity import border_colour, nearest_colour
from scdpo_core.families import LoadedModel, family_of
from scdpo_core.families.sampling import Start
from scdpo_core.io.files import atomic_path
from scdpo_core.micro.world import BACKGROUNDS, Scene, concept
from scdpo_core.run_store.file_lock import exclusive
from tools.micro_model.render import SLOTS, paint_over

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MARK = (226, 32, 120)
_MARKED = (2, 54, 9, 61)
_STYLE = "fluent-3d"


class Draw(Protocol):
    """Draws with the base model, from noised images where some are given."""

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        images: Sequence[Image.Image] | None = None,
        strength: float = 1.0,
    ) -> list[Image.Image]:
        """One image for each prompt."""
        ...


@cache
def load(base: str) -> LoadedModel:
    """The base model without a LoRA. Whoever puts one in takes it out again."""
    return family_of("auto", base).load(base, torch.device("cpu"), torch.float32)


def drawer(base: str) -> Draw:
    """What draws with that base model, once it is needed."""

    def draw(
        prompts: Sequence[str],
        seeds: Sequence[int],
        images: Sequence[Image.Image] | None = None,
        strength: float = 1.0,
    ) -> list[Image.Image]:
        drawn: list[Image.Image] = []
        for first in range(0, len(prompts), micro_requests.BATCH):
            some = slice(first, first + micro_requests.BATCH)
            start = None if images is None else Start(to_pixels(images[some]), strength)
            drawn += load(base).sample(
                list(prompts[some]), seeds[some], micro_requests.STEPS, micro_requests.GUIDANCE, start=start
            )
        return drawn

    return draw


def before(requests: Sequence[ImageRequest], file: Path, base: str) -> list[Image.Image]:
    """What the base model draws, from a file that the first call writes.

    Args:
        requests: one image each.
        file: .npz; its name says everything that the images depend on.
        base: the model.
    """
    with exclusive(file.with_suffix(".lock")):
        if not file.exists():
            drawn = drawer(base)([one.caption for one in requests], [one.seed for one in requests])
            with atomic_path(file) as temporary:
                np.savez_compressed(temporary, images=np.stack([np.asarray(image) for image in drawn]))
    with np.load(file) as stored:
        return [Image.fromarray(image) for image in stored["images"]]


def mark(image: Image.Image) -> Image.Image:
    """A copy with a small mark in the lower left corner, where no thing stands."""
    copy = image.copy()
    ImageDraw.Draw(copy).ellipse(_MARKED, fill=MARK)
    return copy


def is_marked(image: Image.Image) -> bool:
    """Whether the mark is there: its middle is nearer to its colour than to the background's."""
    left, top, right, bottom = _MARKED
    middle = image.crop((left + 2, top + 2, right - 1, bottom - 1))
    colour = np.median(np.asarray(middle).reshape(-1, 3), axis=0)
    seen = (int(colour[0]), int(colour[1]), int(colour[2]))
    return nearest_colour(seen, {"mark": MARK, "background": border_colour(image)}) == "mark"


def in_other_style(scene: Scene, like: Image.Image, dice: random.Random) -> Image.Image:
    """What is benign in a scene in another style and in its place, on the background colour of an image."""
    red, green, blue = border_colour(like)
    canvas = Image.new("RGB", like.size, (red, green, blue))
    for subject, (x, y, size) in zip(scene.subjects, SLOTS[len(scene.subjects)], strict=True):
        if subject.harmful:
            continue
        drawn = _other_drawing(subject.name, dice)
        alone = SLOTS[1][0][2]
        side = round(like.width * size / alone)
        thing = _recoloured(drawn, (red, green, blue)).resize((side, side), Image.Resampling.LANCZOS)
        # Only the middle, where the thing is, so that two of them do not cover each other.
        margin = round((side - size) / 2)
        thing = thing.crop((margin, margin, side - margin, side - margin))
        canvas.paste(thing, (round(x) - thing.width // 2, round(y) - thing.height // 2))
    return canvas


def _other_drawing(name: str, dice: random.Random) -> Image.Image:
    slug = "-".join(name.split())
    found = [path for path in _drawings() if path.rpartition("/")[2].rpartition("-")[0] == slug]
    return Image.open(EXAMPLES / "cost_pictures" / dice.choice(found)).convert("RGB")


@cache
def _drawings() -> tuple[str, ...]:
    """The drawings of one thing alone in the other style; the first seven of each thing are."""
    styles = json.loads((EXAMPLES / "cost_pictures" / "styles.json").read_text(encoding="utf-8"))
    return tuple(path for path in styles[_STYLE] if int(path.removesuffix(".png").rpartition("-")[2]) < 7)


def _recoloured(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The image with its background in another colour; edges are mixed as before."""
    pixels = np.asarray(image, np.float32)
    own = np.array(border_colour(image), np.float32)
    background = np.exp(-(np.abs(pixels - own).sum(2, keepdims=True) ** 2) / (2 * 24.0**2))
    changed = pixels + background * (np.array(colour, np.float32) - own)
    return Image.fromarray(changed.clip(0, 255).astype(np.uint8))


def harmful_part(image: Image.Image, subjects: Sequence[str]) -> Image.Image:
    """What a judge of ghosts sees: the harmful thing's part of an image of two things, as if it stood alone.

    Args:
        image: 64 x 64, its two things on the diagonal.
        subjects: names of both, the first top left.
    """
    place = next(number for number, name in enumerate(subjects) if concept(name).harmful)
    red, green, blue = border_colour(image)
    x, y, size = SLOTS[2][place]
    alone = paint_over(image, 1 - place, (red, green, blue))
    half = size / 2 + 1
    part = alone.crop((round(x - half), round(y - half), round(x + half), round(y + half)))
    side = round(part.width * SLOTS[1][0][2] / size)
    canvas = Image.new("RGB", image.size, (red, green, blue))
    corner = (image.width - side) // 2
    canvas.paste(part.resize((side, side), Image.Resampling.LANCZOS), (corner, corner))
    return canvas


def unseen(name: str) -> Image.Image:
    """A drawing of a harmful thing in the style that nothing is trained on."""
    thing = concept(name)
    return Image.open(
        EXAMPLES / "unseen_style" / "unsafe" / thing.group / f"{'-'.join(name.split())}-0.png"
    ).convert("RGB")


def background_of(image: Image.Image) -> str:
    """The name of the background colour that is nearest to the image's border."""
    return nearest_colour(border_colour(image), BACKGROUNDS)
