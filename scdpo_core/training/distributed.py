"""The processes that train one LoRA together: one alone, or as many as `accelerate launch` has started.

Every process holds the whole LoRA and draws its own share of each batch. What the objective needs of the
others are a few numbers a pair, so that every process sees the loss of the whole batch; each differentiates
it by its own share, and the sum of these gradients is that of one process with the whole batch: also for
objectives that look at the batch as a whole (difficulty focusing, KTO).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..config.settings import TrainSettings, identity
from ..types import ScdpoError
from .starting_loras import content_hashes

T = TypeVar("T")

# Others wait while the first process scores or encodes a large folder. One that dies takes the others along
# (torchrun sees to that), so that nobody waits this long for nothing.
_PATIENCE = timedelta(days=2)


class PeerOutOfMemoryError(Exception):
    """Another process has run out of memory, and this one must not go on without it."""


class ProcessGroup(Protocol):
    """Processes of one run. Every method must be called by all of them, in the same order.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        device: where this process computes; None where nobody but the settings decides that.
        sharded: whether the network's forward passes need every process (its weights are spread over them).
    """

    rank: int
    size: int
    device: torch.device | None
    sharded: bool

    def gather(self, rows: Tensor) -> Tensor:
        """[B, F] of every process, in the order of ranks: [size * B, F]. Its own rows keep their gradient.

        Raises:
            PeerOutOfMemoryError: as `sync_or_abort`, and then nothing has been exchanged.
            ScdpoError: the exchange broke off, after which processes no longer know what they wait for.
        """
        ...

    def sync_or_abort(self) -> None:
        """Go on if no process has come to say `any(True)` instead.

        Where the network's forward passes need every process, nobody can be met between them, and all go on.

        Raises:
            PeerOutOfMemoryError: one has.
        """
        ...

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes."""
        ...

    def any(self, yes: bool) -> bool:
        """Whether at least one of them says yes. Waits for the others, not for the device."""
        ...

    def broadcast(self, value: T) -> T:
        """What the first process says; any value that JSON knows."""
        ...

    def barrier(self) -> None:
        """Go on when all have come here."""
        ...

    def assert_equal(self, value: object, what: str) -> None:
        """Make sure that all have the same value.

        Raises:
            ScdpoError: they have not; `what` is the sentence's subject.
        """
        ...


class SingleProcess:
    """One process; see `ProcessGroup`. Nothing here costs anything."""

    rank = 0
    size = 1
    device: torch.device | None = None
    sharded = False

    def gather(self, rows: Tensor) -> Tensor:
        """See `ProcessGroup.gather`."""
        return rows

    def sync_or_abort(self) -> None:
        """See `ProcessGroup.sync_or_abort`."""

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """See `ProcessGroup.sum_gradients`."""

    def any(self, yes: bool) -> bool:
        """See `ProcessGroup.any`."""
        return yes

    def broadcast(self, value: T) -> T:
        """See `ProcessGroup.broadcast`."""
        return value

    def barrier(self) -> None:
        """See `ProcessGroup.barrier`."""

    def assert_equal(self, value: object, what: str) -> None:
        """See `ProcessGroup.assert_equal`."""


