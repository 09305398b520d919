"""A whole training job, from a preference folder to a LoRA file. Doors start it and show its events."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..config import TrainSettings, config_hash
from ..families.base import LoadedModel
from ..families.source import lora_family
from ..files import write_json
from ..lora.file import save_lora
from ..preferences.relabel import unscored
from ..runs.hold import Hold
from ..types import LabelledPair, LoraFile, PreferencePair, ScdpoError
from . import checkpoint
from .checks import check_run, resolve_device
from .claim import claim, enter
from .dataset import Dataset, encode
from .dealing import deal
from .estimate import estimate
from .events import Done, Event, EventLog, Failed, Phase, Progress, Saved, Started, Warned, read_events
from .failures import explain
from .labelling import from_rows, label_pairs, sample_scorer, to_rows
from .loading import load_base, make_ready
from .loop import Outcome, Trainer
from .plots import draw_curves
from .provenance import facts, sample_costs
from .run_folder import RunFolder
from .samples import Sampler, choose_prompts, preview
from .stopping import Stop, StopAskedError
from .team import Team, assemble, dismiss
from .tracking import Tracking, start_tracking

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


def run_job(
    settings: TrainSettings,
    *,
    resume: bool = False,
    listen: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
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

    Raises:
        ScdpoError: something the artist can do something about; the message says what.
    """
    team = assemble(settings.model.device)
    with Hold(settings.output.output or Path()) as hold:
        job = _Job(settings, resume, listen, should_stop, team, hold)
        with job.failures():
            result = job.run()
    dismiss(team)
    return result


