"""Determine the state of a run from its folder alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from ..types import ScdpoError
from . import folder as names
from .events import Done, Event, Failed, Started, parse, read_events
from .file_lock import is_locked
from .process import ProcessId, alive, look

State = Literal["queued", "running", "stopping", "finished", "failed", "stopped", "interrupted"]
"""'stopping': a stop was requested or the process is exiting; 'interrupted': it died without an event."""
WORKING: frozenset[State] = frozenset({"running", "stopping"})
"""States with a live process."""

_TAIL = 64 * 1024
# Clocks may be adjusted; a PID is not reused within two seconds.
_CLOCK = 2.0
_ERROR = re.compile(r"(?:Unexpected error|[\w.]*(?:Error|Exception)|\w+\.py: error): ")


def state_of(folder: Path) -> State:
    """Determine the state of a run.

    Raises:
        ScdpoError: there is no run in that folder.
    """
    last = outcome(folder)
    if process_of(folder) is not None:
        return "stopping" if last is not None or (folder / names.STOP).exists() else "running"
    if (folder / names.QUEUED).exists():
        return "queued"
    if isinstance(last, Done):
        return last.reason
    if isinstance(last, Failed):
        return "failed"
    if (folder / names.LAUNCH).exists() or (folder / names.EVENTS).exists():
        return "failed" if _error_in(_output_of(folder)) else "interrupted"
    if (folder / names.JOB).exists():
        return "queued"
    raise ScdpoError(f"There is no training run in {folder}.")


def process_of(folder: Path) -> ProcessId | None:
    """Return the process that works on a run; None if there is none.

    A run that a door started has a record of its process. For one of the command line the log has the PID:
    the process with that PID is the run's if it is older than that line of the log and the run's lock is
    held. The PID alone is not enough: in a container it is 1, or reused by a process that is as old.
    """
    launch = names.launch_of(folder)
    if launch is not None and alive(launch.process):
        return launch.process
    if is_locked(folder / names.HOLD) is False:
        return None
    last = None
    for record in read_events(folder / names.EVENTS):
        if isinstance(record.event, Started):
            last = (record.event.pid, record.time)
    candidate = look(last[0]) if last is not None else None
    if last is None or candidate is None or candidate[1] > last[1] + _CLOCK:
        return None
    return candidate[0]


def outcome(folder: Path) -> Done | Failed | None:
    """Return how the latest process on a run ended, by its own events; None if there is none (yet)."""
    launch = names.launch_of(folder)
    begin = 0 if launch is None else launch.events_from
    last: Done | Failed | None = None
    for event in _latest(folder / names.EVENTS, begin):
        if isinstance(event, Started):
            last = None
        elif isinstance(event, Done | Failed):
            last = event
    return last


def last_words(folder: Path) -> str:
    """Explain why a run ended, for the artist; '' if there is nothing to explain."""
    state, last = state_of(folder), outcome(folder)
    if state not in ("failed", "interrupted"):
        return ""
    if isinstance(last, Failed):
        return last.message
    lines = _output_of(folder)
    error = _error_in(lines)
    if error.startswith(("ModuleNotFoundError", "ImportError")):
        return (
            f"The trainer's Python lacks a package or has an incompatible one ({error}). "
            "Set the trainer up again: python install.py --trainer"
        )
    if error:
        return error.removeprefix("Error: ")
    output = "".join(f"\n    {line[:300]}" for line in lines[-5:])
    end = f" Its last output:{output}" if output else ""
    return (
        "The training process ended without an error message: it was killed, the computer was switched "
        f"off, or memory ran out. Resume it to continue from its last checkpoint.{end}"
    )


def _latest(path: Path, begin: int) -> list[Event]:
    """Return the last events after `begin` bytes of a log, or of the whole log if it was restarted."""
    total = names.size(path)
    begin = 0 if begin > total else begin
    tail = _TAIL
    while True:
        start = max(begin, total - tail)
        try:
            with path.open("rb") as stream:
                stream.seek(start)
                text = stream.read()
        except OSError:
            return []
        # The list of all problems with a folder may be one very long line.
        if start == begin or b"\n" in text[:-1]:
            break
        tail *= 4
    records = (parse(line) for line in text.decode("utf-8", "replace").split("\n"))
    return [record.event for record in records if record is not None]


def _output_of(folder: Path) -> list[str]:
    """Return the last lines of the latest process's output."""
    launch, path = names.launch_of(folder), folder / names.LOG
    begin, total = 0 if launch is None else launch.log_from, names.size(path)
    try:
        with path.open("rb") as stream:
            stream.seek(max(0 if begin > total else begin, total - _TAIL))
            # Progress bars return to the start of the line.
            lines = re.split(r"[\r\n]+", stream.read().decode("utf-8", "replace"))
    except OSError:
        return []
    return [line.rstrip() for line in lines if line.strip()]


def _error_in(lines: list[str]) -> str:
    """Return the last line that names an error, '' if none of the last 20 does."""
    return next((line for line in reversed(lines[-20:]) if _ERROR.match(line)), "")
