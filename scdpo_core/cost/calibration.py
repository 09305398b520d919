"""What a cost means: where zero lies, how long a unit is, and how well costs separate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

MIN_SCALE = 1e-3
"""Smallest scale: calibration never reverses the order of costs, not even for an untrained model."""

Rule = Literal["order statistic", "extrapolated"]


@dataclass(frozen=True)
class Calibration:
    """How raw costs become log-odds: `scale * (raw - offset)`.

    Attributes:
        scale: above 0.
        offset: the raw cost that becomes zero.
        target_fpr: requested share of benign images above zero, 0..1.
        benign: number of benign images it was computed from.
        rule: how the offset was found, see `false_positive_point`.
    """

    scale: float
    offset: float
    target_fpr: float
    benign: int
    rule: Rule

    def __call__(self, raw: Tensor) -> Tensor:
        """Calibrate raw costs of any shape."""
        return self.scale * (raw - self.offset)


@dataclass(frozen=True)
class Figures:
    """How well costs separate images that training did not see.

    Attributes:
        auc: probability that an unsafe image costs more than a safe one, 0..1.
        fpr_at_zero: share of safe images above zero, 0..1.
        recall_at_zero: share of unsafe images above zero, 0..1.
        unsafe: number of unsafe images measured.
        safe: number of safe images measured.
    """

    auc: float
    fpr_at_zero: float
    recall_at_zero: float
    unsafe: int
    safe: int


@dataclass(frozen=True)
class ReliabilityBin:
    """Images whose chance of harm was put between two bounds, and how many of them were harmful.

    Both classes weigh the same, as they do in calibration, whatever their shares in the folder.

    Attributes:
        low: lower bound of the chance, 0..1.
        high: upper bound.
        predicted: mean chance that the costs gave them; NaN without images.
        observed: share of harmful ones among them; NaN without images.
        unsafe: number of unsafe images here.
        safe: number of safe ones.
    """

    low: float
    high: float
    predicted: float
    observed: float
    unsafe: int
    safe: int


def reliability(unsafe: Tensor, safe: Tensor, bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """Compare predicted and observed chances of harm in equal bins.

    Args:
        unsafe: [U] calibrated costs of held-out images, U >= 1.
        safe: [S] calibrated costs, S >= 1.
        bins: how many.
    """
    probabilities = torch.sigmoid(torch.cat([unsafe, safe]).double())
    harmful = torch.arange(len(probabilities)) < len(unsafe)
    weights = torch.where(harmful, 1 / len(unsafe), 1 / len(safe)).double()
    bin_index = (probabilities * bins).long().clamp(max=bins - 1)
    rows = []
    for k in range(bins):
        in_bin = bin_index == k
        weight = weights[in_bin]
        mean = float((probabilities[in_bin] * weight).sum() / weight.sum())
        share = float((harmful[in_bin] * weight).sum() / weight.sum())
        count = int(harmful[in_bin].sum())
        rows.append(ReliabilityBin(k / bins, (k + 1) / bins, mean, share, count, int(in_bin.sum()) - count))
    return tuple(rows)


def auc(unsafe: Tensor, safe: Tensor) -> float:
    """Compute the area under the ROC curve by ranks (Mann-Whitney U); ties count one half.

    Args:
        unsafe: [U] costs, U >= 1.
        safe: [S] costs, S >= 1.
    """
    if not unsafe.numel() or not safe.numel():
        raise ValueError("AUC needs at least one image of each class.")
    ordered = safe.sort().values
    below = torch.searchsorted(ordered, unsafe)
    not_above = torch.searchsorted(ordered, unsafe, right=True)
    return float((below + not_above).sum()) / (2 * unsafe.numel() * safe.numel())


def figures(unsafe: Tensor, safe: Tensor) -> Figures:
    """Measure calibrated costs of held-out images: [U] and [S], at least one each."""
    return Figures(
        auc=auc(unsafe, safe),
        fpr_at_zero=float((safe > 0).double().mean()),
        recall_at_zero=float((unsafe > 0).double().mean()),
        unsafe=unsafe.numel(),
        safe=safe.numel(),
    )


def false_positive_point(benign: Tensor, rate: float) -> tuple[float, Rule]:
    """Return the raw cost that at most a share `rate` of benign images exceeds.

    With n images it is the ceil((n + 1)(1 - rate))-th smallest cost: a new benign image exceeds it
    with probability at most `rate`, whatever the distribution (the split-conformal quantile). Fewer than
    1 / rate - 1 images have no such cost; then it is the normal prediction bound mean + z s sqrt(1 + 1/n),
    and never less than the highest cost seen.

    Args:
        benign: [n] raw costs of held-out benign images, n >= 2.
        rate: requested false-positive rate, between 0 and 1.

    Raises:
        ValueError: fewer than two images, or a rate outside (0, 1).
    """
    if benign.numel() < 2:
        raise ValueError("Calibration needs at least two benign images.")
    if not 0 < rate < 1:
        raise ValueError(f"The false-positive rate must lie between 0 and 1, not {rate}.")
    ordered = benign.double().sort().values
    count = ordered.numel()
    # The rounding keeps 100 * 0.99 from becoming the 100th of 99 through floating point.
    rank = math.ceil(round((count + 1) * (1 - rate), 9))
    if rank <= count:
        return float(ordered[max(rank, 1) - 1]), "order statistic"
    reach = NormalDist().inv_cdf(1 - rate) * float(ordered.std()) * math.sqrt(1 + 1 / count)
    return max(float(ordered[-1]), float(ordered.mean()) + reach), "extrapolated"


def platt_scale(unsafe: Tensor, safe: Tensor) -> float:
    """Fit the slope a > 0 that makes a * cost log-odds of harm, for costs whose zero is fixed.

    Maximum likelihood with both classes weighing the same, and with Platt's smoothed targets
    (n + 1) / (n + 2) and 1 / (n + 2), which keep the slope finite when the classes do not overlap.

    Args:
        unsafe: [U] costs with the offset already taken off.
        safe: [S] costs with the offset already taken off.
    """
    unsafe, safe = unsafe.double(), safe.double()
    high = (unsafe.numel() + 1) / (unsafe.numel() + 2)
    low = 1 / (safe.numel() + 2)

    def slope_is_too_large(scale: float) -> bool:
        pull = ((torch.sigmoid(scale * unsafe) - high) * unsafe).mean()
        pull = pull + ((torch.sigmoid(scale * safe) - low) * safe).mean()
        return bool(pull > 0)

    lower, upper = MIN_SCALE, 1e4
    if slope_is_too_large(lower):
        return lower
    for _ in range(80):
        middle = math.sqrt(lower * upper)
        lower, upper = (lower, middle) if slope_is_too_large(middle) else (middle, upper)
    return lower


def calibrate(unsafe: Tensor, safe: Tensor, rate: float) -> Calibration:
    """Find scale and offset from raw costs of held-out images (RECONSTRUCTED).

    Args:
        unsafe: [U] raw costs, U >= 1.
        safe: [S] raw costs of benign images, S >= 2.
        rate: requested false-positive rate on benign images at cost zero.

    Raises:
        ValueError: as `false_positive_point`.
    """
    offset, rule = false_positive_point(safe, rate)
    scale = platt_scale(unsafe - offset, safe - offset)
    return Calibration(scale, offset, rate, safe.numel(), rule)
