"""Comparing two tuners on the same captions and seeds."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from .intervals import CONFIDENCE, Interval, Mean


@dataclass(frozen=True)
class McNemar:
    """What two tuners did to the same images.

    Attributes:
        only_first: hits of the first alone.
        only_second: hits of the second alone.
        p: probability of a split at least as uneven if both were alike; two-sided and exact.
    """

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Return the exact test of McNemar (1947): a binomial test of the pairs in which the two differ.

    Raises:
        ValueError: the lengths differ.
    """
    pairs = list(zip(first, second, strict=True))
    one = sum(a and not b for a, b in pairs)
    other = sum(b and not a for a, b in pairs)
    n, smaller = one + other, min(one, other)
    tail = math.fsum(math.comb(n, k) for k in range(smaller + 1)) / 2**n
    return McNemar(one, other, min(1.0, 2 * tail))


def bootstrap_mean(
    values: Sequence[float], *, draws: int = 2000, seed: int = 0, confidence: float = CONFIDENCE
) -> Mean:
    """Return mean and percentile bootstrap interval (Efron 1979), for values of no particular distribution.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("A mean needs at least one value.")
    dice, n = random.Random(seed), len(values)
    means = sorted(math.fsum(dice.choices(values, k=n)) / n for _ in range(draws))
    cut = (1 - confidence) / 2
    low, high = means[int(cut * draws)], means[min(draws - 1, int((1 - cut) * draws))]
    middle = math.fsum(values) / n
    return Mean(middle, Interval(min(low, middle), max(high, middle)), n)
