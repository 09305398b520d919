"""What share of a card's matrix units a step keeps busy, how much a step hands to it, and how many images
it computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

_SIDE = 8192
_PRODUCTS = 20


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second in products of large square matrices of random numbers: what the card can do."""
    one, other = (torch.randn(_SIDE, _SIDE, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        one @ other
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(_PRODUCTS):
        one @ other
    torch.cuda.synchronize(device)
    return _PRODUCTS * 2 * _SIDE**3 / (time.perf_counter() - began)


def operations(step: Callable[[], None]) -> int:
    """What a step multiplies and adds, in matrix products, convolutions and attention, counted as it runs.

    What gradient checkpointing computes twice counts twice. Compiled code is not seen.
    """
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def handed_out(step: Callable[[], None]) -> int:
    """How many operations a step hands to the device one by one, which is what a card too large for its
    task waits for. The same on every machine; compiled code is not seen."""
    with _Counter() as counter:
        step()
    return counter.count


def images_computed(step: Callable[[], None], network: nn.Module) -> tuple[int, int]:
    """How many images a step puts through the network: with a gradient (policy), and without (reference).

    Compiled code is not seen.
    """
    counts = [0, 0]

    def count(_: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        images = given[0] if given else next(value for value in named.values() if torch.is_tensor(value))
        counts[0 if torch.is_grad_enabled() else 1] += len(images)

    hook = network.register_forward_pre_hook(count, with_kwargs=True)
    try:
        step()
    finally:
        hook.remove()
    return counts[0], counts[1]
