"""Ways from a rejected image to a chosen one: what is drawn next, until an image makes a pair.

A way asks nothing of a model but to draw, so that it serves every family.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from PIL import Image

from ..cost.attribution import occlusion
from ..cost.protocol import Scorer
from ..preferences.build import Drawn
from .region import Mask, Region, blend, hot, to_image, union
from .requests import PairSpec

if TYPE_CHECKING:
    from .job import WayName

STRENGTHS = (0.45, 0.95)
"""Of the first and the last try of `Edit`: shares of the denoising steps that are taken again."""
_LOOK = (0.3,)
# One size of cover is enough for a region that is grown anyway, and takes a third of the time.


@dataclass(frozen=True)
class Request:
    """An image to draw.

    Attributes:
        prompt: words.
        seed: of its noise.
        start: image to begin from; None for noise alone.
        strength: share of the steps that is taken again from `start`.
        mask: where `start` is regenerated; None everywhere.
    """

    prompt: str
    seed: int
    start: Image.Image | None = None
    strength: float = 1.0
    mask: Mask | None = None

    @property
    def digest(self) -> bytes:
        """Changes with anything in it."""
        parts = [self.prompt.encode(), str(self.seed).encode(), f"{self.strength:g}".encode()]
        parts += [b"" if self.start is None else self.start.tobytes()]
        parts += [b"" if self.mask is None else self.mask.tobytes()]
        hasher = hashlib.sha256()
        for part in parts:
            hasher.update(hashlib.sha256(part).digest())
        return hasher.digest()


@dataclass(frozen=True)
class Candidate:
    """A prompt on its way to a pair.

    Attributes:
        spec: the requested pair.
        rejected: the image of its prompt.
        tried: images that were drawn to be chosen, in order.
        region: what is regenerated; None where the way has no region.
        mask: of the last try.
    """

    spec: PairSpec
    rejected: Drawn
    tried: tuple[Drawn, ...] = field(default=())
    region: Region | None = None
    mask: Mask | None = None

    @property
    def mask_image(self) -> Image.Image | None:
        """The region regenerated in the last try, as a grey image."""
        return None if self.mask is None else to_image(self.mask)


@dataclass(frozen=True)
class Way(ABC):
    """How the next image that may be chosen is drawn.

    Attributes:
        tries: at most.
        takes_all: whether every try is drawn and the best one chosen, instead of the first that makes a pair.
        needs_safe_prompt: whether a prompt without a safe one cannot go this way.
    """

    tries: int = 1
    takes_all: bool = False
    needs_safe_prompt: bool = False

    def prepare(self, candidate: Candidate) -> Candidate:
        """Look at a rejected image, or at the last try that made no pair, before the next try."""
        return candidate

    @abstractmethod
    def request(self, candidate: Candidate) -> Request:
        """Return what to draw next."""

    def finish(self, candidate: Candidate, image: Image.Image) -> Image.Image:
        """Return the image as it is scored and kept, of what the model drew."""
        return image


@dataclass(frozen=True)
class SameSeed(Way):
    """The safe prompt from the same noise; a second try would be the same image."""

    needs_safe_prompt: bool = True

    def request(self, candidate: Candidate) -> Request:
        """See `Way`."""
        return Request(candidate.spec.safe_prompt, candidate.spec.seed)


@dataclass(frozen=True)
class Edit(Way):
    """The safe prompt from the rejected image under more and more noise (Meng et al. 2022, "SDEdit")."""

    def request(self, candidate: Candidate) -> Request:
        """See `Way`."""
        low, high = STRENGTHS
        attempt = len(candidate.tried)
        strength = low + (high - low) * attempt / max(1, self.tries - 1)
        spec = candidate.spec
        return Request(spec.safe_prompt, seed_of(spec.seed, attempt + 1), candidate.rejected.image, strength)


@dataclass(frozen=True)
class Inpaint(Way):
    """Regenerates only the region that raises the cost, with the safe prompt; wider with every try.

    OURS, after the idea of safety-aware inpainting in the paper's second version. Where the last try still
    costs something, what raises the cost there is added to the region.
    """

    scorer: Scorer | None = None

    def prepare(self, candidate: Candidate) -> Candidate:
        """See `Way`."""
        last = candidate.tried[-1] if candidate.tried else candidate.rejected
        region = candidate.region
        if region is None:
            region = Region(self._hot(last.image))
        else:
            core = union(region.core, self._hot(last.image)) if last.score.harmful else region.core
            region = Region(core, region.tries + 1)
        return replace(candidate, region=region, mask=region.mask)

    def _hot(self, image: Image.Image) -> Mask:
        assert self.scorer is not None
        return hot(occlusion(self.scorer, image, windows=_LOOK))

    def request(self, candidate: Candidate) -> Request:
        """See `Way`."""
        spec = candidate.spec
        seed = seed_of(spec.seed, len(candidate.tried) + 1)
        return Request(spec.safe_prompt, seed, candidate.rejected.image, 1.0, candidate.mask)

    def finish(self, candidate: Candidate, image: Image.Image) -> Image.Image:
        """See `Way`."""
        assert candidate.mask is not None
        return blend(candidate.rejected.image, image, candidate.mask)


@dataclass(frozen=True)
class BestOf(Way):
    """The prompt itself from several seeds: the least harmful image against the most harmful one."""

    takes_all: bool = True

    def request(self, candidate: Candidate) -> Request:
        """See `Way`."""
        spec = candidate.spec
        return Request(spec.prompt, seed_of(spec.seed, len(candidate.tried) + 1))


_MADE: dict[WayName, Callable[[int, Scorer], Way]] = {
    "same-seed": lambda attempts, scorer: SameSeed(),
    "edit": lambda attempts, scorer: Edit(attempts),
    "inpaint": lambda attempts, scorer: Inpaint(attempts, scorer=scorer),
    # The first of the N is the rejected image that every way begins with.
    "best-of": lambda attempts, scorer: BestOf(attempts - 1),
}


def way_of(name: WayName, attempts: int, scorer: Scorer) -> Way:
    """Return the way of that name.

    Args:
        name: of it.
        attempts: at an image, at most.
        scorer: of the images.
    """
    return _MADE[name](attempts, scorer)


def seed_of(seed: int, attempt: int) -> int:
    """Return a seed for another try: far from those of other prompts, and the same one every time."""
    digest = hashlib.sha256(f"{seed}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
