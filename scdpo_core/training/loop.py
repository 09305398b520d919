"""The training loop. It knows no printing and no files but its checkpoints; everything else is an event."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import torch
from torch import Tensor

from ..config.settings import TrainSettings
from ..config.terms import TermName
from ..run_store.events import Event, Progress, Saved, Warned
from ..types import PairBatch, ScdpoError
from . import checkpoint as checkpoints
from .batches import BatchSource, Prefetcher
from .distributed import ProcessGroup, SingleProcess, identity_of
from .ema import Ema
from .microbatch import MicroBatcher
from .optimizers import build_optimizer, learning_rate, set_rate
from .running_metrics import GapWatch, Meter
from .step import Measure, PairLoss, PairStep
from .validation import Validation

if TYPE_CHECKING:
    from ..families.base import LoadedModel
    from ..lora.adapter import LoraAdapter
    from .adapters import LiveEncoder

Reason = Literal["finished", "stopped"]


@dataclass(frozen=True)
class Outcome:
    """How training ended: the reason, and how many steps are behind the LoRA."""

    reason: Reason
    step: int


class Trainer:
    """Trains a LoRA on pairs.

    Every step is decided by the settings and its number alone: which pairs, which timesteps, which
    noise. On a CPU a resumed run therefore ends with the same bytes as one that was never interrupted.

    Attributes:
        step: how many steps are behind it.
        validation: what the held-out pairs say.
    """

    def __init__(
        self,
        model: LoadedModel,
        adapter: LoraAdapter,
        feed: BatchSource,
        settings: TrainSettings,
        folder: Path,
        *,
        emit: Callable[[Event], None],
        should_stop: Callable[[], bool] = lambda: False,
        on_sample: Callable[[int], None] | None = None,
        encode_live: LiveEncoder | None = None,
        term_weights: Mapping[TermName, float] | None = None,
        on_save: Callable[[int], None] | None = None,
        held_out: Iterable[PairBatch] = (),
        dataset_hash: str = "",
        base_hash: str = "",
        team: ProcessGroup | None = None,
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
            encode_live: encodes the policy's prompts where text encoders train along, see
                `adapters.encode_prompts_with_grad`.
            term_weights: of the single-image terms whose rows `feed` yields.
            on_save: called with the step whenever the LoRA is to be kept in the middle of training.
            held_out: pairs to try the LoRA on every `validation_every` steps and at the end.
            dataset_hash: goes into checkpoints, so that a resumed run notices other pairs.
            base_hash: likewise, so that it notices another base model.
            team: the processes that train together; None: this one alone.
        """
        self._model, self._adapter, self._team = model, adapter, team or SingleProcess()
        self._settings, self._folder = settings, folder
        self._dataset_hash, self._base_hash = dataset_hash, base_hash
        self._emit, self._should_stop = emit, should_stop
        self._on_sample, self._on_save = on_sample, on_save
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
        self._ahead = Prefetcher(feed, optim.max_train_steps * optim.accumulation) if on_gpu else None
        self._term_weights = term_weights or {}
        self._measure = Measure(
            model, adapter, self._ahead or feed, settings.objective, self._team, encode_live, settings.terms
        )
        self.validation = Validation(model, adapter, held_out, settings, emit, self._team, encode_live)
        self._portions = MicroBatcher(settings, model.device, emit, self._team)
        self._meter = Meter(model.device)
        self._gap_watch = GapWatch()
        self.step = 0

    def resume(self, state: checkpoints.Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            ScdpoError: it was made with other settings or pairs, or does not fit this model.
        """
        identity = identity_of(self._settings, self._team)
        checkpoints.check_same_run(state, identity, self._dataset_hash, self._base_hash)
        try:
            self._adapter.load_state(dict(state.adapter))
            self._optimizer.load_state_dict(dict(state.optimizer))
            self._loss.load_state(dict(state.extra["loss"]))
            self.validation.load_state(state.extra["patience"])
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
        stopped = self._team.any(self._should_stop())
        patience = self.validation.patience
        while self.step < total and not stopped and not patience.is_over:
            self.advance()
            stopped = self._team.any(self._should_stop())
            if self.step == total or self.step % self._settings.validation.validation_every == 0:
                with self.averaged():
                    self.validation.look(self.step)
            last = stopped or self.step == total or patience.is_over
            if last or self.step % output.log_every == 0:
                self._report(time.monotonic() - began, self.step - first)
            if last or self.step % output.checkpoint_every == 0:
                self._save()
            if self._on_save is not None and output.save_every and self.step % output.save_every == 0:
                with self.averaged():
                    self._on_save(self.step)
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
                if loss.requires_grad:  # a few pairs may bring no row of any term
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
        """Loss of a batch, or what the pairs at some places of it contribute to that."""
        measured, own = self._measure(index, places), self._settings
        share = measured.pairs / own.optim.batch_size  # of this process's batch
        loss = logged = torch.zeros((), device=self._model.device)
        if measured.pair is not None:
            mean = self._pair_loss(measured.pair)
            loss, logged = loss + share * mean, logged + mean.detach()
        for term in measured.terms:
            rows = term.rows
            weight = own.objective.term_unit * self._term_weights[rows.term]
            part = weight * (rows.weight * term.loss).sum() / rows.expected
            # Gradients are summed over the processes; the log guesses the others' part from this one's.
            loss, logged = loss + part, logged + part.detach() * (self._team.size / share)
            self._meter.add(rows.term, term.loss.mean())
        self._meter.add("loss", logged)
        return loss

    def _pair_loss(self, pairs: PairStep) -> Tensor:
        """Mean loss over the pairs of all processes."""
        output = self._loss(pairs, self.step)
        self._meter.add("reference_error", pairs.errors.reference[:, 0].mean())
        for name, value in output.metrics.items():
            self._meter.add(name, value)
        for side, name in enumerate(("chosen_cost", "rejected_cost")):
            self._meter.add_known(name, pairs.cost[:, side])
        return output.per_pair.mean()

    def _report(self, seconds: float, steps: int) -> None:
        total, speed = self._settings.optim.max_train_steps, steps / max(seconds, 1e-9)
        metrics = self._meter.take() | {"lr": learning_rate(self.step - 1, self._settings.optim)}
        self._emit(Progress("train", self.step, total, metrics, speed, (total - self.step) / speed))
        if metrics["loss"] is None:
            self._broken()
        warning = self._gap_watch.see(metrics, self.step)
        if warning:
            self._emit(Warned(warning))

    def _broken(self) -> NoReturn:
        raise ScdpoError(
            f"The loss is no longer a number at step {self.step}: training has come apart. Checkpoints "
            "from before are still good. Start a new run with a lower learning rate (--lr), a lower --beta, "
            "or --precision fp32."
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
                "patience": self.validation.state(),
                "portion": self._portions.size,
                "base": self._base_hash,
                "ema": None if self._ema is None else self._ema.state(),
                "averaged": None if self._ema is None else self._averaged_state(),
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

    def _averaged_state(self) -> dict[str, Tensor]:
        with self.averaged():
            return self._adapter.state()

    def averaged(self) -> AbstractContextManager[None]:
        """The LoRA as it is to be used: its average over the steps, if one is kept."""
        return nullcontext() if self._ema is None else self._ema.applied()
