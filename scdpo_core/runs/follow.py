"""Read a run's event log while it grows, and sum it up in one value that doors show."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..io.files import inside
from ..run_store import folder as names
from ..run_store.events import (
    Done,
    Estimated,
    Failed,
    Progress,
    Record,
    Sample,
    Saved,
    Started,
    Validated,
    Warned,
    parse,
)
from ..run_store.state import State, last_words, state_of

MOST_POINTS = 512
"""Most points of a curve."""
MOST_SAMPLES = 256
MOST_WARNINGS = 50
_HEAD = 128

Curve = tuple[tuple[int, float], ...]
"""Ascending steps, and the figure at each."""


class EventReader:
    """Reads an event log incrementally."""

    def __init__(self, path: Path) -> None:
        """Begin at the start of `path`, which need not exist yet."""
        self.path = path
        self._offset, self._head = 0, b""

    def new(self) -> tuple[list[Record], bool]:
        """Return the events since the last call, and whether the log was restarted in between.

        A line that is still being written is left for the next call. After a restart the events are those
        of the new log.
        """
        try:
            stream = self.path.open("rb")
        except OSError:
            restarted, self._offset, self._head = self._offset > 0, 0, b""
            return [], restarted
        with stream:
            head = stream.read(_HEAD)
            restarted = not head.startswith(self._head) or names.size(self.path) < self._offset
            if restarted:
                self._offset, self._head = 0, b""
            stream.seek(self._offset)
            complete = stream.read().rpartition(b"\n")
        text = complete[0] + complete[1]
        self._offset += len(text)
        self._head = head[: min(_HEAD, self._offset)]
        records = (parse(line) for line in text.decode("utf-8", "replace").split("\n"))
        return [record for record in records if record is not None], restarted


@dataclass(frozen=True)
class RunView:
    """State of a run and its events so far, as doors show it.

    Attributes:
        run: name of the run.
        state: see `state.State`.
        phase: 'start' while the process starts, then as in `events.Phase`.
        step: amount of the phase done.
        total: amount of the phase; 0 while unknown.
        trained: training steps done, whatever the phase.
        steps: training steps in all; 0 while unknown.
        pairs: preference pairs, or images of a cost model.
        device: it computes on.
        curves: figures of the training by name, see `events.Progress.metrics`, those of held-out pairs as
            held_out_NAME; at most MOST_POINTS each.
        samples: generated images, oldest first, with absolute paths.
        warnings: sentences, oldest first.
        steps_per_second: of the training.
        ends: when the training is expected to end, in seconds since 1970; None while unknown.
        memory: peak bytes it needs on the device; None while unknown.
        available: bytes that were free on the device; None while unknown.
        result: the finished file; None while there is none.
        files: newest other complete file of each type: 'checkpoint', 'report', 'curves'.
        message: why it failed or was interrupted, a sentence for the artist; '' otherwise.
    """

    run: str
    state: State
    phase: str = "start"
    step: int = 0
    total: int = 0
    trained: int = 0
    steps: int = 0
    pairs: int = 0
    device: str = ""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    warnings: tuple[str, ...] = ()
    steps_per_second: float | None = None
    ends: float | None = None
    memory: int | None = None
    available: int | None = None
    result: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    message: str = ""

    def seconds_left(self, now: float | None = None) -> float | None:
        """Return the seconds until `ends`, at least 0; None if unknown or the run is not active."""
        if self.ends is None or self.state not in ("running", "stopping"):
            return None
        return max(0.0, self.ends - (time.time() if now is None else now))

    @property
    def share(self) -> float:
        """Share of the training that is done, 0..1."""
        return self.trained / self.steps if self.steps else 0.0


class Follower:
    """Follows one run. Every call of `view` reads only what is new."""

    def __init__(self, folder: Path) -> None:
        """Follow the run in `folder`."""
        self.folder = folder.absolute()
        self._reader = EventReader(self.folder / names.EVENTS)
        self._view = RunView(self.folder.name, "queued")

    def view(self) -> RunView:
        """Read new events and return the run's state.

        Raises:
            ScdpoError: the folder holds no run (any more).
        """
        # Before the log, which then is complete if the process is gone.
        state = state_of(self.folder)
        records, restarted = self._reader.new()
        view = RunView(self.folder.name, state) if restarted else self._view
        for record in records:
            view = after(view, record, self.folder)
        self._view = replace(
            view, state=state, message=last_words(self.folder) if state in _ENDED_BADLY else ""
        )
        return self._view


_ENDED_BADLY = ("failed", "interrupted")


def after(view: RunView, record: Record, folder: Path) -> RunView:
    """Apply one event to a view; state and message do not depend on events alone.

    Files outside the run folder are left out: run folders are shared, and a log can name any path.
    """
    event = record.event
    if isinstance(event, Started):
        return _started(view, event)
    if isinstance(event, Progress):
        return _progressed(view, event, record.time)
    if isinstance(event, Validated):
        figures = {f"held_out_{name}": value for name, value in event.metrics.items()}
        return replace(view, curves=_with(view.curves, event.step, figures))
    if isinstance(event, Estimated):
        ends = None if event.seconds is None else record.time + event.seconds
        return replace(view, ends=ends, memory=event.memory, available=event.available)
    if isinstance(event, Sample):
        image = inside(folder, event.path)
        if image is None:
            return view
        sample_event = replace(event, path=str(image))
        others = tuple(sample for sample in view.samples if sample.path != sample_event.path)
        return replace(view, samples=(*others, sample_event)[-MOST_SAMPLES:])
    if isinstance(event, Saved):
        file = inside(folder, event.path)
        if event.what in ("lora", "cost"):
            return replace(view, result=file)
        return view if file is None else replace(view, files={**view.files, event.what: file})
    if isinstance(event, Warned):
        return replace(view, warnings=(*view.warnings, event.message)[-MOST_WARNINGS:])
    if isinstance(event, Done):
        return replace(view, trained=event.step, ends=None, result=inside(folder, event.path))
    if isinstance(event, Failed):
        return replace(view, ends=None)
    # Other events do not change the view.
    return view


def _started(view: RunView, event: Started) -> RunView:
    """Apply the start of a process; a resumed run drops what came after its checkpoint."""
    first = event.first_step
    started = RunView(event.run, view.state, steps=event.steps, pairs=event.pairs, device=event.device)
    if first == 0:
        return started
    curves = {
        name: tuple(point for point in curve if point[0] <= first) for name, curve in view.curves.items()
    }
    samples = tuple(sample for sample in view.samples if sample.step <= first)
    return replace(
        started, trained=first, curves=curves, samples=samples, warnings=view.warnings, files=view.files
    )


def _progressed(view: RunView, event: Progress, moment: float) -> RunView:
    moved = replace(view, phase=event.phase, step=event.step, total=event.total)
    if event.phase != "train":
        return moved
    curves = _with(view.curves, event.step, event.metrics)
    return replace(
        moved,
        trained=event.step,
        steps=event.total,
        curves=curves,
        steps_per_second=event.steps_per_second,
        ends=None if event.seconds_left is None else moment + event.seconds_left,
    )


def _with(curves: Mapping[str, Curve], step: int, figures: Mapping[str, float | None]) -> Mapping[str, Curve]:
    """Add the figures of one more step to the curves."""
    longer = {
        name: _append(curves.get(name, ()), (step, value))
        for name, value in figures.items()
        if value is not None
    }
    return {**curves, **longer}


def _append(curve: Curve, point: tuple[int, float]) -> Curve:
    """Add a point to a curve; a full curve loses the point whose neighbours are closest."""
    longer = (*curve, point)
    if len(longer) <= MOST_POINTS:
        return longer
    dropped = min(range(1, len(longer) - 1), key=lambda index: longer[index + 1][0] - longer[index - 1][0])
    return longer[:dropped] + longer[dropped + 1 :]
