"""How fast this machine computes, timed for a moment: what a first estimate rests on."""

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
    """Floating point operations a second in a convolution, the work that most of a UNet's training is.

    On the device that a training would choose, in the precision that it would choose. Timed once.

    Args:
        channels: in and out.
        side: of the square that it goes over.
        images: at once.
    """
    with _LOCK:
        return _measured(channels, side, images)


def forget() -> None:
    """Let it be timed anew."""
    _measured.cache_clear()


@cache
def _measured(channels: int, side: int, images: int) -> float:
    import torch

    device, dtype = _place()
    with torch.inference_mode():
        data = torch.randn(images, channels, side, side, device=device, dtype=dtype)
        weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)

        def once() -> float:
            began = time.perf_counter()
            # One number back: a graphics card answers only when it is done.
            float(torch.nn.functional.conv2d(data, weight, padding=1)[0, 0, 0, 0])
            return time.perf_counter() - began

        once()  # chooses its kernel
        took = [once()]
        while sum(took) < _ENOUGH and len(took) < _MOST:
            took.append(once())
    # The quickest: what else the machine does just now is left out.
    return 2 * 9 * channels**2 * side**2 * images / min(took)


def _place() -> tuple[str, torch.dtype]:
    import torch

    if torch.cuda.is_available():
        return "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return ("mps" if torch.backends.mps.is_available() else "cpu"), torch.float32
