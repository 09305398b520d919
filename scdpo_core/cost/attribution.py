"""Why a picture costs what it costs: a map of what raises the cost, as numbers, an overlay or a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from ..types import CostScore
from .encoders import TowerEncoder
from .protocol import Scorer, ScorerError
from .trained import TrainedScorer

Method = Literal["occlusion", "gradients"]

WINDOWS = (0.2, 0.4)
"""Sides of the covered squares, as shares of the picture's sides; they move by a third of their side."""
LONGEST = 448
"""Pictures are shrunk to this many pixels a side before they are looked into."""

_BATCH = 16
_STEPS = 24
_RING = 0.08
_HOT = (255, 64, 32)


@dataclass(frozen=True)
class Heatmap:
    """What raises the cost of a picture.

    Attributes:
        heat: [h, w] float32, at least 0: log-odds per area that go when this place is covered (occlusion),
            or its share of the cost (gradients). Only the proportions matter.
        size: (width, height) of the picture, pixels.
        cost: the picture's cost, of the category if one was asked for.
        method: how it was found.
    """

    heat: Tensor
    size: tuple[int, int]
    cost: float
    method: Method

    def share(self, region: Tensor) -> float:
        """The part of all heat that lies in a region, 0..1; NaN when there is no heat.

        Args:
            region: [h, w] bool.
        """
        return float(self.heat[region].sum() / self.heat.sum())

    def picture(self) -> Image.Image:
        """The heat as a grey picture of the original's size; white is the hottest place."""
        top = float(self.heat.max())
        levels = (self.heat / top * 255).round() if top > 0 else self.heat
        grey = Image.fromarray(levels.to(torch.uint8).numpy())
        return grey.resize(self.size, Image.Resampling.BICUBIC)

    def overlay(self, picture: Image.Image) -> Image.Image:
        """The picture in grey, with red where the cost comes from; RGB, of the picture's size."""
        base = picture.convert("L").convert("RGB")
        heat = self.picture().resize(picture.size)
        return Image.composite(
            Image.new("RGB", picture.size, _HOT),
            base,
            heat.point([int(level * 0.75) for level in range(256)]),
        )

    def mask(self, at_least: float = 0.5) -> Image.Image:
        """Where the heat is at least this share of the highest: an L picture, 255 there and 0 elsewhere.

        Args:
            at_least: 0..1. Without any heat the mask is empty.
        """
        bound = max(1, round(255 * at_least))
        return self.picture().point([255 * (level >= bound) for level in range(256)])


def explain(
    scorer: Scorer, picture: Image.Image, *, category: str | None = None, method: Method | None = None
) -> Heatmap:
    """Find what raises the cost of a picture.

    Args:
        scorer: any.
        picture: RGB, upright.
        category: of this kind of harm; of the overall cost when None.
        method: 'occlusion' works with any scorer; 'gradients' with trained ones whose encoder is a tower.
            By default occlusion, which shows what the scorer does rather than how it is inclined.

    Raises:
        ScorerError: the scorer has no cost for that category, or no gradients.
    """
    if method == "gradients":
        return gradients(scorer, picture, category)
    return occlusion(scorer, picture, category)


def occlusion(
    scorer: Scorer, picture: Image.Image, category: str | None = None, windows: Sequence[float] = WINDOWS
) -> Heatmap:
    """Cover squares of the picture, one at a time, and see how far the cost falls.

    A square is filled with the mean colour around it, with soft edges, so that the cover itself shows
    nothing. Squares that raise the cost when covered count as cold.

    Args:
        scorer: any.
        picture: RGB, upright.
        category: as `explain`.
        windows: sides of the squares, as shares of the picture's sides.

    Raises:
        ScorerError: the scorer has no cost for that category.
    """
    small = picture.convert("RGB")
    small.thumbnail((LONGEST, LONGEST), Image.Resampling.BICUBIC)
    covers = [
        cover
        for window in windows
        for top in _starts(window)
        for left in _starts(window)
        if (cover := _Cover.place(small.size, left, top, window)) is not None
    ]
    base = _cost(scorer.score([small])[0], category)
    total, weight = np.zeros(small.size[::-1], np.float32), np.full(small.size[::-1], 1e-6, np.float32)
    for start in range(0, len(covers), _BATCH):
        some = covers[start : start + _BATCH]
        scores = scorer.score([cover.over(small) for cover in some])
        for cover, score in zip(some, scores, strict=True):
            alpha = np.asarray(cover.alpha, np.float32) / 255
            # The same fall says more of each place in it, the smaller the square is.
            total += alpha * (max(0.0, base - _cost(score, category)) / alpha.mean())
            weight += alpha
    return Heatmap(torch.from_numpy(total / weight), picture.size, base, "occlusion")


