"""What an image can be seen as: transparent areas may hide colours that come back without the alpha."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from PIL import Image, ImageChops

from ..types import CostScore
from .images import to_rgb

_OPAQUE = 254  # Forge hides text in the lowest bit of an opaque image's alpha


def views(image: Image.Image) -> Iterator[Image.Image]:
    """Yield the image as RGB in every way a viewer or a program may show it, each look once.

    An opaque image has one. One with transparent areas is seen on white, which comes first, on a dark page,
    and without its alpha, as programs do that convert it to RGB.

    Args:
        image: loaded, of any mode.
    """
    rendered = to_rgb(image)
    yield rendered
    looks = [rendered]
    for other in _without_alpha(image, rendered):
        if all(ImageChops.difference(other, previous).getbbox() for previous in looks):
            looks.append(other)
            yield other


def worst(scores: Sequence[CostScore]) -> CostScore:
    """Return the score of an image that was seen in several ways: the highest cost, in each category too.

    The details are those of the costliest view.

    Args:
        scores: of one scorer, one for each view. A cost that is not finite counts as the highest.
    """
    highest = max(scores, key=lambda score: score.value if score.finite else math.inf)
    if not highest.finite:
        return highest
    names = dict.fromkeys(name for score in scores for name in score.categories)
    costs_of = {name: [c for s in scores if (c := s.categories.get(name)) is not None] for name in names}
    categories = {name: max(costs) if costs else None for name, costs in costs_of.items()}
    return CostScore(highest.value, categories, highest.scorer, highest.scorer_hash, highest.details)


def score_views(score: Callable[[Sequence[Image.Image]], list[CostScore]], image: Image.Image) -> CostScore:
    """Score an image of any mode by the worst of its views.

    Args:
        score: scores RGB images, as `Scorer.score` does.
        image: loaded.
    """
    return worst(score([*views(image)]))


def _without_alpha(image: Image.Image, rendered: Image.Image) -> Iterator[Image.Image]:
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or (
        "transparency" in image.info and not image.mode.startswith("I;16") and image.mode not in ("I", "F")
    ):
        colours = image if image.mode == "RGBA" else image.convert("RGBA")
        alpha = colours.getchannel("A")
        if any(alpha.histogram()[:_OPAQUE]):
            yield colours.convert("RGB")
            yield Image.composite(colours.convert("RGB"), Image.new("RGB", image.size), alpha)
    elif "transparency" in image.info:
        # One level of a deep grey image is transparent.
        opaque = image.copy()
        del opaque.info["transparency"]
        grey = to_rgb(opaque)
        changed = ImageChops.difference(grey, rendered).convert("L").point(lambda level: 255 if level else 0)
        yield grey
        yield Image.composite(Image.new("RGB", image.size), grey, changed)
