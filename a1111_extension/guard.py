"""The one place that lets pictures of a generation pass: scored, and hidden where they have to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from scdpo_core.types import Band, CostScore, ScdpoError

from . import covers
from .policy import Action, Policy

Score = Callable[[Image.Image], CostScore]
Keep = Callable[[Image.Image, CostScore], object]
Place = tuple[int, int]


@dataclass(frozen=True)
class Verdict:
    """What was found of a picture, and done with it.

    Attributes:
        cost: log-odds; None when it could not be scored.
        band: of the cost; None without one.
        action: what was done.
        error: why it could not be scored or hidden, and is black therefore; '' if all went well.
    """

    cost: float | None = None
    band: Band | None = None
    action: Action = "black"
    error: str = ""


class Guard:
    """Watches over the pictures of one generation.

    Args:
        policy: what is done with a picture of which cost.
        score: the cost of an RGB picture.
        keep: puts an original into quarantine.
        failure: why no picture of this generation may pass; '' if none has to be held back.
        report: is told of every exception, for the log.

    Attributes:
        verdicts: what was found, by number of the batch and of the picture in it.
    """

    def __init__(
        self,
        policy: Policy,
        score: Score,
        keep: Keep,
        failure: str = "",
        report: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Begin with no picture seen."""
        self.policy, self.failure = policy, failure
        self.verdicts: dict[Place, Verdict] = {}
        self._score, self._keep, self._report = score, keep, report
        # The pictures themselves: a number of one that is gone could come back as another's.
        self._released: list[tuple[Image.Image, Verdict]] = []
        self._grids: set[tuple[int, int]] = set()

    @property
    def hides(self) -> bool:
        """Whether previews have to be hidden."""
        return bool(self.failure) or self.policy.hides

    def released(self, picture: Image.Image) -> bool:
        """Whether the picture came out of `review`, or is a grid of such pictures."""
        return picture.size in self._grids or self.verdict_of(picture) is not None

    def verdict_of(self, picture: object) -> Verdict | None:
        """What was found of a picture that came out of `review`; None for any other."""
        return next((verdict for other, verdict in self._released if other is picture), None)

    def grid(self, pictures: Sequence[Image.Image], columns: int, rows: int) -> list[Image.Image]:
        """The pictures of a grid, those that were not judged yet hidden where they have to be.

        A grid of previews, which holds none that was judged, stays as it is: previews are hidden as a whole.
        """
        if not any(map(self.released, pictures)):
            return [*pictures]
        width, height = (max(sides) for sides in zip(*(p.size for p in pictures), strict=True))
        self._grids.add((columns * width, rows * height))
        return [self.passed(picture) for picture in pictures]

    def passed(self, picture: Image.Image) -> Image.Image:
        """A picture that is no final one: itself if nothing is hidden or it was judged, else judged now."""
        if not self.hides or self.released(picture):
            return picture
        return self.review(picture)[0]

    def review(self, picture: Image.Image, place: Place | None = None) -> tuple[Image.Image, Verdict]:
        """Score a picture and hide it if it has to be. Never raises: what goes wrong hides the picture.

        Args:
            picture: of any mode.
            place: number of the batch and of the picture in it, for one of the final pictures.
        """
        try:
            shown, verdict = self._decide(picture)
        except Exception as error:  # whatever a scorer, a codec or a disk can do
            sentence = str(error) if isinstance(error, ScdpoError) else f"{type(error).__name__}: {error}"
            self._report(sentence)
            verdict = Verdict(error=sentence)
            shown = covers.notice(picture.size, f"This picture is hidden, it could not be judged. {sentence}")
        if place is not None:
            self.verdicts[place] = verdict
        self._released.append((shown, verdict))
        return shown, verdict

    def _decide(self, picture: Image.Image) -> tuple[Image.Image, Verdict]:
        if self.failure:
            raise ScdpoError(self.failure)
        score = self._score(picture if picture.mode == "RGB" else picture.convert("RGB"))
        if not math.isfinite(score.value):
            raise ScdpoError(f"The scorer '{score.scorer}' gave {score.value}, which is no cost.")
        band = self.policy.band(score.value)
        action = self.policy.action(band)
        if action == "quarantine":
            self._keep(picture, score)
        change: dict[Action, Callable[[Image.Image], Image.Image]] = {
            "nothing": lambda same: same,
            "blur": covers.blurred,
            "pixelate": covers.pixelated,
            "black": covers.black,
            "quarantine": lambda hidden: covers.notice(
                hidden.size, f"This picture is {band} (cost {score.value:+.2f}) and lies in quarantine."
            ),
        }
        return change[action](picture), Verdict(score.value, band, action)
