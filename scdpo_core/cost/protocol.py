"""The protocols of scorers, and the names of the harm categories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
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
"""The harm categories of prompt sets for text-to-image safety (those of I2P, arXiv 2211.05105). A
ready-made scorer names all of them and fills in those it knows; a trained one has its folders' names."""

A = TypeVar("A")
B = TypeVar("B")
S = TypeVar("S", covariant=True)


class ScorerError(ScdpoError):
    """A scorer that cannot be loaded or used."""


class Scorer(Protocol):
    """Anything that scores how harmful an image is."""

    @property
    def id(self) -> str:
        """Its name; costs of scorers with different names are not comparable."""

    @property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of its weights."""

    @property
    def categories(self) -> tuple[str, ...]:
        """The harm categories that its scores name, those it cannot judge (None) among them."""

    def prepare(self, image: Image.Image) -> Any:
        """Prepare an image of any size for `score_prepared`; thread-safe."""

    def score_prepared(self, prepared: Sequence[Any]) -> list[CostScore]:
        """Score what `prepare` returned, in its order."""

    def score(self, images: Sequence[Image.Image]) -> list[CostScore]:
        """Score images of any size, in their order."""


@runtime_checkable
class SideBySide(Protocol[S]):
    """A scorer or encoder that is faster when several threads call it, each on one processor."""

    def one_thread(self) -> S | None:
        """Return a copy with single-threaded calls; None where that is slower."""


@runtime_checkable
class Differentiable(Protocol):
    """A scorer whose costs have gradients."""

    def differentiable(self, category: str | None) -> Callable[[Tensor], Tensor] | None:
        """Return the cost [N] as a function of prepared pixels [N, 3, h, w]; None without gradients.

        Args:
            category: a harm category; the overall cost when None.

        Raises:
            ScorerError: there is no cost for that category.
        """


class Encoder(Protocol):
    """Anything that turns images into embeddings."""

    @property
    def id(self) -> str:
        """Readable name of the weights."""

    @property
    def hash(self) -> str:
        """Hexadecimal hash of weights and preprocessing; equal hashes, equal embeddings."""

    @property
    def size(self) -> int:
        """Side of the square image it looks at, pixels."""

    @property
    def dim(self) -> int:
        """Length D of an embedding."""

    def prepare(self, image: Image.Image) -> Tensor:
        """Prepare an image of any size for `encode_prepared`; thread-safe."""

    def encode_prepared(self, pixels: Tensor) -> Tensor:
        """Embed a stack of N prepared images: float32 [N, D] on the CPU, rows of length 1."""

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Embed N images of any size: float32 [N, D] on the CPU, rows of length 1."""


@dataclass(frozen=True)
class Attended:
    """Intermediate results of a vision transformer, all with gradients.

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
    """A scorer that may be built on a vision transformer."""

    def attentive(self, category: str | None) -> Callable[[Tensor], Attended] | None:
        """Return a function of prepared pixels [N, 3, h, w] to `Attended`; None where there are no tokens.

        Args:
            category: as `Differentiable.differentiable`.

        Raises:
            ScorerError: there is no cost for that category.
        """


def cost_in(score: CostScore, category: str | None) -> float:
    """Return the cost of a category, or the overall one for None.

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


def in_batches(items: Sequence[A], size: int, run: Callable[[Sequence[A]], Sequence[B]]) -> list[B]:
    """Run a function on consecutive slices of at most `size` items and join its results."""
    return [result for k in range(0, len(items), size) for result in run(items[k : k + size])]


def encode_in_batches(encoder: Encoder, images: Sequence[Image.Image], size: int) -> Tensor:
    """Embed images of any size, `size` at a time: float32 [N, D] on the CPU."""

    def encode(batch: Sequence[Image.Image]) -> list[Tensor]:
        return [encoder.encode_prepared(torch.stack([encoder.prepare(image) for image in batch]))]

    return torch.cat([torch.empty(0, encoder.dim), *in_batches(images, size, encode)])


def score_of(
    scorer: Scorer, category: str, cost: float, details: Mapping[str, float] | None = None
) -> CostScore:
    """Make the score of a scorer that knows a single category; all others are None."""
    categories = {name: cost if name == category else None for name in scorer.categories}
    return CostScore(cost, categories, scorer.id, scorer.hash, details or {})


def provenance(scorer: Scorer) -> str:
    """Format id and hash of a scorer as files and tables carry them: 'id@hash'."""
    return f"{scorer.id}@{scorer.hash}"
