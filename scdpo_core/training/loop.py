"""The training loop. It knows no printing and no files but its checkpoints; everything else is an event."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import torch
from torch import Tensor

from ..config import TrainSettings
from ..types import PairBatch, ScdpoError
from . import checkpoint as checkpoints
from .ema import Ema
from .events import Event, Progress, Saved, Warned
from .feed import Ahead, Feed
from .loss import PairLoss
from .measure import Measure
from .meter import Meter
from .optimizers import build_optimizer, set_rate
from .portions import Portions
from .schedules import learning_rate
from .team import Alone, Team, identity_of
from .validation import Validation

if TYPE_CHECKING:
    from ..families.base import LoadedModel
    from ..lora.adapter import LoraAdapter

Reason = Literal["finished", "stopped"]

# A share of the base's error by which the chosen pictures may get worse before the artist is told.
_WORSE = 0.1


@dataclass(frozen=True)
class Outcome:
    """How training ended: the reason, and how many steps are behind the LoRA."""

    reason: Reason
    step: int


class Trainer:
    """Trains a LoRA on pairs.

    Every step is decided by the settings and its number alone: which pairs, which timesteps, which
    noise. On a CPU a resumed run therefore ends with the same bytes as one that was never interrupted.
    """

    def __init__(
        self,
        model: LoadedModel,
        adapter: LoraAdapter,
        feed: Feed,
        settings: TrainSettings,
        folder: Path,
        *,
        emit: Callable[[Event], None],
        should_stop: Callable[[], bool] = lambda: False,
        on_sample: Callable[[int], None] | None = None,
        words: Callable[[PairBatch], PairBatch] | None = None,
        held_out: Iterable[PairBatch] = (),
        dataset_hash: str = "",
        team: Team | None = None,
    ) -> None:
        """Get ready at step 0.

        Args:
            model: the frozen base.
            adapter: the LoRA in its denoiser.
            feed: deals `settings.optim.batch_size` pairs at a time to this process, with their dice.
            settings: of the run.
            folder: for the checkpoints.
            emit: is told what happens.
            should_stop: asked once a step; when it says yes, the loop saves and ends.
            on_sample: called with the step whenever samples are due in the middle of training.
            words: gives batches the words of text encoders that train along, see `attaching.live_words`.
            held_out: pairs to try the LoRA on every `validation_every` steps and at the end.
            dataset_hash: goes into checkpoints, so that a resumed run notices other pairs.
            team: the processes that train together; None: this one alone.
        """
        self._model, self._adapter, self._team = model, adapter, team or Alone()
        self._settings, self._folder, self._dataset_hash = settings, folder, dataset_hash
        self._emit, self._should_stop, self._on_sample = emit, should_stop, on_sample
        optim = settings.optim
        self._parameters = list(adapter.parameters())
        on_gpu = model.device.type == "cuda"
        self._optimizer = build_optimizer(adapter, optim, model.device)
        self._ema = Ema(self._parameters, optim.ema) if optim.ema else None
        self._loss = PairLoss(
            settings.objective,
            steps=optim.max_train_steps,
            num_timesteps=model.timesteps.count,
            device=model.device,
        )
        self._scaler = torch.amp.GradScaler(
            model.device.type, enabled=on_gpu and model.dtype == torch.float16
        )
        # On a CPU there is nobody who would have time for it.
        self._ahead = Ahead(feed, optim.max_train_steps * optim.accumulation) if on_gpu else None
        self._measure = Measure(model, adapter, self._ahead or feed, settings.objective, self._team, words)
        self._validation = Validation(model, adapter, held_out, settings, emit, self._team, words)
        self._portions = Portions(settings, model.device, emit, self._team)
        self._meter = Meter(model.device)
        self._rising = 0
        self.step = 0

    def resume(self, state: checkpoints.Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            ScdpoError: it was made with other settings or pairs, or does not fit this model.
        """
        checkpoints.check_same_run(state, identity_of(self._settings, self._team), self._dataset_hash)
        try:
            self._adapter.load_state(dict(state.adapter))
            self._optimizer.load_state_dict(dict(state.optimizer))
            self._loss.load_state(dict(state.extra["loss"]))
            self._validation.patience.load_state(state.extra["patience"])
            self._portions.size = int(state.extra["portion"])
            if self._ema is not None:
                self._ema.load_state(state.extra["ema"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise ScdpoError(
                f"The checkpoint of step {state.step} does not fit this model ({error}). "
                "Give --output a new folder to start again."
            ) from error
        if state.extra["scaler"]:
            self._scaler.load_state_dict(dict(state.extra["scaler"]))
        self.step = state.step

    def run(self) -> Outcome:
        """Train until the last step, or until somebody asks to stop; then the trainer is closed.

        Raises:
            ScdpoError: the loss is no longer a number; the last checkpoint is still good.
            OSError: a checkpoint cannot be written.
        """
        try:
            return self._run()
        finally:
            self.close()

    def close(self) -> None:
        """End the thread that works ahead; only for those who do not `run` to the end."""
        if self._ahead is not None:
            self._ahead.close()

    def _run(self) -> Outcome:
        output, total = self._settings.output, self._settings.optim.max_train_steps
        self._model.denoiser.train()
        began, first = time.monotonic(), self.step
        stopped = self._team.anyone(self._should_stop())
        patience = self._validation.patience
        while self.step < total and not stopped and not patience.is_over:
            self.advance()
            stopped = self._team.anyone(self._should_stop())
            if self.step == total or self.step % self._settings.validation.validation_every == 0:
                with self.averaged():
                    self._validation.look(self.step)
            last = stopped or self.step == total or patience.is_over
            if last or self.step % output.log_every == 0:
                self._report(time.monotonic() - began, self.step - first)
            if last or self.step % output.checkpoint_every == 0:
                self._save()
            every = self._settings.sampling.sample_every
            if self._on_sample is not None and every and not last and self.step % every == 0:
                self._sample(self._on_sample)
        self._model.denoiser.eval()
        ended = self.step == total or patience.is_over
        return Outcome("finished" if ended else "stopped", self.step)

    def advance(self) -> None:
        """Train one step, and nothing else: no report, no checkpoint, no sample."""
        self._one_step()
        self.step += 1

    def _one_step(self) -> None:
        settings = self._settings.optim
        set_rate(self._optimizer, learning_rate(self.step, settings))
        if self._settings.lora.dropout > 0:
            # Dropout draws from the global generator, which a resumed run finds in another state.
            torch.manual_seed(settings.seed * 1_000_003 + self.step + self._team.rank * 2**40)
        self._gradients()
        self._team.sum_gradients(self._parameters)
        self._scaler.unscale_(self._optimizer)
        limit = settings.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit)
        self._meter.add("grad_norm", norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._ema is not None:
            self._ema.update()
        self._optimizer.zero_grad(set_to_none=True)

    def _gradients(self) -> None:
        """Add up the gradients of a step's batches, in smaller portions if memory runs out."""
        before = self._loss.state(), self._meter.state()

        def undo() -> None:
            self._optimizer.zero_grad(set_to_none=True)
            self._loss.load_state(before[0])
            self._meter.load_state(before[1])

        self._portions.attempt(self._accumulate, undo)

    def _accumulate(self) -> None:
        settings = self._settings.optim
        for index in range(settings.accumulation):
            for places in self._portions.slices(settings.batch_size):
                loss = self._forward(self.step * settings.accumulation + index, places)
                self._scaler.scale(loss / settings.accumulation).backward()

    def rehearse(self) -> float:
        """Seconds that a step's gradients take; they are thrown away, and nothing else changes.

        Raises:
            ScdpoError: there is not enough memory for one pair. The trainer is closed then.
        """
        try:
            return self._rehearse()
        except BaseException:
            self.close()
            raise

    def _rehearse(self) -> float:
        self._model.denoiser.train()
        before, took = (self._loss.state(), self._meter.state()), 0.0
        for _ in range(2):  # the first warms up
            began = time.monotonic()
            self._gradients()
            if self._model.device.type == "cuda":
                torch.cuda.synchronize(self._model.device)
            took = time.monotonic() - began
            self._optimizer.zero_grad(set_to_none=True)
            self._loss.load_state(before[0])
            self._meter.load_state(before[1])
        return took

    def _forward(self, index: int, places: slice | None = None) -> Tensor:
        """Mean loss of a batch, or what the pairs at some places of it contribute to that."""
        seen = self._measure(index, places)
        output = self._loss(seen, self.step)
        loss = output.per_pair.mean()
        self._meter.add("loss", loss)
        self._meter.add("reference_error", seen.errors.reference[:, 0].mean())
        for name, value in output.metrics.items():
            self._meter.add(name, value)
        for side, name in enumerate(("chosen_cost", "rejected_cost")):
            self._meter.add_known(name, seen.cost[:, side])
        if places is None:
            return loss
        return loss * (len(seen.weight) / (self._settings.optim.batch_size * self._team.size))

    def _report(self, seconds: float, steps: int) -> None:
        total, speed = self._settings.optim.max_train_steps, steps / max(seconds, 1e-9)
        metrics = self._meter.take() | {"lr": learning_rate(self.step - 1, self._settings.optim)}
        self._emit(Progress("train", self.step, total, metrics, speed, (total - self.step) / speed))
        if metrics["loss"] is None:
            self._broken()
        self._watch(metrics)

    def _broken(self) -> NoReturn:
        raise ScdpoError(
            f"The loss is no longer a number at step {self.step}: training has come apart. Checkpoints "
            "from before are still good. Start a new run with a lower learning rate (--lr), a lower --beta, "
            "or --precision fp32."
        )

    def _watch(self, metrics: dict[str, float | None]) -> None:
        """Warn once when the chosen pictures stay worse than before: how preference training often fails."""
        gap, usual = metrics.get("winner_gap"), metrics.get("reference_error")
        if gap is None or usual is None or self._rising < 0:
            return
        self._rising = self._rising + 1 if gap > _WORSE * usual else 0
        if self._rising == 5:
            self._rising = -1
            self._emit(
                Warned(
                    f"At step {self.step} the model draws the chosen pictures clearly worse than before "
                    "training; samples may fall apart. Raise --winner, or lower --beta or --lr."
                )
            )

    def _save(self) -> None:
        sound = torch.stack([torch.isfinite(values).all() for values in self._parameters]).all()
        if not bool(sound):
            self._broken()
        if self._team.rank:
            return
        state = checkpoints.Checkpoint(
            step=self.step,
            adapter=self._adapter.state(),
            optimizer=self._optimizer.state_dict(),
            extra={
                "loss": self._loss.state(),
                "scaler": self._scaler.state_dict(),
                "patience": self._validation.patience.state(),
                "portion": self._portions.size,
                "ema": None if self._ema is None else self._ema.state(),
            },
            identity=identity_of(self._settings, self._team),
            dataset_hash=self._dataset_hash,
        )
        path = checkpoints.save(self._folder, state, self._settings.output.keep)
        self._emit(Saved(self.step, f"{self._folder.name}/{path.name}", "checkpoint"))

    def _sample(self, on_sample: Callable[[int], None]) -> None:
        self._model.denoiser.eval()
        with self.averaged():
            on_sample(self.step)
        self._model.denoiser.train()

    def averaged(self) -> AbstractContextManager[None]:
        """The LoRA as it is to be used: its average over the steps, if one is kept."""
        return nullcontext() if self._ema is None else self._ema.applied()
