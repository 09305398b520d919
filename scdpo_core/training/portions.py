"""Batches in portions: what a GPU cannot hold at once is computed one part after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch

from ..config import TrainSettings
from ..types import PairBatch, ScdpoError
from .events import Event, Warned
from .feed import Portion
from .reference import Draw
from .team import Team


class Portions:
    """How many pairs go through the network at a time; halved whenever memory runs out.

    The pairs of a step, their noise, their weights and the learning rate stay the same. What an objective
    compares within a batch (DFM's weights have mean 1 there) it then compares within a portion, as it does
    with a smaller batch_size and a larger accumulation.

    Attributes:
        size: pairs at a time.
    """

    def __init__(
        self, settings: TrainSettings, device: torch.device, emit: Callable[[Event], None], team: Team
    ) -> None:
        """Begin with whole batches.

        Args:
            settings: of the run.
            device: whose memory runs out.
            emit: is told when it does.
            team: several processes compute in step, and one of them cannot take smaller portions alone.
        """
        self._settings, self._device, self._emit, self._team = settings, device, emit, team
        self.size = settings.optim.batch_size

    def slices(self, pairs: int) -> Iterator[slice | None]:
        """The portions of a batch of that many pairs; None is the whole of it."""
        if self.size >= pairs:
            yield None
            return
        for first in range(0, pairs, self.size):
            yield slice(first, min(first + self.size, pairs))

    def attempt(self, compute: Callable[[], None], undo: Callable[[], None]) -> None:
        """Compute something portion by portion; while memory runs out, undo what was done and take half.

        Raises:
            ScdpoError: there is not even room for one pair; says what would help.
        """
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Out here the error is gone, and with it what its frames held on to.
            undo()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            self._halve()

    def _halve(self) -> None:
        ways = advice(self._settings)
        if self._team.size > 1:
            raise ScdpoError(f"A GPU has not enough memory for {self.size} pairs. What helps: {ways}.")
        if self.size == 1:
            raise ScdpoError(f"There is not enough memory even for one pair. What helps: {ways}.")
        before, self.size = self.size, (self.size + 1) // 2
        self._emit(
            Warned(
                f"There is not enough memory for {before} pairs at once: from here on {self.size} go through "
                f"the network at a time, and the effective batch stays what it was. What else helps: {ways}."
            )
        )


def part_of(batch: PairBatch, places: slice) -> PairBatch:
    """The pairs at these places of a batch."""
    return dataclasses.replace(
        batch,
        latents=batch.latents[places],
        conditioning=batch.conditioning.map(lambda part: part[places]),
        weight=batch.weight[places],
        label=batch.label[places],
        cost=batch.cost[places],
        prompts=batch.prompts[places],
    )


def portion_of(portion: Portion, places: slice) -> Portion:
    """The pairs at these places of a portion, with what chance and the reference say of them."""
    reference = None if portion.reference is None else portion.reference[places]
    chance = Draw(portion.chance.timesteps[places], portion.chance.noise[places])
    return Portion(part_of(portion.batch, places), chance, reference)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device has no room left; CUDA has an error of its own for that, others say it in words."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in words or "out of memory" in words)


def advice(settings: TrainSettings) -> str:
    """What else would make a run need less memory, the cheapest first, with what each costs."""
    model, data, lora = settings.model, settings.data, settings.lora
    ways = [
        (not model.gradient_checkpointing, "--gradient-checkpointing (a third slower)"),
        (
            settings.optim.batch_size > 1,
            "a smaller --batch-size with a larger --accumulation (learns the same)",
        ),
        (model.precision in ("auto", "fp32") and model.device == "cuda", "--precision bf16"),
        (
            model.quantize == "off" and lora.kind != "dora",
            "--quantize int8, or nf4 (slower, a little less exact)",
        ),
        (lora.train_text, "no --train-text"),
        (settings.optim.optimizer == "adamw", "--optimizer adafactor"),
        (lora.rank > 8, "a lower --rank"),
        (
            True,
            "smaller pictures (--width and --height)" if not data.buckets else "smaller buckets (--width)",
        ),
    ]
    return "; ".join(way for helps, way in ways if helps)
