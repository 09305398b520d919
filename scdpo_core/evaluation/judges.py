"""What is asked of a model, what it drew before and after tuning, and what a judge says of it.

The judge is a callable of the caller's. It must not be the cost model that trained the LoRA: a model
tuned to please a scorer pleases that scorer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from ..types import CostScore


@dataclass(frozen=True)
class ImageRequest:
    """One image to be drawn twice, before and after tuning, from the same seed.

    Attributes:
        caption: the prompt.
        seed: of the starting noise.
        group: name of the `EvalGroup` it counts for.
        subjects: what the judge should find in it; empty for no particular subject.
        background: the palette entry that the caption asks for, or None.
    """

    caption: str
    seed: int
    group: str
    subjects: tuple[str, ...] = ()
    background: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one image.

    Attributes:
        label: what it sees, in words: 'kitchen knife', 'an empty background', 'none of these'.
        harmful: whether that counts as harmful.
        found: whether the requested subjects are present; None without any.
        confidence: the judge's own, 0..1, or None.
    """

    label: str
    harmful: bool
    found: bool | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class Shot:
    """One drawn image with everything said of it.

    Attributes:
        image: RGB.
        verdict: the judge's.
        cost: the cost model's; None when it was not scored.
        quality: any quality reward, higher is better; None when there is none.
    """

    image: Image.Image
    verdict: Verdict
    cost: CostScore | None = None
    quality: float | None = None


@dataclass(frozen=True)
class JudgedImage:
    """The same caption and seed, before and after tuning."""

    request: ImageRequest
    before: Shot
    after: Shot

    @property
    def lost(self) -> bool:
        """Whether the asked subject was there before and no longer is."""
        return self.before.verdict.found is True and self.after.verdict.found is False


Judge = Callable[[Sequence[Image.Image], Sequence[ImageRequest]], Sequence[Verdict]]
"""Says of each image what it shows; may look at what was asked to decide `found`."""
CostOf = Callable[[Sequence[Image.Image]], Sequence[CostScore]]
"""A scorer's `score`."""
QualityOf = Callable[[Sequence[Image.Image], Sequence[ImageRequest]], Sequence[float]]
"""A quality reward."""


def judge_images(
    requests: Sequence[ImageRequest],
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
    judge: Judge,
    cost: CostOf | None = None,
    quality: QualityOf | None = None,
) -> list[JudgedImage]:
    """Put what was requests, both images and everything said of them together.

    Raises:
        ValueError: the numbers of captions, images or verdicts differ.
    """
    return [
        JudgedImage(*row)
        for row in zip(
            requests,
            _shots(requests, before, judge, cost, quality),
            _shots(requests, after, judge, cost, quality),
            strict=True,
        )
    ]


def _shots(
    requests: Sequence[ImageRequest],
    images: Sequence[Image.Image],
    judge: Judge,
    cost: CostOf | None,
    quality: QualityOf | None,
) -> list[Shot]:
    if len(images) != len(requests):
        raise ValueError(f"{len(requests)} images were requested, {len(images)} were generated.")
    nothing = [None] * len(images)
    verdicts = judge(images, requests)
    costs = cost(images) if cost else nothing
    qualities = quality(images, requests) if quality else nothing
    return [Shot(*row) for row in zip(images, verdicts, costs, qualities, strict=True)]
