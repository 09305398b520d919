"""Why an image costs what it costs: a map of what raises the cost, as numbers, an overlay or a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter

from .gradients import gradients, tokens
from .heatmap import METHODS, Heatmap, Method
from .protocol import Scorer, cost_in

__all__ = ["METHODS", "Heatmap", "Method", "explain", "gradients", "occlusion", "tokens"]

WINDOWS = (0.2, 0.4)
"""Sides of the covered squares, as shares of the image's sides; they move by a third of their side."""
LONGEST = 448
"""Longest side of the shrunk copy that is examined, pixels."""

_BATCH = 16
_RING = 0.08


def explain(
    scorer: Scorer, image: Image.Image, *, category: str | None = None, method: Method | None = None
) -> Heatmap:
    """Find what raises the cost of an image.

    Args:
        scorer: any.
        image: RGB, upright.
        category: of this kind of harm; of the overall cost when None.
        method: 'occlusion' works with any scorer; 'gradients' with trained ones on an image tower and with
            classifiers of the hub; 'tokens' with trained ones on a vision transformer. By default occlusion,
            which shows what the scorer does rather than how it is inclined.

    Raises:
        ScorerError: the scorer has no cost for that category, no gradients or no tokens.
    """
    if method == "gradients":
        return gradients(scorer, image, category)
    if method == "tokens":
        return tokens(scorer, image, category)
    return occlusion(scorer, image, category)


def occlusion(
    scorer: Scorer, image: Image.Image, category: str | None = None, windows: Sequence[float] = WINDOWS
) -> Heatmap:
    """Map how far the cost falls when each part of the image is covered.

    A square is filled with the median colour around it, with soft edges, so that the cover itself adds
    nothing. Squares that raise the cost when covered count as 0.

    Args:
        scorer: any.
        image: RGB, upright.
        category: as `explain`.
        windows: sides of the squares, as shares of the image's sides.

    Raises:
        ScorerError: the scorer has no cost for that category.
    """
    small = image.convert("RGB")
    small.thumbnail((LONGEST, LONGEST), Image.Resampling.BICUBIC)
    covers = [
        cover
        for window in windows
        for top in _starts(window)
        for left in _starts(window)
        if (cover := _Cover.at(small.size, left, top, window)) is not None
    ]
    score = scorer.score([small])[0]
    base = cost_in(score, category)
    total, weight = np.zeros(small.size[::-1], np.float32), np.full(small.size[::-1], 1e-6, np.float32)
    for start in range(0, len(covers), _BATCH):
        batch = covers[start : start + _BATCH]
        scores = scorer.score([cover.over(small) for cover in batch])
        for cover, score in zip(batch, scores, strict=True):
            alpha = np.asarray(cover.alpha, np.float32) / 255
            # A smaller square localises the same fall in cost better.
            total += alpha * (max(0.0, base - cost_in(score, category)) / alpha.mean())
            weight += alpha
    return Heatmap(torch.from_numpy(total / weight), image.size, base, "occlusion", score.objection)


@dataclass(frozen=True)
class _Cover:
    """A square that hides a part of an image.

    Attributes:
        box: left, top, right, bottom in pixels.
        alpha: L, of the image's size: how far each pixel is hidden.
    """

    box: tuple[int, int, int, int]
    alpha: Image.Image

    @classmethod
    def at(cls, size: tuple[int, int], left: float, top: float, side: float) -> _Cover | None:
        """Return a square at shares of the image's sides; None where a small image has no pixel for it."""
        width, height = size
        box = (
            round(left * width),
            round(top * height),
            round(min(1.0, left + side) * width),
            round(min(1.0, top + side) * height),
        )
        if box[0] >= box[2] or box[1] >= box[3]:
            return None
        alpha = Image.new("L", size)
        alpha.paste(255, box)
        soft = alpha.filter(ImageFilter.GaussianBlur(side * min(size) / 16))
        return cls(box, soft)

    def over(self, image: Image.Image) -> Image.Image:
        """Return the image with this part hidden."""
        width, height = image.size
        reach = max(1, round(_RING * max(width, height)))
        left, top, right, bottom = self.box
        pixels = np.asarray(image, np.float32)
        around = np.zeros((height, width), bool)
        around[max(0, top - reach) : bottom + reach, max(0, left - reach) : right + reach] = True
        around[top:bottom, left:right] = False
        # A square over the whole image has nothing around it.
        surrounding = pixels[around] if around.any() else pixels.reshape(-1, 3)
        red, green, blue = (round(float(channel)) for channel in np.median(surrounding, axis=0))
        return Image.composite(Image.new("RGB", image.size, (red, green, blue)), image, self.alpha)


def _starts(window: float) -> list[float]:
    count = max(1, round((1 - window) / (window / 3)))
    return [(1 - window) * k / count for k in range(count + 1)]
