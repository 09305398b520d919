"""Where the parts of a model are: on its device, or in main memory while there is no room for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..devices import free_memory, is_out_of_memory

DENOISER, TEXTS, LIVE, VAE = "denoiser", "texts", "live texts", "vae"
_HOME = torch.device("cpu")
WORK = 3 * 2**30
"""Bytes that a part is given to work with: what a VAE needs for images of 1024 pixels, and a little. Where
they do not suffice, the others leave after all."""

Result = TypeVar("Result")


class Movable(Protocol):
    """A network, or a `BlockOffload` in the place of one."""

    def to(self, device: torch.device) -> object:
        """Move it."""
        ...

    def parameters(self) -> Iterable[Tensor]:
        """What moves."""
        ...

    def buffers(self) -> Iterable[Tensor]:
        """What moves beside them."""
        ...


class OffloadManager:
    """Brings the parts of a model to its device when their turn comes.

    On a large card all of them stay there, and nothing ever moves twice. Where one finds no room, others wait
    in main memory: a card needs to hold the largest part, not their sum.
    """

    def __init__(
        self,
        device: torch.device,
        free: Callable[[torch.device], int | None] = free_memory,
        *,
        one_at_a_time: bool = False,
    ) -> None:
        """No parts yet.

        Args:
            device: where they work.
            free: says how many bytes that device has free; None where nobody knows, which counts as enough.
            one_at_a_time: whether a part always has the device to itself, but for what is pinned.
        """
        self._device, self._free, self._one_at_a_time = device, free, one_at_a_time
        self._components: dict[str, list[Movable]] = {}
        self._loaded: list[str] = []
        self._pinned: set[str] = set()

    def register(self, name: str, modules: Sequence[Movable]) -> None:
        """Say what a part is made of, in main memory; it comes when it is called for."""
        self._components[name] = list(modules)

    def drop(self, name: str) -> None:
        """Forget a part, so that nothing here keeps it alive."""
        self._components.pop(name, None)
        self._loaded = [other for other in self._loaded if other != name]

    def pin(self, name: str) -> None:
        """From here on this part stays where it is: it trains, or it is spread over several processes."""
        self._pinned.add(name)

    def load(self, name: str) -> None:
        """Have a part on the device; others leave it, if they must, the one that worked longest ago first."""
        if name not in self._loaded and name not in self._pinned:
            self._make_room(name)
            for module in self._components[name]:
                module.to(self._device)
        if self._loaded[-1:] != [name]:
            self._loaded = [*(other for other in self._loaded if other != name), name]

    def run(self, name: str, compute: Callable[[], Result]) -> Result:
        """What a computation with a part gives; if memory runs out, once more with the device to itself.

        A part that is fixed has the device to itself from the start, and one try: the processes that it is
        spread over work in step, and one of them cannot begin again alone.

        Args:
            name: of the part.
            compute: may be called twice.
        """
        if name in self._pinned:
            self._clear(name)
            self.load(name)
            return compute()
        try:
            self.load(name)
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not self._others(name):
                raise
        # Out here the error is gone, and with it what its frames held on to.
        self._clear(name)
        self.load(name)
        return compute()

    def _clear(self, name: str) -> None:
        for other in self._others(name):
            self._offload(other)

    def _others(self, name: str) -> list[str]:
        """What could leave the device for a part, in the order in which it should."""
        if self._device.type == _HOME.type:
            return []
        return [other for other in self._loaded if other != name and other not in self._pinned]

    def _make_room(self, name: str) -> None:
        if self._one_at_a_time:
            self._clear(name)
            return
        wanted = sum(_bytes(module) for module in self._components[name]) + WORK
        for other in self._others(name):
            free = self._free(self._device)
            if free is None or free >= wanted:
                return
            self._offload(other)

    def _offload(self, name: str) -> None:
        for module in self._components[name]:
            module.to(_HOME)
        self._loaded.remove(name)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _bytes(module: Movable) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
