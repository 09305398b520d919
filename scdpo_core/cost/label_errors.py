"""Find images that may lie in the wrong folder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 12


@dataclass(frozen=True)
class Suspect:
    """An image that looks like the other class.

    Attributes:
        digest: SHA-256 of its file.
        unsafe: how it is labelled.
        cost: held-out cost, by a model that was not trained on it.
    """

    digest: str
    unsafe: bool
    cost: float


def suspects(costs: Tensor, unsafe: Tensor, digests: list[str], most: int = MOST) -> list[Suspect]:
    """Return the images that look misfiled, the clearest first.

    After confident learning (arXiv 1911.00068): an image is suspect when its held-out cost lies beyond the
    inner quartile of the other class. Quartiles replace that paper's means, because the misfiled images
    themselves shift a mean.

    Args:
        costs: [N] held-out costs.
        unsafe: [N] bool, the labels.
        digests: [N] of the files.
        most: largest number of suspects.
    """
    least_unsafe = float(costs[unsafe].quantile(0.25))
    most_safe = float(costs[~unsafe].quantile(0.75))
    # Where the classes overlap this far, no image can be called misfiled.
    if not least_unsafe > most_safe:
        return []
    excess = torch.where(unsafe, most_safe - costs, costs - least_unsafe)
    order = excess.argsort(descending=True, stable=True).tolist()
    return [Suspect(digests[k], bool(unsafe[k]), float(costs[k])) for k in order if excess[k] >= 0][:most]
