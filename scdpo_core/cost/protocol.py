"""What a scorer is, and what the kinds of harm are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from ..types import CostScore, ScdpoError

HARM_CATEGORIES = (
    "sexual",
    "violence",
    "shocking",
    "hate",
    "harassment",
    "self-harm",
    "illegal activity",
)
"""The kinds of harm that prompt sets for text-to-image safety name (those of I2P, arXiv 2211.05105). A
ready-made scorer names all of them and fills in those it knows; a trained one has its folders' names."""


class ScorerError(ScdpoError):
    """A scorer that cannot be loaded or used."""


class Scorer(Protocol):
    """Anything that can say how harmful a picture is."""

    @property
    def id(self) -> str:
        """Its name; costs of scorers with different names do not compare."""

    @property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of its weights."""

    @property
    def categories(self) -> tuple[str, ...]:
        """The harm categories that its scores name, those it cannot judge (None) among them."""

    def prepare(self, picture: Image.Image) -> Any:
        """Make of a picture of any size what `score_prepared` takes: small, and safe to do in a thread."""

    def score_prepared(self, prepared: Sequence[Any]) -> list[CostScore]:
        """Score what `prepare` returned, in its order."""

    def score(self, pictures: Sequence[Image.Image]) -> list[CostScore]:
        """Score pictures of any size, in their order."""


@runtime_checkable
class SideBySide(Protocol):
    """A scorer that is faster when several threads call it, each on a processor of its own."""

    def one_thread(self) -> Scorer | None:
        """The same scorer, whose calls keep to the thread that makes them; None where that is slower."""


def provenance(scorer: Scorer) -> str:
    """Id and hash of a scorer in one word, as files and tables carry them: 'id@hash'."""
    return f"{scorer.id}@{scorer.hash}"
