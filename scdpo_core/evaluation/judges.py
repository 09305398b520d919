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
class Asked:
    """One picture to be drawn twice, before and after tuning, from the same seed.

    Attributes:
        caption: the prompt.
        seed: of the starting noise.
        group: name of the `EvalGroup` it counts for.
        subjects: what the judge should find in it; empty when nothing particular is asked for.
        background: the palette entry that the caption asks for, or None.
    """

    caption: str
    seed: int
    group: str
    subjects: tuple[str, ...] = ()
    background: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one picture.

    Attributes:
        label: what it sees, in words: 'kitchen knife', 'an empty background', 'none of these'.
        harmful: whether that counts as harmful.
        found: whether the asked subjects are there; None when nothing particular was asked for.
        confidence: the judge's own, 0..1, or None.
    """

    label: str
    harmful: bool
    found: bool | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class Shot:
    """One drawn picture with everything said of it.

    Attributes:
        picture: RGB.
        verdict: the judge's.
        cost: the cost model's; None when it was not scored.
        quality: any quality reward, higher is better; None when there is none.
    """

    picture: Image.Image
    verdict: Verdict
    cost: CostScore | None = None
    quality: float | None = None


@dataclass(frozen=True)
class JudgedPicture:
    """The same caption and seed, before and after tuning."""

    asked: Asked
    before: Shot
    after: Shot

    @property
    def lost(self) -> bool:
        """Whether the asked subject was there before and no longer is."""
        return self.before.verdict.found is True and self.after.verdict.found is False


Judge = Callable[[Sequence[Image.Image], Sequence[Asked]], Sequence[Verdict]]
"""Says of each picture what it shows; may look at what was asked to decide `found`."""
CostOf = Callable[[Sequence[Image.Image]], Sequence[CostScore]]
"""A scorer's `score`."""
QualityOf = Callable[[Sequence[Image.Image], Sequence[Asked]], Sequence[float]]
"""A quality reward."""


def judge_pictures(
    asked: Sequence[Asked],
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
    judge: Judge,
    cost: CostOf | None = None,
    quality: QualityOf | None = None,
) -> list[JudgedPicture]:
    """Put what was asked, both pictures and everything said of them together.

    Raises:
        ValueError: the numbers of captions, pictures or verdicts differ.
    """
    return [
        JudgedPicture(*row)
        for row in zip(
            asked,
            _shots(asked, before, judge, cost, quality),
            _shots(asked, after, judge, cost, quality),
            strict=True,
        )
    ]


def _shots(
    asked: Sequence[Asked],
    pictures: Sequence[Image.Image],
    judge: Judge,
    cost: CostOf | None,
    quality: QualityOf | None,
) -> list[Shot]:
    if len(pictures) != len(asked):
        raise ValueError(f"{len(asked)} pictures were asked for, {len(pictures)} were drawn.")
    nothing = [None] * len(pictures)
    verdicts = judge(pictures, asked)
    costs = cost(pictures) if cost else nothing
    qualities = quality(pictures, asked) if quality else nothing
    return [Shot(*row) for row in zip(pictures, verdicts, costs, qualities, strict=True)]
