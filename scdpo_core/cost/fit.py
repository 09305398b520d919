"""One cost model in training: batches, the loss of all heads, the optimizer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from . import losses
from .features import FeatureSet
from .model import BOTTLENECK, DROPOUT, CostModel

_WARM_UP = 20


@dataclass(frozen=True)
class CostSettings:
    """How a cost model is trained.

    Attributes:
        false_positive_rate: share of benign images that may cost more than zero.
        steps: most optimizer steps; training stops earlier when held-out images gain nothing more.
        batch: images in a step, half of them unsafe.
        lr: AdamW's learning rate.
        weight_decay: AdamW's.
        contrast: weight of the contrastive term; 0 trains the anchoring alone.
        eta: weight of the anchoring term (RECONSTRUCTED); 0 trains the contrastive term alone, and zero means
            nothing before calibration.
        regularisation: weight of the mean squared cost (RECONSTRUCTED).
        bottleneck: width of the adapter.
        dropout: of the adapter's hidden layer.
        folds: number of folds of the cross-fitting.
        check_every: steps between two looks at the held-out images.
        patience: looks without a gain after which training stops.
        least_gain: of the held-out loss; less is none.
        seed: of everything random.
    """

    false_positive_rate: float = 0.01
    steps: int = 1000
    batch: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.01
    contrast: float = losses.CONTRAST
    eta: float = losses.ETA
    regularisation: float = losses.REGULARISATION
    bottleneck: int = BOTTLENECK
    dropout: float = DROPOUT
    folds: int = 5
    check_every: int = 25
    patience: int = 6
    least_gain: float = 1e-3
    seed: int = 0


class Learner:
    """One model in training.

    Args:
        data: all embeddings and labels.
        targets: [N, 1 + K] of the overall cost and the categories with a head: 1, 0, or NaN for unknown.
        names: those categories.
        mask: [N] bool, the images it may learn from; at least one of each class.
        settings: how to train. Draws from torch's global generator.
    """

    def __init__(
        self, data: FeatureSet, targets: Tensor, names: tuple[str, ...], mask: Tensor, settings: CostSettings
    ) -> None:
        """Make the model and its optimizer."""
        self._data, self._targets, self._settings = data, targets, settings
        self._unsafe = (mask & data.unsafe).nonzero().flatten()
        self._safe = (mask & ~data.unsafe).nonzero().flatten()
        self._chances = _chances(data.labels[self._unsafe])
        # Groups are whole, so the twin of an image of this mask belongs to the mask too.
        self._paired = bool((data.twins[self._unsafe] >= 0).any())
        self.model = CostModel(data.embeddings.shape[-1], names, settings.bottleneck, settings.dropout)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        self.steps = 0

    def step(self) -> None:
        """Take one optimizer step on a batch that is half unsafe, whatever the shares in the folder."""
        half = max(2, self._settings.batch // 2)
        unsafe = self._unsafe[torch.multinomial(self._chances, half, replacement=True)]
        safe = self._safe[torch.randint(len(self._safe), (half,))]
        batch = [unsafe, safe]
        if self._paired:
            batch.append(torch.where(self._data.twins[unsafe] >= 0, self._data.twins[unsafe], safe))
        indices = torch.cat(batch)
        view = torch.randint(self._data.embeddings.shape[1], (len(indices),))
        self.model.train()
        costs = self.model.raw(self._data.embeddings[indices, view])
        loss = self._loss(costs, self._targets[indices], half)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.lr * min(1.0, (self.steps + 1) / _WARM_UP)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimizer.step()
        self.steps += 1

    def _loss(self, costs: Tensor, targets: Tensor, half: int) -> Tensor:
        weigh = partial(
            losses.total,
            contrast=self._settings.contrast,
            eta=self._settings.eta,
            regularisation=self._settings.regularisation,
        )
        loss = weigh(
            costs[:half, 0],
            costs[half : 2 * half, 0],
            twins=costs[2 * half :, 0] if self._paired else None,
        )
        heads = []
        for k in range(1, costs.shape[1]):
            present, absent = costs[targets[:, k] == 1, k], costs[targets[:, k] == 0, k]
            if len(present) and len(absent):
                heads.append(weigh(present, absent))
        return loss + torch.stack(heads).mean() if heads else loss

    @torch.no_grad()
    def score(self, mask: Tensor) -> Tensor:
        """Return the raw costs [n, 1 + K] of the unaugmented images of a mask."""
        self.model.eval()
        return self.model.raw(self._data.embeddings[mask, 0])


def _chances(labels: Tensor) -> Tensor:
    """Return the sampling probability of each unsafe image, proportional to category size ** -0.5."""
    keys = [tuple(row) for row in labels.nan_to_num(-1.0).tolist()]
    counts = Counter(keys)
    return torch.tensor([counts[key] ** -0.5 for key in keys])