def gradients(scorer: Scorer, picture: Image.Image, category: str | None = None) -> Heatmap:
    """Integrated gradients (arXiv 1703.01365) from the picture's mean colour to the picture.

    Each pixel's part of the difference in cost between the two; what lowers the cost counts as cold.

    Args:
        scorer: a trained one.
        picture: RGB, upright.
        category: as `explain`.

    Raises:
        ScorerError: the scorer or its encoder has no gradients, or there is no cost for that category.
    """
    encoder = scorer.encoder if isinstance(scorer, TrainedScorer) else None
    if not isinstance(scorer, TrainedScorer) or not isinstance(encoder, TowerEncoder):
        raise ScorerError(f"The scorer '{scorer.id}' has no gradients. Use occlusion.")
    names = scorer.model.categories
    if category is not None and category not in names:
        raise ScorerError(f"The scorer '{scorer.id}' has no cost for '{category}'.")
    column = 0 if category is None else 1 + names.index(category)
    base, score = _cost(scorer.score([picture])[0], category), scorer.model.forward
    # A host may be in inference mode, where nothing has a gradient.
    with torch.inference_mode(False), torch.enable_grad():
        pixels = encoder.prepare(picture).clone()[None]
        plain = pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)
        slopes = torch.zeros_like(pixels)
        for start in range(0, _STEPS, _BATCH // 2):
            steps = torch.arange(start, min(start + _BATCH // 2, _STEPS))
            way = ((steps + 0.5) / _STEPS)[:, None, None, None]
            between = (plain + way * (pixels - plain)).requires_grad_()
            cost = score(encoder.embed(between).cpu())[:, column].sum()
            (slope,) = torch.autograd.grad(cost, between)
            slopes += slope.sum(dim=0, keepdim=True) / _STEPS
        parts = (slopes * (pixels - plain)).sum(dim=1, keepdim=True)
    # A pixel alone says little, and its neighbour often the opposite.
    radius = max(1, pixels.shape[-1] // 16)
    smooth = F.avg_pool2d(parts, 2 * radius + 1, 1, radius, count_include_pad=False)[0, 0]
    return Heatmap(smooth.clamp(min=0).detach(), picture.size, base, "gradients")


@dataclass(frozen=True)
class _Cover:
    """A square that hides a part of a picture.

    Attributes:
        box: left, top, right, bottom in pixels.
        alpha: L, of the picture's size: how far each pixel is hidden.
    """

    box: tuple[int, int, int, int]
    alpha: Image.Image

    @classmethod
    def place(cls, size: tuple[int, int], left: float, top: float, side: float) -> _Cover | None:
        """A square at shares of the picture's sides; None where a small picture has no pixel for it."""
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

    def over(self, picture: Image.Image) -> Image.Image:
        """The picture with this part hidden."""
        width, height = picture.size
        reach = max(1, round(_RING * max(width, height)))
        left, top, right, bottom = self.box
        pixels = np.asarray(picture, np.float32)
        around = np.zeros((height, width), bool)
        around[max(0, top - reach) : bottom + reach, max(0, left - reach) : right + reach] = True
        around[top:bottom, left:right] = False
        # A square over the whole picture has nothing around it.
        shown = pixels[around] if around.any() else pixels.reshape(-1, 3)
        red, green, blue = (round(float(channel)) for channel in np.median(shown, axis=0))
        return Image.composite(Image.new("RGB", picture.size, (red, green, blue)), picture, self.alpha)


def _starts(window: float) -> list[float]:
    count = max(1, round((1 - window) / (window / 3)))
    return [(1 - window) * k / count for k in range(count + 1)]


def _cost(score: CostScore, category: str | None) -> float:
    if category is None:
        return score.value
    cost = score.categories.get(category)
    if cost is None:
        raise ScorerError(f"The scorer '{score.scorer}' has no cost for '{category}'.")
    return cost
