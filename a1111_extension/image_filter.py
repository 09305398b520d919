"""The one place that lets images of a generation pass: scored, and hidden where they have to be.

The rule: what was not judged is replaced by a constant small image that was made at the start. What was
judged is known by the image object itself and by its pixels, never by its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from scdpo_core.types import CostScore, ScdpoError

from . import covers
from .grid_detection import Grid
from .policy import Action, Policy
from .verdicts import Verdict, worse

Score = Callable[[Image.Image], CostScore]
Keep = Callable[[Image.Image, CostScore], object]
Place = tuple[int, int]

_UNJUDGED = "This image could not be judged, so it is hidden."
_SMALL = (256, 256)


@dataclass(frozen=True)
class _Released:
    """An image that may be shown.

    Attributes:
        image: the object itself: the number of one that is gone could come back as another's.
        digest: of its pixels, for a script may paint on it afterwards.
        verdict: what was found; None for a grid of released images.
    """

    image: Image.Image
    digest: bytes
    verdict: Verdict | None


@dataclass
class Guard:
    """Watches over the images of one generation.

    Attributes:
        policy: what is done with an image of which cost.
        score: the cost of an image of any mode.
        keep: puts an original into quarantine.
        failure: why no image of this generation may pass; '' if none has to be held back.
        report: is told of every exception, for the log.
        verdicts: what was found, by number of the batch and of the image in it.
        unjudged: stands for everything that cannot be judged; made now, while there is memory.
    """

    policy: Policy
    score: Score
    keep: Keep
    failure: str = ""
    report: Callable[[str], None] = lambda sentence: None
    verdicts: dict[Place, Verdict] = field(default_factory=dict)
    unjudged: Image.Image = field(default_factory=lambda: covers.notice(_SMALL, _UNJUDGED))
    _released: list[_Released] = field(default_factory=list)
    _grids: list[Grid] = field(default_factory=list)

    @property
    def hides(self) -> bool:
        """Whether previews have to be hidden."""
        return bool(self.failure) or self.policy.hides

    def released(self, image: Image.Image) -> bool:
        """Whether the image, or one with its pixels, came out of `review`, or is a grid of such images."""
        try:
            if image is self.unjudged or self._entry(image) is not None:
                return True
            plain = covers.unmarked(image)
            same = [entry.verdict for entry in self._released if entry.digest == covers.digest(plain)]
            if same or any(grid.shows(plain) for grid in self._grids):
                self._released.append(_Released(image, covers.digest(image), (same or [None])[0]))
                return True
        except Exception as error:  # what cannot be looked at was not judged
            self._told(error)
        return False

    def verdict_of(self, image: object) -> Verdict | None:
        """What was found of an image that came out of `review`; None for any other."""
        entry = self._entry(image)
        return None if entry is None else entry.verdict

    def grid(self, images: Sequence[Image.Image], columns: int, rows: int) -> list[Image.Image]:
        """The images of a grid, those that were not judged yet hidden where they have to be. Never raises.

        A grid of previews, which holds none that was judged, stays as it is: previews are hidden as a whole.
        """
        try:
            if not any(map(self.released, images)):
                return [*images]
            size = (max(image.width for image in images), max(image.height for image in images))
            shown = [self._passed_image(image) for image in images]
            self._grids.append(Grid(tuple(shown), columns, rows, size))
            return shown
        except Exception as error:
            self._told(error)
            return [self.unjudged for _ in images]

    def passed(self, value: object) -> object:
        """What may be handed out for something that is handed out beside the final images. Never raises.

        Args:
            value: an image, an array of 8 bits, or one of them with a caption; nothing else can be judged.

        Returns:
            It as it is if nothing has to be hidden or if it was judged, else what it is judged to be.
        """
        if not self.hides:
            return value
        try:
            if isinstance(value, Image.Image):
                return self._passed_image(value)
            if isinstance(value, np.ndarray) and value.dtype == np.uint8:
                return self._passed_image(Image.fromarray(value))
            if isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[1], str):
                return (self.passed(value[0]), value[1])
            self._told(ScdpoError("Another script handed out something that cannot be judged; it is hidden."))
        except Exception as error:  # Pillow's own, for arrays that are no image
            self._told(error)
        return self.unjudged

    def review(self, image: Image.Image, place: Place | None = None) -> tuple[Image.Image, Verdict]:
        """Score an image and hide it if it has to be. Never raises: what goes wrong hides the image.

        Args:
            image: of any mode.
            place: number of the batch and of the image in it, for one of the final images.
        """
        try:
            shown, verdict = self._decide(image)
        except Exception as error:  # whatever a scorer, a codec, a disk or the memory can do
            shown, verdict = self._hidden(image, error)
        try:
            if shown is not self.unjudged:
                self._released.append(_Released(shown, covers.digest(shown), verdict))
            if place is not None:
                self.verdicts[place] = verdict = worse(verdict, self.verdicts.get(place))
        except Exception as error:
            return self.unjudged, Verdict(error=self._told(error))
        return shown, verdict

    def _passed_image(self, image: Image.Image) -> Image.Image:
        return image if not self.hides or self.released(image) else self.review(image)[0]

    def _entry(self, image: object) -> _Released | None:
        """The newest note of an image whose pixels are still those that were judged."""
        for entry in reversed(self._released):
            if entry.image is image:
                return entry if entry.digest == covers.digest(entry.image) else None
        return None

    def _hidden(self, image: Image.Image, error: Exception) -> tuple[Image.Image, Verdict]:
        sentence = self._told(error)
        try:
            return covers.notice(image.size, f"{_UNJUDGED} {sentence}"), Verdict(error=sentence)
        except Exception:  # no memory, or no size
            return self.unjudged, Verdict(error=sentence)

    def _told(self, error: Exception) -> str:
        """The sentence of an error, which goes to the log if that can be written."""
        try:
            sentence = str(error) if isinstance(error, ScdpoError) else f"{type(error).__name__}: {error}"
            self.report(sentence)
        except Exception:
            return _UNJUDGED
        return sentence

    def _decide(self, image: Image.Image) -> tuple[Image.Image, Verdict]:
        if self.failure:
            raise ScdpoError(self.failure)
        if 0 in image.size:
            raise ScdpoError("An image without pixels cannot be judged.")
        score = self.score(image)
        if score.problem:
            raise ScdpoError(score.problem)
        band = self.policy.band(score.value)
        action = self.policy.action(band)
        if action == "quarantine":
            self.keep(image, score)
        change: dict[Action, Callable[[Image.Image], Image.Image]] = {
            "nothing": lambda same: same,
            "blur": covers.blurred,
            "pixelate": covers.pixelated,
            "black": covers.black,
            "quarantine": lambda hidden: covers.notice(
                hidden.size, f"This image is {band} (cost {score.value:+.2f}) and lies in quarantine."
            ),
        }
        return change[action](image), Verdict(score.value, band, action)
