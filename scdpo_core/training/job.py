"""A whole training job, from a preference folder to a LoRA file. Doors start it and show its events."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.settings import TrainSettings, config_hash
from ..errors import explain
from ..families.base import LoadedModel
from ..families.fingerprint import sampled_fingerprint
from ..preferences.relabel import unscored
from ..preferences.verified_images import KnownImages
from ..run_store import events
from ..run_store.events import Event, EventLog, Phase, read_events
from ..run_store.folder import RunFolder
from ..run_store.run_lock import RunLock
from ..run_store.stop_request import StopAskedError, StopRequest, listener
from ..types import LabelledPair, LoraFile, PreferencePair, ScdpoError
from . import checkpoint
from .base_images import PromptPairs, draw_pairs
from .batch_sources import deal
from .begin import Before, begin_run, lock_run
from .checks import check_run, epochs_of, many_epochs, resolve_device
from .dataset import Dataset, encode, unread_prompts
from .distributed import ProcessGroup, init_group, shutdown_group
from .estimate import estimate
from .labels import label_pairs, sample_scorer, share_labels
from .loading import load_base, make_ready
from .loop import Outcome, Trainer
from .lora_metadata import facts, sample_costs
from .plots import draw_curves
from .samples import Sampler, choose_prompts, preview
from .saving import JobResult, LoraWriter, choose_result, lora_writer
from .term_data import RunTerms, drawing_of, prepare_terms
from .tracking import Tracking, start_tracking

if TYPE_CHECKING:
    from ..lora.adapter import LoraAdapter


def run_job(
    settings: TrainSettings,
    *,
    resume: bool = False,
    listen: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    unasked: Sequence[TrainSettings] | None = None,
) -> JobResult:
    """Check, score, relabel, encode, train and save; alone or with the processes that accelerate launched.

    The run folder then holds job.toml (the settings in force), events.jsonl, checkpoints/, samples/,
    relabel.json (when costs were asked for), curves.png and NAME.safetensors with NAME.json and NAME.png.

    Args:
        settings: of the run.
        resume: go on from the newest checkpoint in the run folder.
        listen: is told every event as it happens; they also go into events.jsonl. In a team of processes
            only the first one's is.
        should_stop: asked often. When it says yes, or a file named 'stop' appears in the run folder,
            the job saves what it has and ends without error.
        unasked: settings that nobody gave, see `requirements.without_effect`; None where nobody knows what
            was given, and nothing is refused for having no effect.

    Raises:
        ScdpoError: something the artist can do something about; the message says what.
    """
    team = init_group(settings.model.device)
    with RunLock(settings.output.output or Path()) as lock:
        job = _Job(settings, resume, listen, should_stop, unasked, team, lock)
        with job.failures():
            result = job.run()
    shutdown_group(team)
    return result


class _Job:
    """The state that the steps of a job share."""

    def __init__(
        self,
        settings: TrainSettings,
        resume: bool,
        listen: Callable[[Event], None],
        should_stop: Callable[[], bool],
        unasked: Sequence[TrainSettings] | None,
        team: ProcessGroup,
        lock: RunLock,
    ) -> None:
        self.settings, self.resume, self.team, self._lock = settings, resume, team, lock
        self._unasked = [settings] if unasked is None else unasked
        self._listen, self._began = listen, time.monotonic()
        self._log: EventLog | None = None
        self._tracking: Tracking | None = None
        self._before: Before | None = None
        self._writer: LoraWriter
        self._facts: dict[str, object] = {}
        self._network = ""
        out = settings.output.output
        # Without an output the checks refuse the run, unless somebody asks to stop before they have ended.
        self.folder = RunFolder(out or Path())
        self._stop = StopRequest(None if out is None else self.folder, resume, should_stop)
        if out is not None:
            self._log = lock_run(self.folder, lock, team, write=not self._stop.refused)

    def emit(self, event: Event) -> None:
        if self.team.rank:
            return
        if self._log is not None:
            self._log(event)
        if self._tracking is not None:
            self._tracking(event)
        self._listen(event)

    def _warn(self, sentence: str) -> None:
        self.emit(events.Warned(sentence))

    def run(self) -> JobResult:
        settings = self.settings
        cache = settings.data.cache or self.folder.cache
        known = KnownImages(None if settings.data.cache_in == "ram" else cache / "images.json")
        try:
            folder, pairs, drawn = check_run(
                settings,
                self.resume,
                notice=lambda problem: self.emit(events.Warned(f"{problem.path}: {problem.what}")),
                progress=self._progress("check"),
                unasked=self._unasked,
                known=known,
            )
        except StopAskedError:
            return self._end(Outcome("stopped", self.folder.reached), None)
        self.device = self.team.device or resolve_device(settings.model.device)
        state = self._begin(folder, len(pairs))
        if self.team.rank == 0:
            known.write()
            self._tracking = start_tracking(settings.output.track, folder.path, self.emit)
        try:
            # Pairs of prompts alone have no images to score until the base model has drawn them.
            model = None if drawn is None else self._draw_pairs(drawn)
            labelled = self._label(pairs)
            model = model or self._load()
            for sentence in unread_prompts(labelled, model):
                self._warn(sentence)
            progress = self._progress("cache")
            data = encode(labelled, model, settings, cache, self.team, progress, self._warn)
            terms = prepare_terms(settings, data, model, cache, self._progress("base_images"), self._warn)
            adapter = self._attach(model)
            sampler = self._sampler(model, pairs)
            if state is None:
                sampler.draw(0, self._progress("sample"))
            model.release_encoders()
            trainer = self._trainer(model, adapter, data, sampler, state, terms)
        except StopAskedError:
            return self._end(Outcome("stopped", 0 if state is None else state.step), None)
        outcome = trainer.run()
        if outcome.step == 0:
            return self._end(outcome, None)
        best = choose_result(trainer, self.settings.validation.result, outcome.step, self._writer, self.emit)
        with nullcontext() if best else trainer.averaged():
            if best is not None:
                adapter.load_state(best.adapter)
            shown = sampler if outcome.reason != "stopped" else None
            lora = self._finish(adapter, shown, best.step if best else outcome.step)
        return self._end(outcome, lora)

    def _finish(self, adapter: LoraAdapter, sampler: Sampler | None, step: int) -> LoraFile | None:
        """Draw the last samples and the curves, and write the LoRA; all but the first process only draw.

        Without `sampler` nothing is drawn: whoever asked to stop waits for us, and samples may take minutes.
        """
        folder, drawn = self.folder, preview([])
        with suppress(StopAskedError):
            if sampler is not None:
                drawn = preview(sampler.draw(step, self._progress("sample")))
        if self.team.rank:
            return None
        records = list(read_events(folder.events))
        if draw_curves(records, folder.curves):
            self.emit(events.Saved(step, folder.curves.name, "curves"))
        costs = sample_costs(records, step)
        lora = self._writer.write(folder.lora, adapter.state(), step, costs, drawn)
        self.emit(events.Saved(step, folder.lora.name, "lora"))
        return lora

    def _begin(self, folder: RunFolder, pairs: int) -> checkpoint.Checkpoint | None:
        """Make the folder ours; the checkpoint to go on from, if there is one."""
        self._before = Before(folder) if self.resume and self.team.rank == 0 else None
        state, notes = begin_run(folder, self.settings, self.resume, self._lock, self.team)
        self._stop.clear_stale()
        self._log = EventLog(folder.events)
        steps, first = self.settings.optim.max_train_steps, 0 if state is None else state.step
        device = str(self.device) if self.team.size == 1 else f"{self.team.size} x {self.device.type}"
        epochs, digest = epochs_of(self.settings, self.team.size, pairs), config_hash(self.settings)
        pid, shown = os.getpid(), round(epochs, 1)
        self.emit(events.Started(folder.name, pid, first, steps, pairs, device, digest, shown))
        for note in [*notes, *many_epochs(epochs, pairs)]:
            self._warn(note)
        return state

    def _label(self, pairs: Sequence[PreferencePair]) -> list[LabelledPair]:
        if self.settings.data.cost_model == "none":
            return unscored(pairs)
        return share_labels(pairs, self._score, self.team)

    def _score(self, pairs: Sequence[PreferencePair]) -> list[LabelledPair]:
        data, progress = self.settings.data, self._progress("score")
        labelling = label_pairs(pairs, data, str(self.device), progress, self.folder.costs)
        self._facts |= {"cost_model": labelling.scorer, "cost_model_hash": labelling.scorer_hash}
        labelling.write(self.folder.relabel)
        self.emit(events.Saved(0, self.folder.relabel.name, "report"))
        if labelling.changed:
            self._warn(f"{labelling.summary} {self.folder.relabel.name} says which and why.")
        return labelling.pairs

    def _load(self) -> LoadedModel:
        self._progress("load")(0, 1)
        model = load_base(self.settings, self.device, self.team)
        self._facts["base_hash"] = sampled_fingerprint(model.denoiser)
        if self.settings.objective.reference_draws:
            self._network = model.denoiser_id()
        self._progress("load")(1, 1)
        return model

    def _draw_pairs(self, drawn: PromptPairs) -> LoadedModel:
        model, progress, how = self._load(), self._progress("base_images"), drawing_of(self.settings)
        draw_pairs(model, drawn.pairs, drawn.seeds, how, drawn.folder, model.denoiser_id(), progress)
        return model

    def _attach(self, model: LoadedModel) -> LoraAdapter:
        # Here, since peft takes seconds to import and a typing error should not wait for it.
        from .adapters import attach_lora

        adapter = attach_lora(model, self.settings.lora, self.settings.optim.seed)
        make_ready(model, adapter, self.settings.model, self.team)
        return adapter

    def _sampler(self, model: LoadedModel, pairs: Sequence[PreferencePair]) -> Sampler:
        team, own, folder = self.team, self.settings.sampling, self.folder.path
        prompts = list(own.sample_prompts) or choose_prompts(pairs, own.samples)
        draws, writes = own.samples > 0 and (team.rank == 0 or team.sharded), team.rank == 0
        scorer = sample_scorer(self.settings.data) if draws and writes else None
        shown, place = prompts if draws else [], folder if writes else None
        return Sampler(model, shown, own, self.settings.data.size, place, self.emit, scorer)

    def _trainer(
        self,
        model: LoadedModel,
        adapter: LoraAdapter,
        data: Dataset,
        sampler: Sampler,
        state: checkpoint.Checkpoint | None,
        terms: RunTerms,
    ) -> Trainer:
        """The loop, where it is to go on."""
        from .adapters import encode_prompts_with_grad

        settings, team = self.settings, self.team
        team.assert_equal(data.hash, "What the preference folder holds")
        dataset_facts = {"dataset_hash": data.hash, "categories": data.categories}
        weights = {"term_weights": dict(terms.weights)} if terms.weights else {}
        self._facts |= facts(settings, model, adapter.kind) | dataset_facts | weights
        pairs = len(set(data.trained))
        self._writer = lora_writer(settings, model, adapter, self._facts, pairs, team.rank == 0)

        def sample(step: int) -> None:
            with suppress(StopAskedError):  # the loop hears it too, after its next step
                sampler.draw(step, self._progress("sample"))
            model.release_encoders()

        stream = data.stream(settings, model.device, team)
        feed = deal(
            settings,
            model,
            adapter,
            stream,
            keys=data.keys,
            network=self._network,
            folder=settings.data.cache or self.folder.cache,
            team=team,
            progress=self._progress("reference"),
            emit=self.emit,
            terms=terms.source(settings, model, team),
            empty=data.empty,
        )
        trainer = Trainer(
            model,
            adapter,
            feed,
            settings,
            self.folder.checkpoints,
            emit=self.emit,
            should_stop=self._stop.asked,
            on_sample=sample,
            encode_live=encode_prompts_with_grad(model, settings.lora),
            term_weights=terms.weights,
            on_save=lambda step: self._writer.keep(adapter.state(), step, self.emit),
            held_out=data.held_out(settings, model.device),
            dataset_hash=data.hash,
            base_hash=str(self._facts["base_hash"]),
            team=team,
        )
        self._writer.check(adapter.state())
        if state is not None:
            trainer.resume(state)
        self._writer.remember()
        for event in estimate(settings, model, adapter, stream.batch(0), trainer, team):
            self.emit(event)
        return trainer

    def _end(self, outcome: Outcome, lora: LoraFile | None) -> JobResult:
        if self.team.rank == 0:
            self._stop.acknowledge()
            path = "" if lora is None else lora.path.name
            seconds = round(time.monotonic() - self._began, 3)
            self.emit(events.Done(outcome.reason, outcome.step, path, seconds))
        return JobResult(outcome, lora, self.folder.path)

    def _progress(self, phase: Phase) -> Callable[[int, int], None]:
        # A process must not leave its team alone: together they stop at the first step.
        leave = self._stop.asked if self.team.size == 1 else bool
        return listener(lambda done, total: self.emit(events.Progress(phase, done, total)), leave)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turn what went wrong into a sentence, and into the last event of the log."""
        try:
            yield
        except BaseException as error:
            sentence = explain(error)
            if isinstance(error, checkpoint.OtherRunError) and self._before is not None:
                self._before.restore()
                self._log = None
            self._last_words(sentence or f"Unexpected error: {type(error).__name__}: {error}")
            if sentence is None or isinstance(error, ScdpoError):
                raise
            raise ScdpoError(sentence) from error

    def _last_words(self, message: str) -> None:
        try:
            self.emit(events.Failed(message))
        except OSError:
            # The log is on the same full disk; the caller still gets the message.
            self._listen(events.Failed(message))
