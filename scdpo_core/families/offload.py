"""Where the parts of a model are: on its device, or in main memory while there is no room for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn

from ..devices import free_memory, is_out_of_memory

DENOISER, TEXTS, LIVE, VAE = "denoiser", "texts", "live texts", "vae"
_HOME = torch.device("cpu")
_WORK = 3 * 2**30
"""Bytes that a part is given to work with: what a VAE needs for images of 1024 pixels, and a little. Where
they do not suffice, the others leave after all."""

Result = TypeVar("Result")


class Places:
    """Brings the parts of a model to its device when their turn comes.

    On a large card all of them stay there, and nothing ever moves twice. Where one finds no room, others wait
    in main memory: a card needs to hold the largest part, not their sum.
    """

    def __init__(
        self, device: torch.device, free: Callable[[torch.device], int | None] = free_memory
    ) -> None:
        """No parts yet.

        Args:
            device: where they work.
            free: says how many bytes that device has free; None where nobody knows, which counts as enough.
        """
        self._device, self._free = device, free
        self._parts: dict[str, list[nn.Module]] = {}
        self._here: list[str] = []
        self._fixed: set[str] = set()

    def put(self, name: str, modules: Sequence[nn.Module]) -> None:
        """Say what a part is made of, in main memory; it comes when it is called for."""
        self._parts[name] = list(modules)

    def drop(self, name: str) -> None:
        """Forget a part, so that nothing here keeps it alive."""
        self._parts.pop(name, None)
        self._here = [other for other in self._here if other != name]

    def fix(self, name: str) -> None:
        """From here on this part stays where it is: it trains, or it is spread over several processes."""
        self._fixed.add(name)

    def bring(self, name: str) -> None:
        """Have a part on the device; others leave it, if they must, the one that worked longest ago first."""
        if name not in self._here and name not in self._fixed:
            self._make_room(name)
            for module in self._parts[name]:
                module.to(self._device)
        if self._here[-1:] != [name]:
            self._here = [*(other for other in self._here if other != name), name]

    def work(self, name: str, compute: Callable[[], Result]) -> Result:
        """What a computation with a part gives; if memory runs out, once more with the device to itself.

        A part that is fixed has the device to itself from the start, and one try: the processes that it is
        spread over work in step, and one of them cannot begin again alone.

        Args:
            name: of the part.
            compute: may be called twice.
        """
        if name in self._fixed:
            self._clear(name)
            self.bring(name)
            return compute()
        try:
            self.bring(name)
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not self._others(name):
                raise
        # Out here the error is gone, and with it what its frames held on to.
        self._clear(name)
        self.bring(name)
        return compute()

    def _clear(self, name: str) -> None:
        for other in self._others(name):
            self._send_home(other)

    def _others(self, name: str) -> list[str]:
        """What could leave the device for a part, in the order in which it should."""
        if self._device.type == _HOME.type:
            return []
        return [other for other in self._here if other != name and other not in self._fixed]

    def _make_room(self, name: str) -> None:
        wanted = sum(_bytes(module) for module in self._parts[name]) + _WORK
        for other in self._others(name):
            free = self._free(self._device)
            if free is None or free >= wanted:
                return
            self._send_home(other)

    def _send_home(self, name: str) -> None:
        for module in self._parts[name]:
            module.to(_HOME)
        self._here.remove(name)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
