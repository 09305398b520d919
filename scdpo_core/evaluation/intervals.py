"""Rates and means that say how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        """Return whether a value lies within."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Rate:
    """A number of hits out of a total.

    Attributes:
        hits: 0..total.
        total: how many were looked at; 0 gives a rate that is not known.

    Raises:
        ValueError: the numbers contradict each other.
    """

    hits: int
    total: int

    def __post_init__(self) -> None:
        """Refuse impossible counts."""
        if not 0 <= self.hits <= self.total:
            raise ValueError(f"{self.hits} hits out of {self.total} cannot be.")

    @property
    def value(self) -> float:
        """The share, 0..1; NaN when nothing was looked at."""
        return self.hits / self.total if self.total else math.nan

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Return the Wilson score interval (Wilson 1927): sound for few samples and for rates near 0 or 1.

        It takes the hits for independent. Several seeds of one caption are not quite, so for them it
        is a little too narrow.
        """
        if not self.total:
            return Interval(0.0, 1.0)
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        n, p = self.total, self.value
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # Rounding must not push the ends of 0/n and n/n past the rates themselves.
        return Interval(min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half)))


@dataclass(frozen=True)
class Mean:
    """A mean of n values and its interval (from minus to plus infinity for a single value)."""

    value: float
    interval: Interval
    n: int


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Mean:
    """Return mean and t-interval of independent values, such as one figure of several training seeds.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("A mean needs at least one value.")
    middle, n = fmean(values), len(values)
    if n == 1:
        return Mean(middle, Interval(-math.inf, math.inf), 1)
    half = t_quantile(confidence, n - 1) * stdev(values) / math.sqrt(n)
    return Mean(middle, Interval(middle - half, middle + half), n)


def t_quantile(confidence: float, freedom: int) -> float:
    """Return the t for which P(|T| < t) = confidence, for whole degrees of freedom.

    Solved by bisection on the closed form of Abramowitz and Stegun 26.7.3 and 26.7.4, so that the
    core needs no scipy.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _central_probability(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _central_probability(angle: float, freedom: int) -> float:
    """Return P(|T| < t) with angle = atan(t / sqrt(freedom))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom % 2 == 0:
        term = total = 1.0
        for k in range(2, freedom, 2):
            term *= (k - 1) / k * cosine * cosine
            total += term
        return sine * total
    total = angle
    if freedom > 1:
        term = cosine
        total += sine * term
        for k in range(3, freedom, 2):
            term *= (k - 1) / k * cosine * cosine
            total += sine * term
    return 2 / math.pi * total
