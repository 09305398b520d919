"""What a training step needs in memory, found out without needing it.

The step is run on tensors that have a shape and a place but no contents (torch's fake tensors), and what
would be alive at any moment is added up. Weights, optimiser and averages are counted.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..config import TrainSettings
from ..types import Conditioning, PairBatch
from .reference import Draw, pair_residuals

if TYPE_CHECKING:
    from ..families.base import LoadedModel
    from ..lora.adapter import LoraAdapter

_STATES = {"adamw": 8, "adamw8bit": 2, "prodigy": 16, "adafactor": 0}
"""Bytes that an optimiser keeps for each weight. Adafactor's rows and columns are next to nothing."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the training device.

    Attributes:
        weights: of the frozen denoiser.
        lora: its weights, gradients, averages and what the optimiser keeps.
        step: what a forward and backward pass need on top, at their peak.
    """

    weights: int
    lora: int
    step: int

    @property
    def total(self) -> int:
        """All of it, at the peak; the device's own libraries (some 0.5 GB of CUDA's) are not in it."""
        return self.weights + self.lora + self.step


def memory_of(
    model: LoadedModel,
    adapter: LoraAdapter,
    settings: TrainSettings,
    batch: PairBatch,
    mode: FakeTensorMode | None = None,
) -> Memory:
    """What training needs with these settings.

    Text encoders that train along are counted as weights; their own activations are not.

    Args:
        model: with the LoRA attached.
        adapter: that LoRA.
        settings: of the run.
        batch: any of the run's; only its shapes count.
        mode: that the model's weights were made in, if they are fake too.
    """
    own = settings.optim
    shape = batch.latents.shape[2:]
    step = peak_of_step(model, adapter, own.batch_size, shape, batch.conditioning, mode)
    parameters = adapter.parameters()
    count = sum(weight.numel() for weight in parameters)
    # Master, gradient, states and the average.
    lora = count * (4 + 4 + _STATES[own.optimizer] + (4 if own.ema else 0))
    trained = {id(weight) for weight in parameters}
    return Memory(sum(_bytes(part) for part in _held(model.denoiser) if id(part) not in trained), lora, step)


def peak_of_step(
    model: LoadedModel,
    adapter: LoraAdapter,
    pairs: int,
    shape: Sequence[int],
    conditioning: Conditioning,
    mode: FakeTensorMode | None = None,
) -> int:
    """Most bytes alive at once while errors of `pairs` pairs are computed and go back to the LoRA.

    Args:
        model: with the LoRA attached, in training mode or not.
        adapter: that LoRA.
        pairs: B.
        shape: (C, h, w) of the latents.
        conditioning: of at least one prompt.
        mode: see `memory_of`.
    """
    was_training = model.denoiser.training
    model.denoiser.train()
    with mode or FakeTensorMode(allow_non_fake_inputs=True), Alive() as alive:
        device = model.device

        def words(part: Tensor) -> Tensor:
            return torch.empty((pairs, *part.shape[1:]), dtype=part.dtype, device=device)

        empty = torch.empty((pairs, 2, *shape), device=device)
        one = torch.empty(pairs, device=device)
        # Sizes are given to every family: SDXL's model would make some, and keep them beyond this block.
        known = dataclasses.replace(conditioning.map(words), sizes=torch.empty((pairs, 6), device=device))
        batch = PairBatch(empty, known, one, one, torch.empty((pairs, 2), device=device))
        times = model.timesteps.last(torch.empty(pairs, device=device, dtype=_times_of(model)))
        chance = Draw(times, torch.empty((pairs, *shape), device=device))
        enabled = model.dtype != torch.float32
        with torch.autocast(device.type, model.dtype, enabled=enabled):
            residuals = pair_residuals(model, adapter, batch, chance, "exact")
        loss = residuals.errors().policy.sum()
        del residuals
        torch.autograd.grad(loss, adapter.parameters(), allow_unused=True)
    model.denoiser.train(was_training)
    # Gradients are counted with the LoRA; here they are among what is alive at the end.
    gradients = sum(_bytes(weight) for weight in adapter.parameters())
    return max(0, int(alive.peak) - gradients)


class Alive(TorchDispatchMode):
    """Adds up the storages that are born while it is on, until they die.

    Attributes:
        now: bytes alive.
        peak: most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let an operation happen, and look at what it made."""
        result = func(*args, **(kwargs or {}))
        # A view of a weight looks new here, for the weight itself is no fake tensor; the schema knows better.
        if all(output.alias_info is None for output in func._schema.returns):
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and _storage(leaf)._cdata not in self._known:
                    self._born(_storage(leaf))
        return result

    def _born(self, storage: torch.UntypedStorage) -> None:
        size, number = storage.nbytes(), storage._cdata
        self._known.add(number)
        self.now += size
        self.peak = max(self.peak, self.now)

        def dies() -> None:
            self._known.discard(number)
            self.now -= size

        weakref.finalize(storage, dies)


def free_memory(device: torch.device) -> int | None:
    """Bytes that a device has free for us; None where that is not known."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    # What our own allocator has set aside is as good as free.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _held(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _times_of(model: LoadedModel) -> torch.dtype:
    return torch.float32 if model.prediction == "flow" else torch.int64
