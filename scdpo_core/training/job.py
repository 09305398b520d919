"""A whole training job, from a preference folder to a LoRA file. Doors start it and show its events."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..config import TrainSettings, config_hash, identity, to_toml
from ..families import family_of
from ..families.base import LoadedModel
from ..files import write_json, write_text
from ..lora.file import save_lora
from ..preferences.batches import BatchStream
from ..preferences.cache import PairCache, build_cache
from ..preferences.relabel import unscored
from ..runs.folder import launch_of
from ..runs.process import look
from ..types import CachedPair, LabelledPair, LoraFile, PreferencePair, ScdpoError
from . import checkpoint
from .checks import check_run, load_options, resolve_device, resolve_dtype
from .events import Done, Event, EventLog, Failed, Phase, Progress, Saved, Started, Warned, read_events
from .failures import explain
from .labelling import label_pairs
from .loop import Outcome, Trainer
from .plots import draw_curves
from .provenance import categories, dataset_hash, facts
from .run_folder import RunFolder
from .samples import Sampler, choose_prompts, preview

if TYPE_CHECKING:
    from ..lora.adapter import LoraAdapter

_SAVE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class JobResult:
    """What a job leaves.

    Attributes:
        outcome: how training ended.
        lora: the finished file; None when it was stopped before the first step.
        folder: the run folder.
    """

    outcome: Outcome
    lora: LoraFile | None
    folder: Path


class _StopError(Exception):
    """Somebody asked to stop before training began."""


def run_job(
    settings: TrainSettings,
    *,
    resume: bool = False,
    listen: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> JobResult:
    """Check, score, relabel, encode, train and save.

    The run folder then holds job.toml (the settings in force), events.jsonl, checkpoints/, samples/,
    relabel.json (when costs were asked for), curves.png and NAME.safetensors with NAME.json and NAME.png.

    Args:
        settings: of the run.
        resume: go on from the newest checkpoint in the run folder.
        listen: is told every event as it happens; they also go into events.jsonl.
        should_stop: asked often. When it says yes, or a file named 'stop' appears in the run folder,
            the job saves what it has and ends without error.

    Raises:
        ScdpoError: something the artist can do something about; the message says what.
    """
    job = _Job(settings, resume, listen, should_stop)
    with job.failures():
        return job.run()


class _Job:
    """The state that the steps of a job share."""

    def __init__(
        self,
        settings: TrainSettings,
        resume: bool,
        listen: Callable[[Event], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.settings, self.resume = settings, resume
        self._listen, self._should_stop = listen, should_stop
        self._began = time.monotonic()
        self._log: EventLog | None = None
        self._facts: dict[str, object] = {}
        out = settings.output.output
        # Until the checks have passed, nobody knows whether the folder is ours: a refused run must not
        # write into the log of a finished one, nor leave a folder behind.
        if out is not None and out.is_dir() and (resume or not RunFolder(out).has_results()):
            self._log = EventLog(RunFolder(out).events)

    def emit(self, event: Event) -> None:
        if self._log is not None:
            self._log(event)
        self._listen(event)

    def run(self) -> JobResult:
        settings = self.settings
        folder, pairs = check_run(
            settings,
            self.resume,
            notice=lambda problem: self.emit(Warned(f"{problem.path}: {problem.what}")),
            progress=self._progress("check"),
        )
        self.folder = folder
        state = self._claim(folder, len(pairs))
        self.device = resolve_device(settings.model.device)
        try:
            labelled = self._label(pairs)
            model = self._load()
            cached = self._encode(labelled, model)
            adapter = self._attach(model)
            sampler = self._sampler(model, pairs)
            if state is None:
                sampler.draw(0)
        except _StopError:
            return self._end(Outcome("stopped", 0 if state is None else state.step), None)
        model.release_encoders()
        outcome = self._train(model, adapter, cached, labelled, sampler, state)
        if outcome.step == 0:
            return self._end(outcome, None)
        pictures = sampler.draw(outcome.step)
        if draw_curves(read_events(folder.events), folder.curves):
            self.emit(Saved(outcome.step, folder.curves.name, "curves"))
        told = self._facts | {"train_steps": outcome.step, "train_pairs": len(cached)}
        lora = save_lora(
            folder.lora,
            adapter.state(),
            family="micro" if model.name == "micro" else model.family,
            rank=settings.lora.rank,
            alpha=settings.lora.effective_alpha,
            facts=told,
            dtype=_SAVE_DTYPES[settings.lora.save_dtype],
            description=f"Safety LoRA for {model.name}, trained on {len(cached)} preference pairs.",
            preview=preview(pictures),
        )
        self.emit(Saved(outcome.step, folder.lora.name, "lora"))
        return self._end(outcome, lora)

    def _claim(self, folder: RunFolder, pairs: int) -> checkpoint.Checkpoint | None:
        """Make the folder ours; the checkpoint to go on from, if there is one."""
        folder.path.mkdir(parents=True, exist_ok=True)
        self._log = EventLog(folder.events)
        state, damaged = checkpoint.latest(folder.checkpoints) if self.resume else (None, [])
        if state is not None:
            checkpoint.check_same_run(state, identity(self.settings))
        if self.resume:
            launch, us = launch_of(folder.path), look(os.getpid())
            # A door has removed what asked an earlier process to leave; what is there now asks this one.
            if launch is None or us is None or launch.process != us[0]:
                folder.stop.unlink(missing_ok=True)
        for path in damaged:
            self.emit(Warned(f"The checkpoint {path.name} is damaged; an older one is used."))
        if self.resume and state is None:
            self.emit(Warned("The run was interrupted before its first checkpoint; it begins again."))
        folder.sweep()
        write_text(folder.job, to_toml(self.settings))
        device = str(resolve_device(self.settings.model.device))
        steps, first = self.settings.optim.max_train_steps, 0 if state is None else state.step
        started = Started(folder.name, os.getpid(), first, steps, pairs, device, config_hash(self.settings))
        self.emit(started)
        return state

    def _label(self, pairs: Sequence[PreferencePair]) -> list[LabelledPair]:
        if self.settings.data.cost_model == "none":
            return unscored(pairs)
        labelling = label_pairs(pairs, self.settings.data, str(self.device), self._progress("score"))
        self._facts |= {"cost_model": labelling.scorer, "cost_model_hash": labelling.scorer_hash}
        write_json(self.folder.relabel, {"scorer": labelling.scorer, **asdict(labelling.report)})
        self.emit(Saved(0, self.folder.relabel.name, "report"))
        if not labelling.pairs:
            raise ScdpoError(
                "The cost model left no pair to train on: all of them are near ties, or both pictures are "
                f"harmful. {self.folder.relabel} says why for each. Lower --tie, use --both-unsafe order, or "
                "train without a cost model (--cost-model none)."
            )
        return labelling.pairs

    def _load(self) -> LoadedModel:
        self._progress("load")(0, 1)
        own = self.settings.model
        dtype = resolve_dtype(own.precision, self.device)
        model = family_of(own.family, own.base).load(own.base, self.device, dtype, load_options(own))
        model.latent_shape(self.settings.data.size)
        if own.gradient_checkpointing:
            model.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        self._progress("load")(1, 1)
        return model

    def _encode(self, labelled: Sequence[LabelledPair], model: LoadedModel) -> list[CachedPair]:
        data = self.settings.data
        cache = PairCache(data.cache or self.folder.cache)
        return build_cache(labelled, model, data.size, cache, self._progress("cache"))

    def _attach(self, model: LoadedModel) -> LoraAdapter:
        # Here, since peft takes seconds to import and a typing error should not wait for it.
        from ..lora.adapter import attach

        own = self.settings.lora
        return attach(
            model.denoiser,
            rank=own.rank,
            alpha=own.effective_alpha,
            targets=own.targets,
            dropout=own.dropout,
            seed=self.settings.optim.seed,
        )

    def _sampler(self, model: LoadedModel, pairs: Sequence[PreferencePair]) -> Sampler:
        own = self.settings.sampling
        prompts = list(own.sample_prompts) or choose_prompts(pairs, own.samples)
        return Sampler(
            model, prompts if own.samples else [], own, self.settings.data.size, self.folder.path, self.emit
        )

    def _train(
        self,
        model: LoadedModel,
        adapter: LoraAdapter,
        cached: Sequence[CachedPair],
        labelled: Sequence[LabelledPair],
        sampler: Sampler,
        state: checkpoint.Checkpoint | None,
    ) -> Outcome:
        settings = self.settings
        batches = BatchStream(
            cached,
            labelled,
            settings.optim.batch_size,
            settings.optim.seed,
            model.device,
            torch.float32,
            settings.data.benign_share,
        )
        dataset = dataset_hash(cached, labelled)
        self._facts |= facts(settings, model) | {
            "dataset_hash": dataset,
            "categories": categories(labelled),
        }

        def sample(step: int) -> None:
            sampler.draw(step)
            model.release_encoders()

        trainer = Trainer(
            model,
            adapter,
            batches,
            settings,
            self.folder.checkpoints,
            emit=self.emit,
            should_stop=self._stop_asked,
            on_sample=sample,
            dataset_hash=dataset,
        )
        if state is not None:
            trainer.resume(state)
        return trainer.run()

    def _end(self, outcome: Outcome, lora: LoraFile | None) -> JobResult:
        self.folder.stop.unlink(missing_ok=True)
        path = "" if lora is None else lora.path.name
        self.emit(Done(outcome.reason, outcome.step, path, round(time.monotonic() - self._began, 3)))
        return JobResult(outcome, lora, self.folder.path)

    def _stop_asked(self) -> bool:
        return self._should_stop() or self.folder.stop.exists()

    def _progress(self, phase: Phase) -> Callable[[int, int], None]:
        """A listener that reports at most every half second, and leaves when somebody asks to stop."""
        last = 0.0

        def report(done: int, total: int) -> None:
            nonlocal last
            if phase != "check" and self._stop_asked():
                raise _StopError
            if done == total or time.monotonic() - last > 0.5:
                last = time.monotonic()
                self.emit(Progress(phase, done, total))

        return report

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turn what went wrong into a sentence, and into the last event of the log."""
        try:
            yield
        except BaseException as error:
            sentence = explain(error)
            self._last_words(sentence or f"Unexpected error: {type(error).__name__}: {error}")
            if sentence is None or isinstance(error, ScdpoError):
                raise
            raise ScdpoError(sentence) from error

    def _last_words(self, message: str) -> None:
        try:
            self.emit(Failed(message))
        except OSError:
            # The log is on the same full disk; the caller still gets the message.
            self._listen(Failed(message))
