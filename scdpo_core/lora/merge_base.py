"""A LoRA's change added to the weights of a network, for good."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..types import ScdpoError
from .weights import Parts, delta


def merge_into(network: nn.Module, changes: Mapping[str, Parts]) -> None:
    """Add changes to the matrices and kernels of a network; nothing of a LoRA is left in it to switch off.

    Computed in float32 and rounded once to the network's own number format. A DoRA rescales each row of the
    sum to its magnitude (Liu et al. 2024), or each column where the file has those of columns.

    Args:
        network: a denoiser or a text encoder.
        changes: weights by the path of the module in the network.

    Raises:
        ScdpoError: the network has no such module, or a change is of another size.
    """
    modules = dict(network.named_modules())
    for path, parts in changes.items():
        weight = getattr(modules.get(path), "weight", None)
        if not isinstance(weight, Tensor):
            raise ScdpoError(f"'{path}' names no module of this model.")
        change = delta(parts)
        if change.numel() != weight.numel() or change.shape[0] != weight.shape[0]:
            raise ScdpoError(
                f"the change of '{path}' has shape {tuple(change.shape)} and needs {tuple(weight.shape)}: it "
                "was made for another base model."
            )
        merged = weight.detach().float() + change.view(weight.shape).to(weight.device)
        if "dora_scale" in parts:
            merged = _rescaled(merged, parts["dora_scale"].to(weight.device))
        weight.data = merged.to(weight.dtype)


def _rescaled(merged: Tensor, magnitudes: Tensor) -> Tensor:
    of_rows = magnitudes.shape[0] == merged.shape[0]
    others = [axis for axis in range(merged.ndim) if axis != (0 if of_rows else 1)]
    norm = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
    rescaled: Tensor = merged * (magnitudes.float().view(norm.shape) / norm)
    return rescaled
