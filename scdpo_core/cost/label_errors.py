"""Images that may lie in the wrong folder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 12


@dataclass(frozen=True)
class Suspect:
    """An image that looks like the other kind.

    Attributes:
        digest: SHA-256 of its file.
        unsafe: how it is labelled.
        cost: what a model says that never saw it.
    """

    digest: str
    unsafe: bool
    cost: float


def suspects(costs: Tensor, unsafe: Tensor, digests: list[str], most: int = MOST) -> list[Suspect]:
    """The images that look misfiled, the clearest first.

    After confident learning (arXiv 1911.00068): an image is suspect when a model that never saw it puts it
    among the images of the other side: as far there as three in four of them. Quartiles take the place of
    that paper's means, since the misfiled images themselves pull at a mean.

    Args:
        costs: [N] held-out costs.
        unsafe: [N] bool, the labels.
        digests: [N] of the files.
        most: how many to name.
    """
    least_unsafe = float(costs[unsafe].quantile(0.25))
    most_safe = float(costs[~unsafe].quantile(0.75))
    # Where the two kinds overlap that far, nobody can say what is misfiled.
    if not least_unsafe > most_safe:
        return []
    beyond = torch.where(unsafe, most_safe - costs, costs - least_unsafe)
    order = beyond.argsort(descending=True, stable=True).tolist()
    return [Suspect(digests[k], bool(unsafe[k]), float(costs[k])) for k in order if beyond[k] >= 0][:most]
