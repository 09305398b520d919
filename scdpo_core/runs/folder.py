"""What a run folder holds for those who start and watch runs: names, and two small records."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..files import write_json
from .process import ProcessId

JOB = "job.toml"  # the settings
EVENTS = "events.jsonl"  # what happened
STOP = "stop"  # a file of this name asks the run to save and leave
QUEUED = "queued"  # a file of this name says that the run waits for its turn
LOG = "child.log"  # what the process wrote on its screen
KIND = "run.json"  # which trainer the settings are for
LAUNCH = "child.json"  # the process that was started last
HOLD = "run.lock"  # empty; whoever works in the folder keeps it locked

Kind = Literal["lora", "cost", "compare"]
"""'compare' trains nothing: it draws with a LoRA at several weights."""
_KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Launch:
    """A process that was started on a run.

    Attributes:
        process: who it is.
        events_from: bytes in the log of events before it.
        log_from: bytes in its screen's log before it.
    """

    process: ProcessId
    events_from: int
    log_from: int


def kind_of(folder: Path) -> Kind:
    """What a run trains; a run of the command line, which leaves no record, trains a LoRA."""
    said = _read(folder / KIND).get("trains")
    return next((kind for kind in _KINDS if kind == said), "lora")


def write_kind(folder: Path, kind: Kind) -> None:
    """Say what a run trains."""
    write_json(folder / KIND, {"trains": kind})


def launch_of(folder: Path) -> Launch | None:
    """The process that was started last; None if none was, or if its record is damaged."""
    values = _read(folder / LAUNCH)
    try:
        process = ProcessId(int(values["process"]["pid"]), str(values["process"]["token"]))
        return Launch(process, int(values["events_from"]), int(values["log_from"]))
    except (KeyError, TypeError, ValueError):
        return None


def write_launch(folder: Path, launch: Launch) -> None:
    """Remember a process that was started."""
    write_json(folder / LAUNCH, asdict(launch))


def size(path: Path) -> int:
    """Bytes in a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def changed(path: Path) -> int:
    """When a file was written last, nanoseconds since 1970; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
