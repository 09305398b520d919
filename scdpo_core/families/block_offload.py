"""Block offload ("block swap"): frozen blocks wait in main memory and come to the device in time.

While one waiting block computes, the next one travels on a stream of its own. Before a block's forward pass,
and before its backward pass, its weights are there; those of the block before it leave. So a device holds two
waiting blocks at most, whatever their number. With gradient checkpointing the backward pass computes a block
again while it is there anyhow.

Only the storages of weights come and go; the tensors stay. What autograd keeps of a weight for the way back
is that weight again as soon as its block is there, and every result has the same bits as without offload.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..devices import free_memory
from .offload import WORK
from .waiting_block import WaitingBlock, bytes_of, transfer_for

OffloadBlocks = int | Literal["auto"]
"""How many blocks wait in main memory; 'auto': as few as the device's free memory allows."""

_HOME = torch.device("cpu")
_ATTRIBUTE = "block_offload"
_IN_FLIGHT = 2
"""Waiting blocks that are on the device at once: the one that computes and the next."""


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """List the blocks that a network repeats, in its own order, none inside another.

    They are the classes that diffusers names in `_repeated_blocks`, else in `_no_split_modules`; where it
    names none, the members of the network's own module lists.
    """
    for key in ("_repeated_blocks", "_no_split_modules"):
        names = getattr(network, key, None) or ()
        blocks = [module for module in network.modules() if type(module).__name__ in names]
        if blocks:
            return _outermost(blocks)
    return [block for child in network.children() if isinstance(child, nn.ModuleList) for block in child]


def _outermost(blocks: Sequence[nn.Module]) -> list[nn.Module]:
    inside = {id(inner) for block in blocks for inner in block.modules() if inner is not block}
    return [block for block in blocks if id(block) not in inside]


def spaced(total: int, count: int) -> list[int]:
    """Choose which of `total` blocks wait, spread evenly, so that each has time to travel."""
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


def bytes_saved(network: nn.Module, count: int) -> int:
    """Count the bytes that `count` waiting blocks save on a device; the largest two count as there."""
    blocks = blocks_of(network)
    chosen = spaced(len(blocks), min(count, len(blocks)))
    return sum(sorted(bytes_of(_frozen(blocks[number])) for number in chosen)[:-_IN_FLIGHT])


def fewest_blocks(network: nn.Module, needed: int, room: int) -> int:
    """Find how few blocks have to wait; all of them where that is still not enough.

    Args:
        network: a denoiser.
        needed: bytes on the device where no block waits.
        room: bytes that there are.
    """
    if needed <= room:
        return 0
    total = len(blocks_of(network))
    enough = (count for count in range(1, total) if needed - bytes_saved(network, count) <= room)
    return next(enough, total)


