"""Sizes that follow the images' shapes, and batches that never mix sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch

from ..io.images import upright_size
from ..types import CachedPair, LabelledPair, PairBatch, ScdpoError
from .batches import BatchStream, Room, kinds_of

Size = tuple[int, int]
"""(width, height) in pixels."""

MOST_STRETCHED = 2.5
"""Long side divided by short side beyond which images are cropped all the same."""


def bucket_sizes(area: Size, step: int) -> list[Size]:
    """Return the sizes of at most as many pixels as `area`, each as high as its width allows.

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
    """Return the size that is most like some images in shape; of equals the one with more pixels.

    Args:
        shapes: the images' own sizes; the mean of their proportions counts, on a log scale.
        sizes: to choose from.
    """
    log_ratio = sum(math.log(width / height) for width, height in shapes) / len(shapes)

    def distance(size: Size) -> tuple[float, int]:
        return round(abs(math.log(size[0] / size[1]) - log_ratio), 9), -size[0] * size[1]

    return min(sizes, key=distance)


def sizes_of(pairs: Sequence[LabelledPair], area: Size, step: int) -> list[Size]:
    """Return the bucket of each pair, from the shapes of both its images.

    Raises:
        ScdpoError: an image cannot be opened, or no size fits.
    """
    sizes = bucket_sizes(area, step)
    return [
        nearest_size([upright_size(each.pair.chosen), upright_size(each.pair.rejected)], sizes)
        for each in pairs
    ]


class Stream(Protocol):
    """What deals pairs: `BatchStream`, or `BucketStream` where they have several shapes."""

    def indices(self, step: int) -> list[int]:
        """Return the indexes of the pairs in this rank's batch `step`."""
        ...

    def dealt(self, step: int) -> list[int]:
        """Return which pairs batch `step` holds in all processes together, in the order of processes."""
        ...

    def batch(self, step: int) -> PairBatch:
        """Batch `step`, counted from 0, the same whenever it is asked for."""
        ...

    def pairs(self, indices: Sequence[int]) -> PairBatch:
        """Return the pairs at these positions; one may come several times."""
        ...


class BucketStream:
    """As `BatchStream`, for pairs of several shapes; every batch is of one shape.

    Shapes take turns so that every pair is seen as often as any other, whatever shape it has; with
    `benign_share`, as often as any other of its kind. Then a shape deals its benign pairs and its others in
    the proportion in which it has them, and one that lacks a kind deals the other alone: the asked share is
    that of all batches together, and a batch may hold more or less.
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
        room: Room | None = None,
    ) -> None:
        """Make one stream for each shape; arguments and errors as of `BatchStream`."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for position, pair in enumerate(cached):
            by_shape.setdefault(tuple(pair.latents.shape), []).append(position)
        self._positions = list(by_shape.values())
        self._home = {
            position: (number, local)
            for number, members in enumerate(self._positions)
            for local, position in enumerate(members)
        }
        benign_share_of_batch, benign, others = kinds_of(labelled, benign_share)
        room, weights = room or Room(), []
        self._streams = []
        for number, members in enumerate(self._positions):
            # The benign pairs' share of each step, times this shape's share of them; likewise for the others.
            benign_weight = benign_share_of_batch * _part(members, benign)
            weights.append(benign_weight + (1 - benign_share_of_batch) * _part(members, others))
            self._streams.append(
                BatchStream(
                    [cached[position] for position in members],
                    [labelled[position] for position in members],
                    batch_size,
                    seed + number,
                    device,
                    dtype,
                    None if benign_share is None or not weights[-1] else benign_weight / weights[-1],
                    sizes=None if sizes is None else sizes[members],
                    share=share,
                    room=room,
                )
            )
        # A salt of its own: 0 and 1 shuffle the pairs.
        ranks = np.random.default_rng((seed, 2)).permutation(len(weights)).tolist()
        self._rotation = _Rotation(weights, ranks)

    def indices(self, step: int) -> list[int]:
        """See `Stream.indices`."""
        bucket, local_step = self._bucket(step)
        return [self._positions[bucket][position] for position in self._streams[bucket].indices(local_step)]

    def dealt(self, step: int) -> list[int]:
        """See `Stream.dealt`."""
        bucket, local_step = self._bucket(step)
        return [self._positions[bucket][position] for position in self._streams[bucket].dealt(local_step)]

    def batch(self, step: int) -> PairBatch:
        """See `Stream.batch`."""
        bucket, local_step = self._bucket(step)
        return self._streams[bucket].batch(local_step)

    def pairs(self, indices: Sequence[int]) -> PairBatch:
        """See `Stream.pairs`. All of them must be of one shape."""
        homes = [self._home[position] for position in indices]
        return self._streams[homes[0][0]].pairs([local for _, local in homes])

    def _bucket(self, step: int) -> tuple[int, int]:
        """Return the shape of a batch, and which batch of that shape it is."""
        if step < 0:
            raise ValueError("Steps count from 0.")
        return self._rotation.turn(step)


def _part(members: Sequence[int], group: Sequence[int]) -> Fraction:
    """Return the share of a group's pairs that is among `members`; 0 of an empty group."""
    return Fraction(len(set(members) & set(group)), len(group) or 1)


class _Rotation:
    """Turns by weight: of the first n each shape has had n times its weight, give or take less than one.

    A shape's turn of number i must fall within floor(i / w) and ceil((i + 1) / w). Whoever must come first of
    those who may is next, which keeps all of them (Baruah et al. 1996, "Proportionate Progress").
    """

    def __init__(self, weights: Sequence[Fraction], ranks: Sequence[int]) -> None:
        """Rotate shapes whose weights add up to 1; among those due together, low ranks go first."""
        common = math.lcm(*(weight.denominator for weight in weights))
        parts = [int(weight * common) for weight in weights]
        divisor = math.gcd(*parts)
        self._parts, self._ranks = [part // divisor for part in parts], ranks
        self._period = sum(self._parts)
        self._had = [0] * len(parts)
        self._turns: list[tuple[int, int]] = []

    def turn(self, step: int) -> tuple[int, int]:
        """Return which shape has a step, and how many steps it had before."""
        periods, position = divmod(step, self._period)
        while len(self._turns) <= position:
            number = self._next(len(self._turns))
            self._turns.append((number, self._had[number]))
            self._had[number] += 1
        number, before = self._turns[position]
        return number, periods * self._parts[number] + before

    def _next(self, now: int) -> int:
        may = [
            (-(-(had + 1) * self._period // part), rank, number)
            for number, (had, part, rank) in enumerate(zip(self._had, self._parts, self._ranks, strict=True))
            if had * self._period < (now + 1) * part
        ]
        return min(may)[2]
