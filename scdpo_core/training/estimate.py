"""Saying, before the first step, what training will need, and what could be done where that is too much."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..config.settings import TrainSettings
from ..devices import free_memory
from ..families.block_offload import bytes_saved, fewest_blocks, offload_of
from ..run_store.events import Estimated, Event, Warned
from ..types import PairBatch
from .distributed import ProcessGroup
from .memory import memory_of
from .microbatch import advice

if TYPE_CHECKING:
    from ..families.base import LoadedModel
    from ..lora.adapter import LoraAdapter
    from .loop import Trainer

_SPARE = 2**29
"""Bytes that 'auto' leaves free, for what is not counted: the gaps between tensors, above all."""


def fit_blocks(
    settings: TrainSettings, model: LoadedModel, adapter: LoraAdapter, batch: PairBatch
) -> Iterator[Event]:
    """Let as few blocks wait in main memory as a step allows, if 'auto' was asked for; say how many wait.

    Args:
        settings: of the run.
        model: with the LoRA attached, its encoders released.
        adapter: that LoRA.
        batch: any of the run's.
    """
    offload, free = offload_of(model.denoiser), free_memory(model.device)
    if offload is None:
        return
    if settings.model.offload_blocks == "auto" and free is not None:
        needed = memory_of(model, adapter, settings, batch)
        saved = bytes_saved(model.denoiser, offload.count)
        # What the weights need now is there already, and may be used again.
        count = fewest_blocks(model.denoiser, needed.total + saved, free + needed.weights - _SPARE)
        offload.resize(count)
    if offload.count:
        yield Warned(
            f"{offload.count} of the model's {offload.total} blocks wait in main memory "
            f"({offload.waiting_bytes / 2**30:.1f} GiB) and come to {model.device} when their turn comes."
        )


def estimate(
    settings: TrainSettings,
    model: LoadedModel,
    adapter: LoraAdapter,
    batch: PairBatch,
    trainer: Trainer,
    team: ProcessGroup,
) -> Iterator[Event]:
    """What `Estimated` says, and a warning where the device has not that much memory, once blocks are fitted.

    Time is measured: the gradients of one step are computed and thrown away. Several processes say nothing.

    Args:
        settings: of the run.
        model: with the LoRA attached.
        adapter: that LoRA.
        batch: any of the run's.
        trainer: ready for its next step.
        team: the processes that train together.
    """
    yield from fit_blocks(settings, model, adapter, batch)
    wanted, left = settings.output.estimate, settings.optim.max_train_steps - trainer.step
    if left <= 0 or team.size > 1 or wanted == "off" or (wanted == "auto" and model.device.type != "cuda"):
        return
    needed = memory_of(model, adapter, settings, batch)
    free = free_memory(model.device)
    # The weights are there already.
    available = None if free is None else free + needed.weights
    if available is not None and needed.total > available:
        yield Warned(
            f"Training needs about {needed.total / 2**30:.1f} GiB on {model.device}, and there are "
            f"{available / 2**30:.1f}; batches will go through the network in portions. Better: "
            f"{advice(settings)}."
        )
    seconds = trainer.rehearse() * left
    yield Estimated(needed.total, available, seconds)