class BlockOffload:
    """The blocks of one denoiser that wait in main memory; it moves in the place of the denoiser.

    Attributes:
        total: how many blocks there are.
    """

    def __init__(self, network: nn.Module, device: torch.device, count: int) -> None:
        """Let `count` blocks of a network wait, spread evenly.

        Args:
            network: frozen, in main memory, with or without a LoRA: what trains stays on the device.
            device: where it computes. On a CPU the same happens between two places in main memory.
            count: of the blocks, at most all.
        """
        self._network, self._device, self._at = network, device, _HOME
        self._blocks = blocks_of(network)
        self._transfer = transfer_for(device)
        self._waiting: dict[int, WaitingBlock] = {}
        self._order: list[int] = []
        self.total = len(self._blocks)
        for number, block in enumerate(self._blocks):
            block.register_forward_pre_hook(partial(self._before, number))
            block.register_forward_hook(partial(self._after, number), with_kwargs=True)
        self.resize(count)
        setattr(network, _ATTRIBUTE, self)

    @property
    def count(self) -> int:
        """How many blocks wait."""
        return len(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the blocks that wait in main memory."""
        return sum(block.bytes for block in self._waiting.values())

    def resize(self, count: int) -> None:
        """Let another number of blocks wait, between two passes."""
        chosen = set(spaced(self.total, min(count, self.total)))
        for number in self._waiting.keys() - chosen:
            self._waiting.pop(number).settle(self._at)
        for number in sorted(chosen - self._waiting.keys()):
            self._waiting[number] = WaitingBlock(_frozen(self._blocks[number]), self._device, self._transfer)

    def to(self, device: torch.device) -> BlockOffload:
        """Move all but the waiting blocks; those leave the device, and come when their turn comes."""
        for block in self._waiting.values():
            block.leave()
        for tensor in self.parameters():
            tensor.data = tensor.data.to(device)
            if tensor.grad is not None:
                tensor.grad = tensor.grad.to(device)
        self._at = device
        return self

    def parameters(self) -> Iterator[Tensor]:
        """Yield what moves: all weights but those of the waiting blocks."""
        apart = {id(tensor) for block in self._waiting.values() for tensor in block.tensors}
        yield from (tensor for tensor in _tensors(self._network) if id(tensor) not in apart)

    def buffers(self) -> Iterator[Tensor]:
        """Yield nothing: `parameters` has them."""
        return iter(())

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Have every weight where it can be read, the waiting ones in main memory, until the block ends.

        What was added to a waiting block meanwhile, such as a LoRA, is with the other weights afterwards.
        """
        for block in self._waiting.values():
            block.show()
        try:
            yield
        finally:
            for block in self._waiting.values():
                block.hide()
            self.to(self._at)

    def _before(self, number: int, *_: object) -> None:
        """Have a block's weights there before its forward pass begins."""
        self._enter(number)

    def _after(self, number: int, _: nn.Module, inputs: Any, named: Any, outputs: Any) -> None:
        """Have a block's weights there before its backward pass begins, which is at its outputs."""
        if number not in self._waiting or _in_backward():
            return
        passed = {id(leaf) for leaf in tree_leaves((inputs, named))}
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor) and leaf.requires_grad and id(leaf) not in passed:
                leaf.register_hook(lambda _: self._enter(number))

    def _enter(self, number: int) -> None:
        """Have a block on the device, send the next one on its way, and let all others leave.

        Nothing that leaves is needed any more: a forward pass goes from block to block, and autograd, which
        takes what was computed last first, begins with a block when it is done with all later ones.
        """
        if number not in self._waiting:
            return
        if number not in self._order:
            self._order.append(number)
        following = self._following(number)
        for other, block in self._waiting.items():
            if other not in (number, following):
                block.leave()
        self._waiting[number].come()
        if following is not None:
            self._waiting[following].come()
        self._waiting[number].arrive()

    def _following(self, number: int) -> int | None:
        """The waiting block that comes next, by the order of the first forward pass."""
        self._order = [each for each in self._order if each in self._waiting]
        position = self._order.index(number)
        if _in_backward():
            return self._order[position - 1] if position else None
        if position + 1 < len(self._order):
            return self._order[position + 1]
        # After a pass with gradients the way back begins with this block.
        return None if torch.is_grad_enabled() or position == 0 else self._order[0]


def offload_of(network: nn.Module) -> BlockOffload | None:
    """Return the offload that a network was given, or None."""
    offload: BlockOffload | None = getattr(network, _ATTRIBUTE, None)
    return offload


def start_offload(
    network: nn.Module,
    device: torch.device,
    count: OffloadBlocks,
    free: Callable[[torch.device], int | None] = free_memory,
) -> nn.Module | BlockOffload:
    """Return what moves in the place of a network: itself where no block waits.

    With 'auto' as many blocks wait as the weights ask for, with room to work; `BlockOffload.resize` corrects
    that once it is known what a step needs. Where nobody knows how much memory is free, none waits.

    Args:
        network: a denoiser in main memory.
        device: where it will compute.
        count: see `OffloadBlocks`.
        free: says how many bytes that device has free.
    """
    if count == 0:
        return network
    if count == "auto":
        room = free(device)
        needed = bytes_of([*_tensors(network)]) + WORK
        return BlockOffload(network, device, 0 if room is None else fewest_blocks(network, needed, room))
    return BlockOffload(network, device, count)


def readable(network: nn.Module) -> AbstractContextManager[None]:
    """Have every weight of a network where it can be read, see `BlockOffload.readable`; for a LoRA, too."""
    offload = offload_of(network)
    return nullcontext() if offload is None else offload.readable()


def bring_all(network: nn.Module) -> None:
    """Let no block of a network wait any longer, for work that changes the weights themselves."""
    offload = offload_of(network)
    if offload is not None:
        offload.resize(0)


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _frozen(block: nn.Module) -> list[Tensor]:
    return [tensor for tensor in _tensors(block) if not tensor.requires_grad and tensor.numel()]
