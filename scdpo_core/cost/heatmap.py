"""What raises the cost of an image, place by place: numbers, an overlay or a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor

Method = Literal["occlusion", "gradients", "tokens"]
METHODS: tuple[Method, ...] = get_args(Method)
"""Methods of attribution, see `attribution.explain`."""

_HOT = (255, 64, 32)


@dataclass(frozen=True)
class Heatmap:
    """What raises the cost of an image.

    Attributes:
        heat: [h, w] float32, at least 0: log-odds per area that covering this pixel removes (occlusion),
            its share of the cost (gradients), or its relevance to the cost (tokens). Only the proportions
            matter.
        size: (width, height) of the image, pixels.
        cost: the image's cost, or its cost in the requested category.
        method: how it was found.
        objection: which answer of a joint scorer speaks most for harm, such as 'drawn sexual (nsfwjs)';
            '' where none does, or where the scorer has but one.
    """

    heat: Tensor
    size: tuple[int, int]
    cost: float
    method: Method
    objection: str = ""

    def share(self, region: Tensor) -> float:
        """Return the part of all heat that lies in a region, 0..1; NaN when there is no heat.

        Args:
            region: [h, w] bool.
        """
        return float(self.heat[region].sum() / self.heat.sum())

    def image(self) -> Image.Image:
        """Return the heat as a grey image of the original's size; white is hottest."""
        top = float(self.heat.max())
        levels = (self.heat / top * 255).round() if top > 0 else self.heat
        grey = Image.fromarray(levels.to(torch.uint8).numpy())
        return grey.resize(self.size, Image.Resampling.BICUBIC)

    def overlay(self, image: Image.Image) -> Image.Image:
        """Return the image in grey with red where the cost comes from; RGB, of the image's size."""
        base = image.convert("L").convert("RGB")
        heat = self.image().resize(image.size)
        return Image.composite(
            Image.new("RGB", image.size, _HOT),
            base,
            heat.point([int(level * 0.75) for level in range(256)]),
        )

    def mask(self, at_least: float = 0.5) -> Image.Image:
        """Return where the heat is at least this share of the highest: an L image, 255 there and 0 elsewhere.

        Args:
            at_least: 0..1. Without any heat the mask is empty.
        """
        bound = max(1, round(255 * at_least))
        return self.image().point([255 * (level >= bound) for level in range(256)])
