"""Saying, before the first step, what training will need, and what could be done where that is too much."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..config.settings import TrainSettings
from ..devices import free_memory
from ..run_store.events import Estimated, Event, Warned
from ..types import PairBatch
from .distributed import ProcessGroup
from .memory import memory_of
from .microbatch import advice

if TYPE_CHECKING:
    from ..families.base import LoadedModel
    from ..lora.adapter import LoraAdapter
    from .loop import Trainer


def estimate(
    settings: TrainSettings,
    model: LoadedModel,
    adapter: LoraAdapter,
    batch: PairBatch,
    trainer: Trainer,
    team: ProcessGroup,
) -> Iterator[Event]:
    """What `Estimated` says, and a warning where the device has not that much memory.

    Time is measured: the gradients of one step are computed and thrown away. Several processes say nothing.

    Args:
        settings: of the run.
        model: with the LoRA attached.
        adapter: that LoRA.
        batch: any of the run's.
        trainer: ready for its next step.
        team: the processes that train together.
    """
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
