"""Time how fast this machine computes, for a first estimate of a training."""

from __future__ import annotations

import time
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_ENOUGH = 0.2  # seconds
_MOST = 50  # times
_LOCK = Lock()


def speed(channels: int, side: int, images: int) -> float:
    """Measure floating point operations per second of a convolution, most of a UNet's work.

    On the device and in the precision that a training would choose. Measured once per process.

    Args:
        channels: input and output channels.
        side: of the square input, pixels.
        images: batch size.
    """
    with _LOCK:
        return _measured(channels, side, images)


def forget() -> None:
    """Discard the measurements."""
    _measured.cache_clear()


@cache
def _measured(channels: int, side: int, images: int) -> float:
    import torch

    device, dtype = _device()
    with torch.inference_mode():
        data = torch.randn(images, channels, side, side, device=device, dtype=dtype)
        weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)

        def once() -> float:
            began = time.perf_counter()
            # Reading one number waits for the GPU to finish.
            float(torch.nn.functional.conv2d(data, weight, padding=1)[0, 0, 0, 0])
            return time.perf_counter() - began

        once()  # warm-up: chooses the kernel
        times = [once()]
        while sum(times) < _ENOUGH and len(times) < _MOST:
            times.append(once())
    # The fastest, which other load on the machine disturbed least.
    return 2 * 9 * channels**2 * side**2 * images / min(times)


def _device() -> tuple[str, torch.dtype]:
    import torch

    if torch.cuda.is_available():
        return "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return ("mps" if torch.backends.mps.is_available() else "cpu"), torch.float32
