"""Averages that are gathered on the device and fetched in one go, and what they warn of."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

# A share of the base's error by which the chosen images may get worse, for so many reports in a row.
_WORSE, _REPORTS = 0.1, 5


class Meter:
    """Running means by name; only `take` waits for the device."""

    def __init__(self, device: torch.device) -> None:
        """Empty, on the training device."""
        self._device = device
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Take in one scalar."""
        self._gather(name, torch.stack([value.detach().float(), torch.ones_like(value, dtype=torch.float32)]))

    def add_known(self, name: str, values: Tensor) -> None:
        """Take in those of `values` [B] that are not NaN."""
        known = ~values.isnan()
        self._gather(name, torch.stack([torch.where(known, values, 0.0).sum(), known.sum()]).float())

    def _gather(self, name: str, pair: Tensor) -> None:
        pair = pair.to(self._device, non_blocking=True)
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def state(self) -> dict[str, Tensor]:
        """What was gathered so far; later figures do not change it."""
        return dict(self._sums)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state`, as if nothing had been gathered since."""
        self._sums = dict(state)

    def take(self) -> dict[str, float | None]:
        """The means since the last call, None for those that are unknown or not finite; then start again."""
        if not self._sums:
            return {}
        rows = torch.stack(list(self._sums.values())).tolist()
        means = [total / count if count else math.nan for total, count in rows]
        names = list(self._sums)
        self._sums = {}
        return {name: mean if math.isfinite(mean) else None for name, mean in zip(names, means, strict=True)}


class GapWatch:
    """Warns once when the chosen images stay worse than before: how preference training often fails."""

    def __init__(self) -> None:
        """Watch from the first report on."""
        self._rising = 0

    def see(self, metrics: Mapping[str, float | None], step: int) -> str:
        """Take in a report's figures; the warning if it is time for it, else ''."""
        gap, usual = metrics.get("winner_gap"), metrics.get("reference_error")
        if gap is None or usual is None or self._rising < 0:
            return ""
        self._rising = self._rising + 1 if gap > _WORSE * usual else 0
        if self._rising < _REPORTS:
            return ""
        self._rising = -1
        return (
            f"At step {step} the model draws the chosen images clearly worse than before training; samples "
            "may fall apart. Raise --winner, or lower --beta or --lr."
        )
