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

T = TypeVar("T")

# Others wait while the first process scores or encodes a large folder. One that dies takes the others along
# (torchrun sees to that), so that nobody waits this long for nothing.
_PATIENCE = timedelta(days=2)


class ElsewhereError(Exception):
    """Another process has run out of memory, and this one must not go on without it."""


class Team(Protocol):
    """Processes of one run. Every method must be called by all of them, in the same order.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        device: where this process computes; None where nobody but the settings decides that.
        lockstep: whether the network's forward passes need every process (its weights are spread over them).
    """

    rank: int
    size: int
    device: torch.device | None
    lockstep: bool

    def gather(self, rows: Tensor) -> Tensor:
        """[B, F] of every process, in the order of ranks: [size * B, F]. Its own rows keep their gradient.

        Raises:
            ElsewhereError: as `meet`, and then nothing has been exchanged.
            ScdpoError: the exchange broke off, after which processes no longer know what they wait for.
        """
        ...

    def meet(self) -> None:
        """Go on if no process has come to say `anyone(True)` instead.

        Where the network's forward passes need every process, nobody can be met between them, and all go on.

        Raises:
            ElsewhereError: one has.
        """
        ...

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes."""
        ...

    def anyone(self, yes: bool) -> bool:
        """Whether at least one of them says yes. Waits for the others, not for the device."""
        ...

    def tell(self, value: T) -> T:
        """What the first process says; any value that JSON knows."""
        ...

    def wait(self) -> None:
        """Go on when all have come here."""
        ...

    def agree(self, value: object, what: str) -> None:
        """Make sure that all have the same value.

        Raises:
            ScdpoError: they have not; `what` is the sentence's subject.
        """
        ...


class Alone:
    """One process; see `Team`. Nothing here costs anything."""

    rank = 0
    size = 1
    device: torch.device | None = None
    lockstep = False

    def gather(self, rows: Tensor) -> Tensor:
        """See `Team.gather`."""
        return rows

    def meet(self) -> None:
        """See `Team.meet`."""

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """See `Team.sum_gradients`."""

    def anyone(self, yes: bool) -> bool:
        """See `Team.anyone`."""
        return yes

    def tell(self, value: T) -> T:
        """See `Team.tell`."""
        return value

    def wait(self) -> None:
        """See `Team.wait`."""

    def agree(self, value: object, what: str) -> None:
        """See `Team.agree`."""


class Crew:
    """Several processes, on one machine or on many; see `Team`."""

    def __init__(self, device: torch.device, lockstep: bool = False) -> None:
        """Join the default process group, which must be there.

        Args:
            device: of this process.
            lockstep: see `Team`.
        """
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device: torch.device | None = device
        self.lockstep = lockstep
        # Words between processes never touch the GPU, so that nobody waits for it.
        self._words = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def gather(self, rows: Tensor) -> Tensor:
        """See `Team.gather`."""
        own, parts = rows.detach().contiguous(), [torch.empty_like(rows) for _ in range(self.size)]
        # Whoever has no memory for these finds that out before the others send theirs.
        self.meet()
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

    def meet(self) -> None:
        """See `Team.meet`."""
        if not self.lockstep and self.anyone(False):
            raise ElsewhereError

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """See `Team.sum_gradients`. One message for all of them: a LoRA is small."""
        gradients = [weight.grad for weight in parameters if weight.grad is not None]
        if not gradients:
            return
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(whole)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, whole.split(sizes), strict=True):
            gradient.copy_(part.view_as(gradient))

    def anyone(self, yes: bool) -> bool:
        """See `Team.anyone`."""
        flag = torch.tensor(int(yes))
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._words)
        return bool(flag)

    def tell(self, value: T) -> T:
        """See `Team.tell`."""
        raw = json.dumps(value).encode() if self.rank == 0 else b""
        length = torch.tensor(len(raw))
        dist.broadcast(length, 0, group=self._words)
        letters = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0)
        if self.rank:
            letters = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(letters, 0, group=self._words)
        told: T = json.loads(letters.numpy().tobytes())
        return told

    def wait(self) -> None:
        """See `Team.wait`."""
        dist.barrier(group=self._words)

    def agree(self, value: object, what: str) -> None:
        """See `Team.agree`."""
        own = json.dumps(value)
        if self.anyone(own != json.dumps(self.tell(value))):
            raise ScdpoError(
                f"{what} differs between the processes of this run. Every machine needs the same files: give "
                "pairs, base model and run folder from a disk that all of them share."
            )


def identity_of(settings: TrainSettings, team: Team) -> dict[str, Any]:
    """`config.identity`, and how many processes share a batch where there are several."""
    return identity(settings) | ({} if team.size == 1 else {"processes": team.size})


def launched() -> int:
    """How many processes `accelerate launch` (or torchrun) has started for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def assemble(device: str = "auto") -> Team:
    """The team of this process. Only a launched one needs the accelerate package, and only it imports it.

    Args:
        device: as the settings have it; 'cpu' keeps a team off the GPUs.

    Raises:
        ScdpoError: DeepSpeed was asked for.
    """
    if launched() == 1:
        return Alone()
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
    return Crew(state.device, lockstep=asked("ACCELERATE_USE_FSDP"))


def dismiss(team: Team) -> None:
    """End a team of several; the last thing that a process does with it."""
    if isinstance(team, Crew) and dist.is_initialized():
        dist.destroy_process_group()


def share_of(items: Sequence[T], team: Team) -> list[T]:
    """Every size-th of the items, which this process works on; all of them in lockstep."""
    return list(items) if team.lockstep else list(items[team.rank :: team.size])
