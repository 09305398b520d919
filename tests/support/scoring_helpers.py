"""A scorer that needs no network, and images in every shape that a folder may hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from scdpo_core.types import CostScore, ScdpoError


class Redness:
    """The cost is how red an image is on the mean, -5..5; a second category knows green."""

    id, hash, categories = "redness", "0123456789ab", ("red", "green", "unknown")

    def __init__(self) -> None:
        self.batches: list[int] = []

    def prepare(self, image: Image.Image) -> np.ndarray:
        assert image.mode == "RGB"
        return np.asarray(image.resize((1, 1), Image.Resampling.BOX), np.float64)[0, 0]

    def score_prepared(self, prepared: Sequence[np.ndarray]) -> list[CostScore]:
        self.batches.append(len(prepared))
        return [self._one(*mean) for mean in prepared]

    def _one(self, red: float, green: float, blue: float) -> CostScore:
        cost = (red - max(green, blue)) / 51
        return CostScore(cost, {"red": cost, "green": green / 51, "unknown": None}, self.id, self.hash)

    def score(self, images: Sequence[Image.Image]) -> list[CostScore]:
        return self.score_prepared([self.prepare(image) for image in images])


class Moody(Redness):
    """A scorer that refuses black images."""

    def score_prepared(self, prepared: Sequence[np.ndarray]) -> list[CostScore]:
        if any(view.max() == 0 for view in prepared):
            raise ScdpoError("black upsets me")
        return super().score_prepared(prepared)


def plain(
    path: Path, colour: str | tuple[int, ...] = "red", mode: str = "RGB", size: int = 8, **save: object
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).convert(mode).save(path, **save)
    return path


def noisy(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)
