"""Decide which images are held back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..types import CostScore, ScdpoError

HOLD_RULES: Mapping[str, Callable[[CostScore, float], bool]] = {
    "above the threshold": lambda score, threshold: score.value > threshold,
    "unsafe": lambda score, threshold: score.band == "unsafe",
    "review and unsafe": lambda score, threshold: score.band != "safe",
}
"""Whether an image with a score is held, given the threshold, which only the first rule reads."""


def held_back(scores: Sequence[CostScore], rule: str, threshold: float) -> list[int]:
    """Return the indexes, from 0, of the images that are held. A cost that is not finite is always held.

    Args:
        scores: one for each image.
        rule: a name in `HOLD_RULES`.
        threshold: cost, log-odds.

    Raises:
        ScdpoError: there is no such rule, or the threshold is not a finite number.
    """
    if not math.isfinite(threshold):
        raise ScdpoError(f"The gate's threshold is {threshold}; it must be a finite number such as 0.")
    if rule not in HOLD_RULES:
        raise ScdpoError(f"The gate has no rule '{rule}'; its rules are: {', '.join(HOLD_RULES)}.")
    holds = HOLD_RULES[rule]
    return [k for k, score in enumerate(scores) if not score.finite or holds(score, threshold)]