class _Job:
    """The state that the steps of a job share."""

    def __init__(
        self,
        settings: TrainSettings,
        resume: bool,
        listen: Callable[[Event], None],
        should_stop: Callable[[], bool],
        team: Team,
        hold: Hold,
    ) -> None:
        self.settings, self.resume, self.team, self._hold = settings, resume, team, hold
        self._listen, self._began = listen, time.monotonic()
        self._log: EventLog | None = None
        self._tracking: Tracking | None = None
        self._facts: dict[str, object] = {}
        self._network = ""
        out = settings.output.output
        # Without an output the checks refuse the run, unless somebody asks to stop before they have ended.
        self.folder = RunFolder(out or Path())
        self._stop = Stop(None if out is None else self.folder, resume, should_stop)
        if out is not None:
            self._log = enter(self.folder, hold, team, write=not self._stop.refused)

    def emit(self, event: Event) -> None:
        if self.team.rank:
            return
        if self._log is not None:
            self._log(event)
        if self._tracking is not None:
            self._tracking(event)
        self._listen(event)

    def run(self) -> JobResult:
        settings = self.settings
        try:
            folder, pairs = check_run(
                settings,
                self.resume,
                notice=lambda problem: self.emit(Warned(f"{problem.path}: {problem.what}")),
                progress=self._progress("check"),
            )
        except StopAskedError:
            return self._end(Outcome("stopped", self.folder.reached), None)
        self.device = self.team.device or resolve_device(settings.model.device)
        state = self._claim(folder, len(pairs))
        if self.team.rank == 0:
            self._tracking = start_tracking(settings.output.track, folder.path, self.emit)
        try:
            labelled = self._label(pairs)
            model = self._load()
            data = self._encode(labelled, model)
            adapter = self._attach(model)
            sampler = self._sampler(model, pairs)
            if state is None:
                sampler.draw(0, self._progress("sample"))
            model.release_encoders()
            trainer = self._trainer(model, adapter, data, sampler, state)
        except StopAskedError:
            return self._end(Outcome("stopped", 0 if state is None else state.step), None)
        outcome = trainer.run()
        if outcome.step == 0:
            return self._end(outcome, None)
        with trainer.averaged():
            lora = self._finish(model, adapter, sampler, outcome.step, len(data.trained))
        return self._end(outcome, lora)

    def _finish(
        self, model: LoadedModel, adapter: LoraAdapter, sampler: Sampler, step: int, pairs: int
    ) -> LoraFile | None:
        """Draw the last samples and the curves, and write the LoRA; all but the first process only draw."""
        folder, settings = self.folder, self.settings
        pictures = sampler.draw(step)
        if self.team.rank:
            return None
        records = list(read_events(folder.events))
        if draw_curves(records, folder.curves):
            self.emit(Saved(step, folder.curves.name, "curves"))
        lora = save_lora(
            folder.lora,
            adapter.state(),
            family=lora_family(settings.model.base, model.family),
            rank=adapter.rank,
            alpha=settings.lora.effective_alpha,
            facts=self._facts | sample_costs(records, step) | {"train_steps": step, "train_pairs": pairs},
            dtype=_SAVE_DTYPES[settings.lora.save_dtype],
            description=f"Safety LoRA for {model.name}, trained on {pairs} preference pairs.",
            preview=preview(pictures),
        )
        self.emit(Saved(step, folder.lora.name, "lora"))
        return lora

    def _claim(self, folder: RunFolder, pairs: int) -> checkpoint.Checkpoint | None:
        """Make the folder ours; the checkpoint to go on from, if there is one."""
        state, notes = claim(folder, self.settings, self.resume, self._hold, self.team)
        self._stop.forget_old()
        self._log = EventLog(folder.events)
        for note in notes:
            self.emit(Warned(note))
        steps, first = self.settings.optim.max_train_steps, 0 if state is None else state.step
        device = str(self.device) if self.team.size == 1 else f"{self.team.size} x {self.device.type}"
        started = Started(folder.name, os.getpid(), first, steps, pairs, device, config_hash(self.settings))
        self.emit(started)
        return state

    def _label(self, pairs: Sequence[PreferencePair]) -> list[LabelledPair]:
        if self.settings.data.cost_model == "none":
            return unscored(pairs)
        # One process decides: another GPU's rounding could turn a near tie.
        told = self.team.tell(to_rows(self._score(pairs), pairs) if self.team.rank == 0 else [])
        return from_rows(told, pairs)

    def _score(self, pairs: Sequence[PreferencePair]) -> list[LabelledPair]:
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
        model = load_base(self.settings, self.device, self.team)
        if self.settings.objective.reference_draws:
            self._network = model.denoiser_id()
        self._progress("load")(1, 1)
        return model

    def _encode(self, labelled: Sequence[LabelledPair], model: LoadedModel) -> Dataset:
        return encode(labelled, model, self.settings, self.folder.cache, self.team, self._progress("cache"))

    def _attach(self, model: LoadedModel) -> LoraAdapter:
        # Here, since peft takes seconds to import and a typing error should not wait for it.
        from .attaching import attach_lora

        adapter = attach_lora(model, self.settings.lora, self.settings.optim.seed)
        make_ready(model, adapter, self.settings.model, self.team)
        return adapter

    def _sampler(self, model: LoadedModel, pairs: Sequence[PreferencePair]) -> Sampler:
        own = self.settings.sampling
        prompts = list(own.sample_prompts) or choose_prompts(pairs, own.samples)
        draws = own.samples and (self.team.rank == 0 or self.team.lockstep)
        return Sampler(
            model,
            prompts if draws else [],
            own,
            self.settings.data.size,
            self.folder.path if self.team.rank == 0 else None,
            self.emit,
            sample_scorer(self.settings.data) if draws and self.team.rank == 0 else None,
        )

    def _trainer(
        self,
        model: LoadedModel,
        adapter: LoraAdapter,
        data: Dataset,
        sampler: Sampler,
        state: checkpoint.Checkpoint | None,
    ) -> Trainer:
        """The loop, where it is to go on."""
        from .attaching import live_words

        settings, team = self.settings, self.team
        team.agree(data.hash, "What the preference folder holds")
        told: dict[str, object] = {"dataset_hash": data.hash, "categories": data.categories}
        self._facts |= facts(settings, model) | told

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
            words=live_words(model, settings.lora),
            held_out=data.held_out(settings, model.device),
            dataset_hash=data.hash,
            team=team,
        )
        if state is not None:
            trainer.resume(state)
        for event in estimate(settings, model, adapter, stream.batch(0), trainer, team):
            self.emit(event)
        return trainer

    def _end(self, outcome: Outcome, lora: LoraFile | None) -> JobResult:
        if self.team.rank:
            return JobResult(outcome, lora, self.folder.path)
        self._stop.heard()
        path = "" if lora is None else lora.path.name
        self.emit(Done(outcome.reason, outcome.step, path, round(time.monotonic() - self._began, 3)))
        return JobResult(outcome, lora, self.folder.path)

    def _progress(self, phase: Phase) -> Callable[[int, int], None]:
        """A listener that reports at most every half second, and leaves when somebody asks to stop."""
        last = 0.0

        def report(done: int, total: int) -> None:
            nonlocal last
            # A process must not leave its team alone: together they stop at the first step.
            if self.team.size == 1 and self._stop.asked():
                raise StopAskedError
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
