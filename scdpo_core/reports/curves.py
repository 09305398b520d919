"""What is read off a training curve: its trend, and where it began and ended.

The error of one step depends on the timesteps that were drawn for it, so single figures jump.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .metrics import OPTIONAL_METRICS

Points = Sequence[tuple[int, float]]
"""Steps, rising, and the figure at each."""

FEWEST_FOR_A_TREND = 10
"""Points of a curve from which its trend differs from it: a mean over a tenth of them to either side."""

_END = 5  # first and last fifth


def trend(points: Points) -> list[tuple[int, float]]:
    """Return the running mean over a tenth of the points to either side; leave out points not finite.

    A curve of fewer points than `FEWEST_FOR_A_TREND` is returned as it is.
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    reach = len(finite) // FEWEST_FOR_A_TREND
    if reach == 0:
        return finite
    sums = [0.0]
    for _, value in finite:
        sums.append(sums[-1] + value)
    smoothed = []
    for index, (step, _) in enumerate(finite):
        first, last = max(0, index - reach), min(len(finite), index + reach + 1)
        smoothed.append((step, (sums[last] - sums[first]) / (last - first)))
    return smoothed


def ends(points: Points) -> tuple[float, float] | None:
    """Return mean over the first and over the last fifth of a curve; None where nothing in it is finite."""
    finite = [value for _, value in points if math.isfinite(value)]
    if not finite:
        return None
    length = max(1, len(finite) // _END)
    return sum(finite[:length]) / length, sum(finite[-length:]) / length


def charted_curves(curves: Mapping[str, Points]) -> dict[str, Points]:
    """Return the curves that are worth a chart.

    Leave out those without a finite value, and optional metrics that stay 0 in runs without that part.
    """
    return {
        name: points
        for name, points in curves.items()
        if any(math.isfinite(value) and (value or name not in OPTIONAL_METRICS) for _, value in points)
    }
