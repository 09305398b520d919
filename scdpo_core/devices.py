"""Copies to a training device that nobody waits for."""

from __future__ import annotations

import torch
from torch import Tensor

_ASYNCHRONOUS = ("cuda",)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """The same values on a device. What comes from the CPU travels while a GPU computes.

    A copy from memory that is not pinned would make the caller wait for all that the GPU has to do before it.
    """
    if device.type not in _ASYNCHRONOUS or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
