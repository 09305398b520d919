"""Batches in portions: what a GPU cannot hold at once is computed one part after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from ..config.settings import TrainSettings
from ..devices import is_out_of_memory
from ..run_store.events import Event, Warned
from ..types import ScdpoError
from .distributed import PeerOutOfMemoryError, ProcessGroup, SingleProcess

T = TypeVar("T")


class MicroBatcher:
    """How many pairs go through the network at a time; halved whenever memory runs out.

    The pairs of a step, their noise, their weights and the learning rate stay the same. What an objective
    compares within a batch (DFM's weights have mean 1 there) it then compares within a portion, as it does
    with a smaller batch_size and a larger accumulation. In a team all halve when one of them has to.

    Attributes:
        size: pairs at a time.
    """

    def __init__(
        self,
        settings: TrainSettings,
        device: torch.device,
        emit: Callable[[Event], None],
        team: ProcessGroup,
        *,
        together: bool = True,
        what: str = "pairs",
        unchanged: str = "the effective batch",
    ) -> None:
        """Begin with whole batches.

        Args:
            settings: of the run.
            device: whose memory runs out.
            emit: is told when it does.
            team: the processes that train together.
            together: whether all of them attempt the same at the same time; else each is for itself.
            what: is computed, for the artist.
            unchanged: what stays as it was, for the artist.
        """
        self._settings, self._device, self._emit = settings, device, emit
        self._team = team if together or team.sharded else SingleProcess()
        self._what, self._unchanged = what, unchanged
        self.size = settings.optim.batch_size

    @property
    def sizes(self) -> list[int]:
        """What `size` is and what it may become, the largest first."""
        sizes = [self.size]
        while sizes[-1] > 1:
            sizes.append(_half(sizes[-1]))
        return sizes

    def slices(self, pairs: int) -> Iterator[slice | None]:
        """The portions of a batch of that many pairs; None is the whole of it."""
        if self.size >= pairs:
            yield None
            return
        for first in range(0, pairs, self.size):
            yield slice(first, min(first + self.size, pairs))

    def attempt(self, compute: Callable[[], T], undo: Callable[[], None] = lambda: None) -> T:
        """Compute something portion by portion; while memory runs out, undo what was done and take half.

        Processes that attempt the same meet before each exchange within `compute` (`gather`) and after
        it. Whoever has run out of memory says so at its next meeting, so that none waits for an exchange that
        another never comes to.

        Raises:
            ScdpoError: there is not even room for one pair, or the network itself needs every process; says
                what would help.
        """
        while True:
            ours = False
            try:
                result = compute()
                self._team.sync_or_abort()
                return result
            except PeerOutOfMemoryError:
                pass
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                ours = True
            # Out here the error is gone, and with it what its frames held on to.
            if self._team.sharded:
                raise ScdpoError(
                    f"A GPU has not enough memory for {self.size} {self._what} at once. With FSDP, where "
                    "every process holds a part of the model, a batch cannot go through in portions: begin a "
                    f"new run that needs less. What helps: {advice(self._settings)}."
                )
            if ours:
                self._team.any(True)
            undo()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            self._halve()

    def _halve(self) -> None:
        ways = advice(self._settings)
        if self.size == 1:
            raise ScdpoError(f"There is not enough memory even for one pair. What helps: {ways}.")
        before, self.size = self.size, _half(self.size)
        self._emit(
            Warned(
                f"There is not enough memory for {before} {self._what} at once: from here on {self.size} go "
                f"through the network at a time, and {self._unchanged} stays what it was. What else helps: "
                f"{ways}."
            )
        )


def _half(size: int) -> int:
    return (size + 1) // 2


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
        (
            model.offload_blocks == 0 and model.compile == "off" and model.device != "cpu",
            "--offload-blocks auto (slower, the same result)",
        ),
        (lora.train_text, "no --train-text"),
        (settings.optim.optimizer == "adamw", "--optimizer adafactor"),
        (lora.rank > 8, "a lower --rank"),
        (
            True,
            "smaller images (--width and --height)" if not data.buckets else "smaller buckets (--width)",
        ),
    ]
    return "; ".join(way for helps, way in ways if helps)