class DistributedGroup:
    """Several processes, on one machine or on many; see `ProcessGroup`."""

    def __init__(self, device: torch.device, sharded: bool = False) -> None:
        """Join the default process group, which must be there.

        Args:
            device: of this process.
            sharded: see `ProcessGroup`.
        """
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device: torch.device | None = device
        self.sharded = sharded
        # Words between processes never touch the GPU, so that nobody waits for it.
        self._words = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def gather(self, rows: Tensor) -> Tensor:
        """See `ProcessGroup.gather`."""
        own, parts = rows.detach().contiguous(), [torch.empty_like(rows) for _ in range(self.size)]
        # Whoever has no memory for these finds that out before the others send theirs.
        self.sync_or_abort()
        try:
            dist.all_gather(parts, own)
        except RuntimeError as error:
            raise ScdpoError(
                f"The processes of this run could not exchange what they measured ({error}). The last "
                "checkpoint is good: go on with --resume. If a GPU was nearly full, begin a new run with a "
                "smaller --batch-size and a larger --accumulation."
            ) from error
        parts[self.rank] = rows
        return torch.cat(parts)

    def sync_or_abort(self) -> None:
        """See `ProcessGroup.sync_or_abort`."""
        if not self.sharded and self.any(False):
            raise PeerOutOfMemoryError

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """See `ProcessGroup.sum_gradients`. One message for all of them: a LoRA is small."""
        gradients = [weight.grad for weight in parameters if weight.grad is not None]
        if not gradients:
            return
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(whole)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, whole.split(sizes), strict=True):
            gradient.copy_(part.view_as(gradient))

    def any(self, yes: bool) -> bool:
        """See `ProcessGroup.any`."""
        flag = torch.tensor(int(yes))
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._words)
        return bool(flag)

    def broadcast(self, value: T) -> T:
        """See `ProcessGroup.broadcast`."""
        raw = json.dumps(value).encode() if self.rank == 0 else b""
        length = torch.tensor(len(raw))
        dist.broadcast(length, 0, group=self._words)
        letters = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0)
        if self.rank:
            letters = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(letters, 0, group=self._words)
        told: T = json.loads(letters.numpy().tobytes())
        return told

    def barrier(self) -> None:
        """See `ProcessGroup.barrier`."""
        dist.barrier(group=self._words)

    def assert_equal(self, value: object, what: str) -> None:
        """See `ProcessGroup.assert_equal`."""
        own = json.dumps(value)
        if self.any(own != json.dumps(self.broadcast(value))):
            raise ScdpoError(
                f"{what} differs between the processes of this run. Every machine needs the same files: give "
                "pairs, base model and run folder from a disk that all of them share."
            )


def identity_of(settings: TrainSettings, team: ProcessGroup) -> dict[str, Any]:
    """`config.identity`, the content of LoRA files, and how many processes share a batch if several do.

    Raises:
        ScdpoError: such a file cannot be read.
    """
    processes = {} if team.size == 1 else {"processes": team.size}
    return identity(settings) | content_hashes(settings) | processes


def launched() -> int:
    """How many processes `accelerate launch` (or torchrun) has started for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def init_group(device: str = "auto") -> ProcessGroup:
    """The team of this process. Only a launched one needs the accelerate package, and only it imports it.

    Args:
        device: as the settings have it; 'cpu' keeps a team off the GPUs.

    Raises:
        ScdpoError: DeepSpeed was asked for.
    """
    if launched() == 1:
        return SingleProcess()
    from accelerate import PartialState
    from accelerate.utils import str_to_bool

    def asked(name: str) -> bool:
        return bool(str_to_bool(os.environ.get(name, "false")))

    if asked("ACCELERATE_USE_DEEPSPEED"):
        raise ScdpoError(
            "DeepSpeed is not used here: a LoRA's optimizer is small, and FSDP spreads the frozen model just "
            "as ZeRO 3 does. Run 'accelerate config' again and choose FSDP or neither (docs/scaling.md)."
        )
    on_cpu = device == "cpu" or asked("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, timeout=_PATIENCE)
    return DistributedGroup(state.device, sharded=asked("ACCELERATE_USE_FSDP"))


def shutdown_group(team: ProcessGroup) -> None:
    """End a team of several; the last thing that a process does with it."""
    if isinstance(team, DistributedGroup) and dist.is_initialized():
        dist.destroy_process_group()


def share_of(items: Sequence[T], team: ProcessGroup) -> list[T]:
    """Every size-th of the items, which this process works on; all of them in lockstep."""
    return list(items) if team.sharded else list(items[team.rank :: team.size])
