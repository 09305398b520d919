"""Losses of the cost model: pure functions of raw costs.

That a contrastive and a cost-anchoring objective train an adapter on a frozen CLIP encoder is FOUND
in arXiv 2504.14290; the formulas are RECONSTRUCTED, after the cost model of Safe-RLHF: one term orders
the two images of a pair, one ties the sign of the cost to what the image shows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CONTRAST = 1.0
"""Weight of the contrastive term; the method's formula has none, ablations need one."""
ETA = 1.0
"""Weight of the anchoring term (RECONSTRUCTED)."""
REGULARISATION = 1e-3
"""Weight of the mean squared cost (RECONSTRUCTED)."""


def contrastive(unsafe: Tensor, safe: Tensor) -> Tensor:
    """Compute L_con = mean of -log sigmoid(C(unsafe) - C(safe)), RECONSTRUCTED.

    Args:
        unsafe: costs of unsafe images; [P] for pairs, [U, 1] to compare every image with every one.
        safe: costs of safe images; broadcast against `unsafe`: [P], or [S].

    Returns:
        A scalar: the mean over all pairs.
    """
    return F.softplus(safe - unsafe).mean()


def anchoring(unsafe: Tensor, safe: Tensor) -> Tensor:
    """Compute L_anc = mean of -log sigmoid(C(unsafe)) + mean of -log sigmoid(-C(safe)), RECONSTRUCTED.

    The contrastive term does not change when a constant is added to every cost; this one is what
    gives the zero its meaning. Each class has its own mean, so that the larger one does not decide
    where zero lies.

    Args:
        unsafe: [U] costs of unsafe images.
        safe: [S] costs of safe images.
    """
    return F.softplus(-unsafe).mean() + F.softplus(safe).mean()


def regulariser(costs: Tensor) -> Tensor:
    """Compute the mean of C^2 (RECONSTRUCTED), which bounds the costs of separable images."""
    return costs.square().mean()


def total(
    unsafe: Tensor,
    safe: Tensor,
    *,
    twins: Tensor | None = None,
    contrast: float = CONTRAST,
    eta: float = ETA,
    regularisation: float = REGULARISATION,
) -> Tensor:
    """Compute L = contrast * L_con + eta * L_anc + regularisation * mean(C^2), RECONSTRUCTED.

    Without `twins`, every unsafe image of the batch is compared with every safe one. That is the
    same expectation as drawing random pairs, from U * S comparisons instead of U, and so with less noise.

    Args:
        unsafe: [U] costs of unsafe images.
        safe: [S] costs of safe images.
        twins: [U] cost of the safe twin of each unsafe image, when the images come in pairs.
        contrast: weight of the contrastive term; 0 for the anchoring alone.
        eta: weight of the anchoring; 0 for the contrastive term alone.
        regularisation: weight of the mean squared cost.

    Returns:
        A scalar.
    """
    ordering = contrastive(unsafe[:, None], safe) if twins is None else contrastive(unsafe, twins)
    regularisation_loss = regulariser(torch.cat([unsafe, safe]))
    return contrast * ordering + eta * anchoring(unsafe, safe) + regularisation * regularisation_loss
