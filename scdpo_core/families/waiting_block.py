"""The frozen weights of one block: kept in main memory, on a device only while the block computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import finalize

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

_ALIGNMENT = 64


class WaitingBlock:
    """Weights with a copy in main memory, and with storages on the device that come and go.

    Attributes:
        tensors: the weights, parameters and buffers.
        bytes: of them.
    """

    def __init__(self, tensors: Sequence[Tensor], device: torch.device, transfer: Transfer) -> None:
        """Copy weights, from wherever they are, into main memory; they are nowhere else afterwards."""
        self.tensors, self.bytes = list(tensors), bytes_of(tensors)
        self._transfer = transfer
        self._wait: Callable[[], None] | None = None
        self._here = False
        # One stretch of memory, which is pinned as a whole.
        sizes = [-(-bytes_of([tensor]) // _ALIGNMENT) * _ALIGNMENT for tensor in self.tensors]
        self._memory = transfer.host_memory(sum(sizes))
        self._copies: list[Tensor] = []
        self._shells: list[Tensor] = []
        for tensor, part in zip(self.tensors, self._memory.split(sizes), strict=True):
            copy = part[: bytes_of([tensor])].view(tensor.dtype).view(tensor.shape)
            copy.copy_(tensor.data)
            shell = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            shell.untyped_storage().resize_(0)
            tensor.data = shell
            self._copies.append(copy)
            self._shells.append(shell)

    def come(self) -> None:
        """Send the weights on their way to the device, if they are not there."""
        if self._here:
            return
        self._here = True
        try:
            for shell, copy in zip(self._shells, self._copies, strict=True):
                shell.untyped_storage().resize_(bytes_of([copy]))
            self._wait = self._transfer.start(self._copy)
        except BaseException:
            self.leave()
            raise

    def arrive(self) -> None:
        """Let nothing compute on the device before the weights are there."""
        if self._wait is not None:
            self._wait()
            self._wait = None

    def leave(self) -> None:
        """Give the device's memory back."""
        if not self._here:
            return
        self.arrive()
        for shell in self._shells:
            shell.untyped_storage().resize_(0)
        self._here = False

    def settle(self, device: torch.device) -> None:
        """Be weights as any others, on a device."""
        self.leave()
        for tensor, copy in zip(self.tensors, self._copies, strict=True):
            tensor.data = copy.to(device, copy=True)

    def show(self) -> None:
        """Be readable in main memory, and nowhere else."""
        self.leave()
        for tensor, copy in zip(self.tensors, self._copies, strict=True):
            tensor.data = copy

    def hide(self) -> None:
        """End `show`."""
        for tensor, shell in zip(self.tensors, self._shells, strict=True):
            tensor.data = shell

    def _copy(self) -> None:
        # An estimate runs the network on tensors without contents; these have some, and are to keep them.
        with _disable_current_modes(), torch.no_grad():
            for shell, copy in zip(self._shells, self._copies, strict=True):
                shell.copy_(copy, non_blocking=True)


class Transfer:
    """How weights travel where nothing computes meanwhile."""

    def host_memory(self, size: int) -> Tensor:
        """[size] bytes in main memory."""
        return torch.empty(size, dtype=torch.uint8)

    def start(self, copy: Callable[[], None]) -> Callable[[], None]:
        """Begin to copy; what is returned makes the device wait for it."""
        copy()
        return lambda: None


class StreamTransfer(Transfer):
    """How weights travel to a CUDA device: on a stream of its own, from pinned memory."""

    def __init__(self, device: torch.device) -> None:
        """Make the stream."""
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def host_memory(self, size: int) -> Tensor:
        """[size] bytes in main memory, pinned for as long as the tensor lives; where that is not allowed,
        copies only take longer.

        Pinned here and not by torch, whose allocator rounds every size up to a power of two.
        """
        memory = super().host_memory(size)
        runtime = torch.cuda.cudart()
        address = memory.data_ptr()
        if size and int(runtime.cudaHostRegister(address, size, 0)) == 0:
            finalize(memory, runtime.cudaHostUnregister, address)
        return memory

    def start(self, copy: Callable[[], None]) -> Callable[[], None]:
        """See `Transfer.start`."""
        # The memory that it comes to may still be in use by work that was queued before.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copy()
        arrived = self._stream.record_event()
        return lambda: torch.cuda.current_stream(self._device).wait_event(arrived)


def transfer_for(device: torch.device) -> Transfer:
    """Return how weights travel to a device."""
    return StreamTransfer(device) if device.type == "cuda" else Transfer()


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """Count the bytes of tensors, whether their storage is allocated or not."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
