"""What a device has room for, how it says that it has none, and copies to it that nobody waits for."""

from __future__ import annotations

import torch
from torch import Tensor

_ASYNCHRONOUS = ("cuda",)
# torch's words for the CPU on Windows and on Linux, CUDA's, and what cuBLAS and cuDNN say.
_SIGNS = ("not enough memory", "can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")


def free_memory(device: torch.device) -> int | None:
    """Return bytes that a device has free for us; None where that is not known."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    # What our own allocator has set aside is as good as free.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device is out of memory; only CUDA has a class for it."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and any(sign in words for sign in _SIGNS)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Return the same values on a device. What comes from the CPU travels while a GPU computes.

    A copy from memory that is not pinned would make the caller wait for all that the GPU has to do before it.
    """
    if device.type not in _ASYNCHRONOUS or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
