"""Training the cost model on embeddings: seconds, on a CPU.

Held-out figures and calibration come from cross-fitting: the images are split into folds, and each
fold is scored by a model that was not trained on it. So every image is held out once, and a hundred
images are enough to place zero. The final model is trained on all images, for the number of steps
that was best on the held-out ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import ScdpoError
from . import losses
from .calibration import (
    Calibration,
    Figures,
    ReliabilityBin,
    calibrate,
    figures,
    platt_scale,
    reliability,
)
from .features import FeatureSet
from .fit import CostSettings, Learner
from .model import CostModel

MIN_IMAGES = 20
"""Fewest safe, and fewest unsafe, images to train on."""
MIN_OF_CATEGORY = 10
"""Fewest images of a category for a head of its own; the safe ones are shared by all."""
_COMPARED = 1000


@dataclass(frozen=True)
class CostTrainingResult:
    """A trained and calibrated cost model and its figures.

    Attributes:
        model: calibrated, in evaluation mode.
        figures: of the overall cost on held-out images; zero was placed without the fold that is measured.
        categories: the same for each category, images without that harm as the safe ones; None where
            there were too few images for a head.
        calibration: of each head, the overall cost under ''.
        steps: optimizer steps of the final model.
        held_out: [N] calibrated held-out cost of every image; zero was placed without
            its fold.
        reliability: predicted and observed chances of harm on held-out images.
        warnings: sentences about doubtful results.
    """

    model: CostModel
    figures: Figures
    categories: Mapping[str, Figures | None]
    calibration: Mapping[str, Calibration]
    steps: int
    held_out: Tensor
    reliability: tuple[ReliabilityBin, ...]
    warnings: tuple[str, ...]


def train_cost(
    data: FeatureSet,
    settings: CostSettings | None = None,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> CostTrainingResult:
    """Train, measure and calibrate a cost model.

    Args:
        data: embeddings and labels.
        settings: the defaults when None.
        progress: called with step, most steps and the held-out loss (lower is better).

    Raises:
        ScdpoError: too few images of a class, both loss weights 0, or the loss became NaN.
    """
    settings = settings or CostSettings()
    if min(settings.contrast, settings.eta) < 0 or settings.contrast == settings.eta == 0:
        raise ScdpoError(
            "The weights of the contrastive and the anchoring term must not be negative, and at least one "
            f"must be above 0, not {settings.contrast:g} and {settings.eta:g}."
        )
    _require_enough(data)
    counts = [int((data.labels[:, k] == 1).sum()) for k in range(len(data.categories))]
    trained = [k for k, count in enumerate(counts) if count >= MIN_OF_CATEGORY]
    targets = torch.cat([data.unsafe[:, None].float(), data.labels[:, trained]], dim=1)
    names = tuple(data.categories[k] for k in trained)
    fold = assign_folds(data, settings.folds, settings.seed)
    # Forking leaves the host's random state unchanged.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        raw_costs, steps = _cross_fit(data, targets, names, fold, settings, progress)
        torch.manual_seed(settings.seed)
        learner = Learner(data, targets, names, torch.ones_like(data.unsafe), settings)
        for _ in range(steps):
            learner.step()
    fair = torch.ones_like(data.unsafe) if data.mined is None else ~data.mined
    heads = [
        _judge(raw_costs[:, k], targets[:, k], data.unsafe, fold, fair, settings)
        for k in range(1 + len(names))
    ]
    model = learner.model.eval().requires_grad_(False)
    for k, (calibration, _, _) in enumerate(heads):
        model.scale[k], model.offset[k] = calibration.scale, calibration.offset
    by_name = dict(zip(names, heads[1:], strict=True))
    overall_calibration, overall_figures, held_out = heads[0]
    return CostTrainingResult(
        model=model,
        figures=overall_figures,
        categories={name: by_name[name][1] if name in by_name else None for name in data.categories},
        calibration={"": overall_calibration, **{name: by_name[name][0] for name in names}},
        steps=steps,
        held_out=held_out,
        reliability=reliability(*_classes(held_out[fair], data.unsafe[fair])),
        warnings=_warnings(
            overall_figures, overall_calibration, dict(zip(data.categories, counts, strict=True))
        ),
    )


def doubtful(measured: Figures) -> bool:
    """Return whether the figures are so poor that another encoder is worth a try."""
    return measured.auc < 0.9 or measured.recall_at_zero < 0.8


def assign_folds(data: FeatureSet, folds: int, seed: int) -> Tensor:
    """Assign every image to a fold: [N] int64.

    Whole groups go into a fold, round robin within each stratum (safe, or unsafe of a category), in the
    order of a hash of their name. So every fold has its share of each stratum, twins stay together, and
    the order of files does not matter.
    """
    stratum_of: dict[str, str] = {}
    for number, group in enumerate(data.groups):
        present = [name for k, name in enumerate(data.categories) if data.labels[number, k] == 1]
        stratum = f"unsafe {present}" if data.unsafe[number] else ""
        # A pair counts as what its unsafe image shows.
        stratum_of[group] = max(stratum_of.get(group, ""), stratum)

    def order(group: str) -> tuple[str, bytes]:
        return stratum_of[group], hashlib.sha256(f"{seed}/{group}".encode()).digest()

    ordered = sorted(stratum_of, key=order)
    fold_of = {group: number % folds for number, group in enumerate(ordered)}
    return torch.tensor([fold_of[group] for group in data.groups])


def _cross_fit(
    data: FeatureSet,
    targets: Tensor,
    names: tuple[str, ...],
    fold: Tensor,
    settings: CostSettings,
    progress: Callable[[int, int, float], None],
) -> tuple[Tensor, int]:
    """Return held-out raw costs [N, 1 + K] of every image and the best number of steps for them."""
    runs = [Learner(data, targets, names, fold != k, settings) for k in range(settings.folds)]
    best, best_loss, best_step = torch.empty(0), float("inf"), 0
    gained_loss, gained_step = float("inf"), 0
    raw = torch.empty(len(fold), 1 + len(names))
    patience = settings.patience * settings.check_every
    while runs[0].steps < min(settings.steps, gained_step + patience):
        for _ in range(min(settings.check_every, settings.steps - runs[0].steps)):
            for run in runs:
                run.step()
        for k, run in enumerate(runs):
            raw[fold == k] = run.score(fold == k)
        # A stride limits the all-pairs comparison; the images are in the order of their hashes.
        unsafe, safe = (costs[:: len(costs) // _COMPARED + 1] for costs in _classes(raw[:, 0], data.unsafe))
        # Costs are scaled to fit before they are measured, as calibration does in the end. Otherwise a
        # merely overconfident model would count as worse than one that separates less.
        # Without anchoring zero lies anywhere, so costs are centred first.
        middle = 0.0 if settings.eta else float(unsafe.mean() + safe.mean()) / 2
        stretch = platt_scale(unsafe - middle, safe - middle)
        loss = float(
            losses.total(
                stretch * (unsafe - middle),
                stretch * (safe - middle),
                contrast=settings.contrast,
                eta=settings.eta,
                regularisation=0.0,
            )
        )
        if not loss < float("inf"):
            raise ScdpoError(
                "The cost model's loss became NaN. Try a lower learning rate than "
                f"{settings.lr:g}, or check the image encoder."
            )
        progress(runs[0].steps, settings.steps, loss)
        if loss < best_loss:
            best, best_loss, best_step = raw.clone(), loss, runs[0].steps
        # Easily separated images improve a little for ever, without a visible effect.
        if loss < gained_loss - settings.least_gain:
            gained_loss, gained_step = loss, runs[0].steps
    return best, best_step


def _classes(costs: Tensor, unsafe: Tensor) -> tuple[Tensor, Tensor]:
    return costs[unsafe], costs[~unsafe]


def _judge(
    raw: Tensor, target: Tensor, unsafe: Tensor, fold: Tensor, fair: Tensor, settings: CostSettings
) -> tuple[Calibration, Figures, Tensor]:
    """Calibrate one head, and measure it with a calibration that excludes the measured fold.

    Zero is placed by benign images alone, for a category too; figures count all images without that
    harm as safe ones. Mined images count for neither (`fair` is False).
    Also returns the costs [N] that the figures are of.
    """
    rate = settings.false_positive_rate
    positive, negative, benign = target == 1, (target == 0) & fair, ~unsafe & fair
    costs = raw.clone()
    for k in range(settings.folds):
        others = fold != k
        costs[~others] = calibrate(raw[positive & others], raw[benign & others], rate)(raw[~others])
    return calibrate(raw[positive], raw[benign], rate), figures(costs[positive], costs[negative]), costs


def _require_enough(data: FeatureSet) -> None:
    unsafe = int(data.unsafe.sum())
    mined = 0 if data.mined is None else int(data.mined.sum())
    for side, count in (("unsafe", unsafe), ("safe", len(data.unsafe) - unsafe - mined)):
        if count < MIN_IMAGES:
            raise ScdpoError(
                f"There are {count} different {side} images; a cost model needs at least {MIN_IMAGES} "
                "unsafe and as many safe ones, and a few hundred of each to be good. With fewer, its "
                "accuracy cannot be measured: each fifth is held out in turn, and a fifth of "
                f"{MIN_IMAGES} images is four."
            )


def _warnings(measured: Figures, overall: Calibration, counts: Mapping[str, int]) -> tuple[str, ...]:
    warnings = []
    rate = f"{overall.target_fpr:.1%}"
    if measured.auc < 0.9:
        warnings.append(
            f"The model hardly separates unsafe from safe images (AUC {measured.auc:.2f}). Check that none "
            "is in the wrong folder, and add more."
        )
    elif measured.recall_at_zero < 0.8:
        warnings.append(
            f"With {rate} false alarms it finds only {measured.recall_at_zero:.0%} of the unsafe images. "
            "Add safe images that resemble unsafe ones, or allow more false alarms."
        )
    if overall.rule == "extrapolated":
        warnings.append(
            f"A false-positive rate of {rate} cannot be measured on {overall.benign} safe images, so zero "
            f"was estimated; use {math.ceil(1 / overall.target_fpr) - 1} or more safe images to measure it."
        )
    warnings += [
        f"The category '{name}' has only {count} of the {MIN_OF_CATEGORY} images that a cost of "
        "its own needs."
        for name, count in counts.items()
        if count < MIN_OF_CATEGORY
    ]
    return tuple(warnings)
