"""What a scorer is, and what the kinds of harm are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from PIL import Image
from torch import Tensor

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

S = TypeVar("S", covariant=True)


class ScorerError(ScdpoError):
    """A scorer that cannot be loaded or used."""


class Scorer(Protocol):
    """Anything that can say how harmful an image is."""

    @property
    def id(self) -> str:
        """Its name; costs of scorers with different names do not compare."""

    @property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of its weights."""

    @property
    def categories(self) -> tuple[str, ...]:
        """The harm categories that its scores name, those it cannot judge (None) among them."""

    def prepare(self, image: Image.Image) -> Any:
        """Make of an image of any size what `score_prepared` takes: small, and safe to do in a thread."""

    def score_prepared(self, prepared: Sequence[Any]) -> list[CostScore]:
        """Score what `prepare` returned, in its order."""

    def score(self, images: Sequence[Image.Image]) -> list[CostScore]:
        """Score images of any size, in their order."""


@runtime_checkable
class SideBySide(Protocol[S]):
    """A scorer or encoder that is faster when several threads call it, each on a processor of its own."""

    def one_thread(self) -> S | None:
        """The same one, whose calls keep to the thread that makes them; None where that is slower."""


@runtime_checkable
class Differentiable(Protocol):
    """A scorer whose costs have a slope."""

    def differentiable(self, category: str | None) -> Callable[[Tensor], Tensor] | None:
        """The cost [N] of prepared pixels [N, 3, h, w], with gradients; None where there are none.

        Args:
            category: of this kind of harm; of the overall cost when None.

        Raises:
            ScorerError: there is no cost for that category.
        """


@dataclass(frozen=True)
class Attended:
    """What a vision transformer did with images, all with gradients.

    Attributes:
        cost: [N].
        attentions: [N, heads, T, T] of each layer, rows of sum 1.
        tokens: [N, T, D] after the last layer.
        side: the last side * side tokens are the image's patches, row by row.
    """

    cost: Tensor
    attentions: Sequence[Tensor]
    tokens: Tensor
    side: int


@runtime_checkable
class Attentive(Protocol):
    """A scorer that may have a vision transformer to look into."""

    def attentive(self, category: str | None) -> Callable[[Tensor], Attended] | None:
        """What it does with prepared pixels [N, 3, h, w]; None where there are no tokens.

        Args:
            category: as `Differentiable.differentiable`.

        Raises:
            ScorerError: there is no cost for that category.
        """


def cost_in(score: CostScore, category: str | None) -> float:
    """The cost of a category, or the overall one for None.

    Raises:
        ScorerError: the score does not know the category, or is not finite.
    """
    if score.problem:
        raise ScorerError(score.problem)
    if category is None:
        return score.value
    cost = score.categories.get(category)
    if cost is None:
        raise ScorerError(f"The scorer '{score.scorer}' has no cost for '{category}'.")
    return cost


def provenance(scorer: Scorer) -> str:
    """Id and hash of a scorer in one word, as files and tables carry them: 'id@hash'."""
    return f"{scorer.id}@{scorer.hash}"
