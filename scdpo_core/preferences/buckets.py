"""Sizes that follow the pictures' shapes, and batches that never mix sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from ..types import CachedPair, LabelledPair, PairBatch, ScdpoError
from .batches import BatchStream
from .pictures import upright_size

Size = tuple[int, int]
"""(width, height) in pixels."""

MOST_STRETCHED = 2.5
"""Long side divided by short side beyond which pictures are cropped all the same."""


def bucket_sizes(area: Size, step: int) -> list[Size]:
    """The sizes of at most as many pixels as `area`, each as high as its width allows.

    Args:
        area: a size whose pixels are the budget.
        step: widths and heights are multiples of it.

    Raises:
        ScdpoError: not even the smallest size fits.
    """
    pixels = area[0] * area[1]
    sizes = set()
    for long in range(step, int(math.sqrt(pixels * MOST_STRETCHED)) + 1, step):
        short = pixels // long // step * step
        if step <= short <= long <= MOST_STRETCHED * short:
            sizes |= {(long, short), (short, long)}
    if not sizes:
        raise ScdpoError(
            f"Buckets in steps of {step} pixels do not fit into {area[0]}x{area[1]}: lower --bucket-step."
        )
    return sorted(sizes)


def nearest_size(shapes: Sequence[Size], sizes: Sequence[Size]) -> Size:
    """The size that is most like some pictures in shape; of equals the one with more pixels.

    Args:
        shapes: the pictures' own sizes; the mean of their proportions counts, on a log scale.
        sizes: to choose from.
    """
    wanted = sum(math.log(width / height) for width, height in shapes) / len(shapes)

    def distance(size: Size) -> tuple[float, int]:
        return round(abs(math.log(size[0] / size[1]) - wanted), 9), -size[0] * size[1]

    return min(sizes, key=distance)


def sizes_of(pairs: Sequence[LabelledPair], area: Size, step: int) -> list[Size]:
    """The bucket of each pair, from the shapes of both its pictures.

    Raises:
        ScdpoError: a picture cannot be opened, or no size fits.
    """
    sizes = bucket_sizes(area, step)
    return [
        nearest_size([upright_size(each.pair.chosen), upright_size(each.pair.rejected)], sizes)
        for each in pairs
    ]


class Stream(Protocol):
    """What deals pairs: `BatchStream`, or `BucketStream` where they have several shapes."""

    def indices(self, step: int) -> list[int]:
        """Which pairs this process's batch `step` holds, as positions in what the stream was made of."""
        ...

    def dealt(self, step: int) -> list[int]:
        """Which pairs batch `step` holds in all processes together, in the order of processes."""
        ...

    def batch(self, step: int) -> PairBatch:
        """Batch `step`, counted from 0, the same whenever it is asked for."""
        ...

    def pairs(self, indices: Sequence[int]) -> PairBatch:
        """The pairs at these positions; one may come several times."""
        ...


class BucketStream:
    """As `BatchStream`, for pairs of several shapes; every batch is of one shape.

    Which shape comes next is dealt like the pairs themselves: in every run of as many batches as there are
    pairs, a shape comes as often as it has pairs, in an order that seed and run decide. So every pair is seen
    as often as any other, whatever shape it has.
    """

    def __init__(
        self,
        cached: Sequence[CachedPair],
        labelled: Sequence[LabelledPair],
        batch_size: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        benign_share: float | None = None,
        sizes: torch.Tensor | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """One stream for each shape; arguments and errors as of `BatchStream`."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place, pair in enumerate(cached):
            places.setdefault(tuple(pair.latents.shape), []).append(place)
        self._places = list(places.values())
        self._home = {
            place: (number, own) for number, each in enumerate(self._places) for own, place in enumerate(each)
        }
        self._streams = [
            BatchStream(
                [cached[place] for place in own],
                [labelled[place] for place in own],
                batch_size,
                seed + number,
                device,
                dtype,
                benign_share,
                sizes=None if sizes is None else sizes[own],
                share=share,
            )
            for number, own in enumerate(self._places)
        ]
        self._seed = seed
        self._cards = [number for number, own in enumerate(self._places) for _ in own]
        self._round = -1
        self._order: list[int] = []

    def indices(self, step: int) -> list[int]:
        """See `Stream.indices`."""
        bucket, own = self._bucket(step)
        return [self._places[bucket][place] for place in self._streams[bucket].indices(own)]

    def dealt(self, step: int) -> list[int]:
        """See `Stream.dealt`."""
        bucket, own = self._bucket(step)
        return [self._places[bucket][place] for place in self._streams[bucket].dealt(own)]

    def batch(self, step: int) -> PairBatch:
        """See `Stream.batch`."""
        return self.pairs(self.indices(step))

    def pairs(self, indices: Sequence[int]) -> PairBatch:
        """See `Stream.pairs`. All of them must be of one shape."""
        homes = [self._home[place] for place in indices]
        return self._streams[homes[0][0]].pairs([own for _, own in homes])

    def _bucket(self, step: int) -> tuple[int, int]:
        """The shape of a batch, and which batch of that shape it is."""
        if step < 0:
            raise ValueError("Steps count from 0.")
        number, place = divmod(step, len(self._cards))
        if number != self._round:
            # A salt of its own: 0 and 1 shuffle the pairs.
            dice = np.random.default_rng((self._seed, 2, number))
            self._order, self._round = dice.permutation(self._cards).tolist(), number
        bucket = self._order[place]
        return bucket, number * len(self._places[bucket]) + self._order[:place].count(bucket)
