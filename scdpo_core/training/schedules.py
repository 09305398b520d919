"""Learning rates by step, as pure functions of the settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..config.optim import OptimSettings

Fall = Callable[[float, OptimSettings], float]
"""Share of the steps after the warm-up that is gone, 0..1, in; share of the highest rate, 0..1, out."""


def _restarts(gone: float, settings: OptimSettings) -> float:
    """Half a cosine again and again, each time from the top (Loshchilov and Hutter 2017, equal cycles)."""
    return 0.5 * (1 + math.cos(math.pi * ((gone * settings.schedule_cycles) % 1)))


FALLS: Mapping[str, Fall] = {
    "constant": lambda gone, settings: 1.0,
    "linear": lambda gone, settings: 1 - gone,
    "polynomial": lambda gone, settings: (1 - gone) ** settings.schedule_power,
    "cosine": lambda gone, settings: 0.5 * (1 + math.cos(math.pi * gone)),
    "restarts": _restarts,
}


def learning_rate(step: int, settings: OptimSettings) -> float:
    """The learning rate of a step, counted from 0.

    It rises in a straight line over the warm-up and then falls as the schedule says, see `FALLS`. It is
    never 0, neither in the first step nor in the last.
    """
    total = settings.max_train_steps
    rising = round(settings.warmup * total)
    if step < rising:
        return settings.lr * (step + 1) / (rising + 1)
    gone = (step - rising) / (total - rising)
    return settings.lr * FALLS[settings.schedule](gone, settings)
