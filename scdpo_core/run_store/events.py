"""Typed events of a run, and their log with one JSON object a line.

Hosts read these logs, so only the standard library and the schema are imported here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..io.json_schema import SchemaError, from_json

Phase = Literal["check", "score", "load", "cache", "base_images", "reference", "sample", "train"]


@dataclass(frozen=True)
class Started:
    """All checks have passed and a process works on the run; a resumed run's log has several.

    Attributes:
        run: name of the run.
        pid: of the process, so that a door can see whether it is still alive.
        first_step: 0, or the step a resumed run continues from.
        steps: total steps of the run.
        pairs: preference pairs in the folder.
        device: it computes on.
        config_hash: of the settings that decide what is learnt.
        epochs: number of times each pair is used; 0 without pairs.
    """

    kind: ClassVar[str] = "started"
    run: str
    pid: int
    first_step: int
    steps: int
    pairs: int
    device: str
    config_hash: str
    epochs: float = 0.0


@dataclass(frozen=True)
class Progress:
    """Progress of a phase.

    Attributes:
        phase: of the run.
        step: amount done.
        total: amount of the phase.
        metrics: figures, averaged since the last report: loss, preference_loss, u, implicit_accuracy,
            winner_gap, loser_gap, margin, dfm_spread, chosen_cost, rejected_cost, grad_norm, lr, and the mean
            of each single-image term under its name (redirect, keep, keep_empty, keep_text, ...);
            None where a figure is not known or not finite.
        steps_per_second: speed since this process began to train; None before it does.
        seconds_left: an estimate.
    """

    kind: ClassVar[str] = "progress"
    phase: Phase
    step: int
    total: int
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    steps_per_second: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class Sample:
    """An image was generated.

    Attributes:
        step: training steps done; 0 is the base model.
        path: of the image, relative to the run folder.
        prompt: of the image.
        seed: of its noise.
        cost: log-odds of harm by the run's cost model, above 0 is harmful; None without one.
    """

    kind: ClassVar[str] = "sample"
    step: int
    path: str
    prompt: str
    seed: int
    cost: float | None = None


@dataclass(frozen=True)
class Validated:
    """The LoRA was measured on held-out pairs.

    Attributes:
        step: training steps done.
        pairs: number of held-out pairs.
        metrics: accuracy (share of pairs whose chosen image it prefers more than the base model does), u,
            winner_gap and loser_gap (error minus the base model's).
    """

    kind: ClassVar[str] = "validated"
    step: int
    pairs: int
    metrics: Mapping[str, float | None]


@dataclass(frozen=True)
class Estimated:
    """Expected memory and time of the training, before it begins.

    Attributes:
        memory: bytes at its peak, on the device.
        available: bytes that the device has free; None where that is not known.
        seconds: of all steps; None where it is not known.
    """

    kind: ClassVar[str] = "estimated"
    memory: int
    available: int | None
    seconds: float | None


@dataclass(frozen=True)
class Saved:
    """A file is complete on disk.

    Attributes:
        step: training steps in it.
        path: relative to the run folder.
        what: 'checkpoint' to resume from, 'lora' or 'cost' (a cost model) to use, 'report' to read,
            'curves' to look at.
    """

    kind: ClassVar[str] = "saved"
    step: int
    path: str
    what: Literal["checkpoint", "lora", "cost", "report", "curves"]


@dataclass(frozen=True)
class Warned:
    """A warning; the work continues."""

    kind: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True)
class Failed:
    """The run has failed; its last checkpoint, if any, is still good."""

    kind: ClassVar[str] = "failed"
    message: str


@dataclass(frozen=True)
class Done:
    """The run has ended without an error.

    Attributes:
        reason: 'finished', or 'stopped' after a stop request.
        step: training steps in the LoRA.
        path: the LoRA, relative to the run folder; '' when it was stopped before the first step.
        seconds: since this process began.
    """

    kind: ClassVar[str] = "done"
    reason: Literal["finished", "stopped"]
    step: int
    path: str
    seconds: float


Event = Started | Progress | Sample | Validated | Estimated | Saved | Warned | Failed | Done
KINDS: Mapping[str, type[Event]] = {
    event.kind: event
    for event in (Started, Progress, Sample, Validated, Estimated, Saved, Warned, Failed, Done)
}


_LATEST = 1e11  # the year 5138: sums with a line's time stay finite


@dataclass(frozen=True)
class _Head:
    """Fields of every line."""

    time: float
    event: str


@dataclass(frozen=True)
class Record:
    """An event and when it happened, in seconds since 1970."""

    time: float
    event: Event


class EventLog:
    """A file that events are appended to, one line each, without buffering."""

    def __init__(self, path: Path) -> None:
        """Append to `path`, which is created with the first event."""
        self.path = path

    def __call__(self, event: Event) -> None:
        """Append an event.

        Raises:
            OSError: the file cannot be written to.
        """
        values = {key: _json_safe(value) for key, value in dataclasses.asdict(event).items()}
        line = json.dumps({"time": round(time.time(), 3), "event": event.kind, **values}, ensure_ascii=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as stream:
            # A process that was killed in the middle of a line must not spoil the next one as well.
            torn = stream.tell() > 0 and stream.seek(-1, 2) >= 0 and stream.read(1) != b"\n"
            # Bytes of a file name that are not UTF-8 are escaped.
            text = line.encode("utf-8", "backslashreplace")
            stream.write((b"\n" if torn else b"") + text + b"\n")


def _json_safe(value: Any) -> Any:
    """Replace NaN and infinity by None, since JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    return value


def read_events(path: Path) -> Iterator[Record]:
    """Yield the events of a log, oldest first; skips what is half-written or of a newer version."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            record = parse(line)
            if record is not None:
                yield record


def parse(line: str) -> Record | None:
    """Parse a line of a log; None if it is half-written, damaged or of a newer version."""
    try:
        values = json.loads(line)
        head = from_json(values, _Head)
        if head.event not in KINDS or not 0 <= head.time < _LATEST:
            return None
        return Record(head.time, from_json(values, KINDS[head.event]))
    except (SchemaError, ValueError, RecursionError):
        return None


def last_run(path: Path) -> list[Record]:
    """Return the events since the last process started work on the run; all of them if none did."""
    records = list(read_events(path))
    starts = [index for index, record in enumerate(records) if isinstance(record.event, Started)]
    return records[starts[-1] :] if starts else records
