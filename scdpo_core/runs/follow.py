"""A run's log read while it grows, and everything that a door shows of a run as one value."""

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
"""Points of a curve at most."""
MOST_SAMPLES = 256
MOST_WARNINGS = 50
_HEAD = 128

Curve = tuple[tuple[int, float], ...]
"""Steps, rising, and the figure at each."""


class EventReader:
    """Reads a log of events bit by bit."""

    def __init__(self, path: Path) -> None:
        """Begin at the start of `path`, which need not be there yet."""
        self.path = path
        self._offset, self._head = 0, b""

    def new(self) -> tuple[list[Record], bool]:
        """The events since the last call, and whether the log was begun anew in between.

        A line that is still being written is left for the next call. When it was begun anew, the events
        are those of the new log.
        """
        try:
            stream = self.path.open("rb")
        except OSError:
            anew, self._offset, self._head = self._offset > 0, 0, b""
            return [], anew
        with stream:
            head = stream.read(_HEAD)
            anew = not head.startswith(self._head) or names.size(self.path) < self._offset
            if anew:
                self._offset, self._head = 0, b""
            stream.seek(self._offset)
            whole = stream.read().rpartition(b"\n")
        text = whole[0] + whole[1]
        self._offset += len(text)
        self._head = head[: min(_HEAD, self._offset)]
        records = (parse(line) for line in text.decode("utf-8", "replace").split("\n"))
        return [record for record in records if record is not None], anew


@dataclass(frozen=True)
class RunView:
    """How a run stands and what it has shown so far; doors draw it.

    Attributes:
        run: name of the run.
        state: see `state.State`.
        phase: what is being done: 'start' while the process wakes up, then as in `events.Phase`.
        step: how much of the phase is done.
        total: how much there is; 0 while unknown.
        trained: training steps done, whatever the phase.
        steps: training steps in all; 0 while unknown.
        pairs: preference pairs, or images of a cost model.
        device: where it computes.
        curves: figures of the training by name, see `events.Progress.metrics`, those of held-out pairs as
            held_out_NAME; at most MOST_POINTS each.
        samples: drawn images, oldest first, their paths absolute.
        warnings: sentences, oldest first.
        steps_per_second: of the training.
        ends: when the training is expected to end, in seconds since 1970; None while unknown.
        memory: bytes that it needs of the device at its peak; None while unknown.
        available: bytes that the device had for it; None while unknown.
        result: the finished file; None while there is none.
        files: other complete files by what they are: 'checkpoint', 'report', 'curves'; the newest of each.
        message: why it failed or was interrupted, in words for the artist; '' otherwise.
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
        """Until `ends`, at least 0; None when that is unknown or the run does not work."""
        if self.ends is None or self.state not in ("running", "stopping"):
            return None
        return max(0.0, self.ends - (time.time() if now is None else now))

    @property
    def share(self) -> float:
        """How much of the training is done, 0..1."""
        return self.trained / self.steps if self.steps else 0.0


class Follower:
    """Follows one run. Every call of `view` reads only what is new."""

    def __init__(self, folder: Path) -> None:
        """Follow the run in `folder`."""
        self.folder = folder.absolute()
        self._reader = EventReader(self.folder / names.EVENTS)
        self._view = RunView(self.folder.name, "queued")

    def view(self) -> RunView:
        """How the run stands now.

        Raises:
            ScdpoError: there is no run in the folder (any more).
        """
        # First: the log then has every last word of a process that is gone.
        state = state_of(self.folder)
        records, anew = self._reader.new()
        view = RunView(self.folder.name, state) if anew else self._view
        for record in records:
            view = after(view, record, self.folder)
        self._view = replace(
            view, state=state, message=last_words(self.folder) if state in _ENDED_BADLY else ""
        )
        return self._view


_ENDED_BADLY = ("failed", "interrupted")


def after(view: RunView, record: Record, folder: Path) -> RunView:
    """What a door shows after one more event; state and message are not in the events alone.

    Files outside of the run folder are left out: run folders are passed on, and a log can name anything.
    """
    event = record.event
    if isinstance(event, Started):
        return _begun(view, event)
    if isinstance(event, Progress):
        return _moved(view, event, record.time)
    if isinstance(event, Validated):
        known = {f"held_out_{name}": value for name, value in event.metrics.items()}
        return replace(view, curves=_with(view.curves, event.step, known))
    if isinstance(event, Estimated):
        ends = None if event.seconds is None else record.time + event.seconds
        return replace(view, ends=ends, memory=event.memory, available=event.available)
    if isinstance(event, Sample):
        image = inside(folder, event.path)
        if image is None:
            return view
        drawn = replace(event, path=str(image))
        others = tuple(sample for sample in view.samples if sample.path != drawn.path)
        return replace(view, samples=(*others, drawn)[-MOST_SAMPLES:])
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
    # What else is told says nothing of how the run stands.
    return view


def _begun(view: RunView, event: Started) -> RunView:
    """A resumed run goes on from its checkpoint: what was trained behind it is done once more."""
    first = event.first_step
    fresh = RunView(event.run, view.state, steps=event.steps, pairs=event.pairs, device=event.device)
    if first == 0:
        return fresh
    curves = {
        name: tuple(point for point in curve if point[0] <= first) for name, curve in view.curves.items()
    }
    samples = tuple(sample for sample in view.samples if sample.step <= first)
    return replace(
        fresh, trained=first, curves=curves, samples=samples, warnings=view.warnings, files=view.files
    )


def _moved(view: RunView, event: Progress, moment: float) -> RunView:
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
    """The curves with the figures of one more step."""
    new = {
        name: _longer(curves.get(name, ()), (step, value))
        for name, value in figures.items()
        if value is not None
    }
    return {**curves, **new}


def _longer(curve: Curve, point: tuple[int, float]) -> Curve:
    """A curve with one more point. When it gets too long, the point goes whose neighbours are the closest."""
    longer = (*curve, point)
    if len(longer) <= MOST_POINTS:
        return longer
    gone = min(range(1, len(longer) - 1), key=lambda index: longer[index + 1][0] - longer[index - 1][0])
    return longer[:gone] + longer[gone + 1 :]
