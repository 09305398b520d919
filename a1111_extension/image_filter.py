"""Decide which images of a generation are shown: every image is scored, and hidden where necessary.

An image that was not judged is replaced by a constant small image that was made at the start. What was
judged is recognised by the image object itself and by its pixels, never by its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from scdpo_core.reports.covers import covered, text_card
from scdpo_core.types import CostScore, ScdpoError

from .grid_detection import Grid, digest, unmarked
from .policy import Policy
from .verdicts import Verdict, worse

Score = Callable[[Image.Image], CostScore]
Keep = Callable[[Image.Image, CostScore], object]
Position = tuple[int, int]

_UNJUDGED = "This image could not be judged, so it is hidden."
_SMALL = (256, 256)


@dataclass(frozen=True)
class _Released:
    """An image that may be shown.

    Attributes:
        image: the object itself, because the id of a deleted one could be reused.
        digest: of its pixels, because a script may paint on it afterwards.
        verdict: None for a grid of released images.
    """

    image: Image.Image
    digest: bytes
    verdict: Verdict | None


@dataclass
class Guard:
    """Judges the images of one generation.

    Attributes:
        policy: the action for each cost.
        score: the cost of an image of any mode.
        keep: copies an original into the quarantine folder.
        failure: why all images of this generation are hidden; '' if scoring works.
        report: called with every exception, for the log.
        verdicts: by batch number and index in the batch.
        unjudged: replaces everything that cannot be judged; made at the start, while there is memory.
    """

    policy: Policy
    score: Score
    keep: Keep
    failure: str = ""
    report: Callable[[str], None] = lambda sentence: None
    verdicts: dict[Position, Verdict] = field(default_factory=dict)
    unjudged: Image.Image = field(default_factory=lambda: text_card(_SMALL, _UNJUDGED))
    _released: list[_Released] = field(default_factory=list)
    _grids: list[Grid] = field(default_factory=list)

    @property
    def hides(self) -> bool:
        """Whether previews must be hidden."""
        return bool(self.failure) or self.policy.hides

    def released(self, image: Image.Image) -> bool:
        """Return whether an image, or its pixels, came out of `review`, or is a grid of such images."""
        try:
            if image is self.unjudged or self._entry(image) is not None:
                return True
            plain = unmarked(image)
            same = [entry.verdict for entry in self._released if entry.digest == digest(plain)]
            if same or any(grid.shows(plain) for grid in self._grids):
                self._released.append(_Released(image, digest(image), (same or [None])[0]))
                return True
        except Exception as error:  # what cannot be read was not judged
            self._report(error)
        return False

    def verdict_of(self, image: object) -> Verdict | None:
        """Return the verdict of an image that came out of `review`; None for any other."""
        entry = self._entry(image)
        return None if entry is None else entry.verdict

    def grid(self, images: Sequence[Image.Image], columns: int, rows: int) -> list[Image.Image]:
        """Return a grid's images, judging those that were not judged yet. Never raises.

        A grid of previews, none of which was judged, is unchanged: previews are hidden separately.
        """
        try:
            if not any(map(self.released, images)):
                return [*images]
            size = (max(image.width for image in images), max(image.height for image in images))
            judged = [self._passed_image(image) for image in images]
            self._grids.append(Grid(tuple(judged), columns, rows, size))
            return judged
        except Exception as error:
            self._report(error)
            return [self.unjudged for _ in images]

    def passed(self, value: object) -> object:
        """Return what may be output for a value beside the final images. Never raises.

        Args:
            value: an image, an 8-bit array, or one of them with a caption; nothing else can be judged.

        Returns:
            The value itself if nothing must be hidden or it was judged before, else the result of judging it.
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
            self._report(ScdpoError("Another script returned something that cannot be judged; it is hidden."))
        except Exception as error:  # Pillow's, for arrays that are not images
            self._report(error)
        return self.unjudged

    def review(self, image: Image.Image, position: Position | None = None) -> tuple[Image.Image, Verdict]:
        """Score an image and hide it if necessary. Never raises: any error hides the image.

        Args:
            image: of any mode.
            place: batch number and index in the batch, for a final image.
        """
        try:
            result, verdict = self._decide(image)
        except Exception as error:  # of a scorer, a codec, a disk, or for lack of memory
            result, verdict = self._hidden(image, error)
        try:
            if result is not self.unjudged:
                self._released.append(_Released(result, digest(result), verdict))
            if position is not None:
                self.verdicts[position] = verdict = worse(verdict, self.verdicts.get(position))
        except Exception as error:
            return self.unjudged, Verdict(error=self._report(error))
        return result, verdict

    def _passed_image(self, image: Image.Image) -> Image.Image:
        return image if not self.hides or self.released(image) else self.review(image)[0]

    def _entry(self, image: object) -> _Released | None:
        """Return the newest entry of an image whose pixels have not changed since it was judged."""
        for entry in reversed(self._released):
            if entry.image is image:
                return entry if entry.digest == digest(entry.image) else None
        return None

    def _hidden(self, image: Image.Image, error: Exception) -> tuple[Image.Image, Verdict]:
        sentence = self._report(error)
        try:
            return text_card(image.size, f"{_UNJUDGED} {sentence}"), Verdict(error=sentence)
        except Exception:  # no memory, or no size
            return self.unjudged, Verdict(error=sentence)

    def _report(self, error: Exception) -> str:
        """Log an error and return its sentence."""
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
            sentence = f"This image is {band} (cost {score.value:+.2f}) and is kept in the quarantine folder."
            return text_card(image.size, sentence), Verdict(score.value, band, action)
        return image if action == "nothing" else covered(image, action), Verdict(score.value, band, action)
