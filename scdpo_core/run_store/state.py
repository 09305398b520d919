"""How a run stands, told from its folder alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from ..types import ScdpoError
from . import folder as names
from .events import Done, Event, Failed, Started, parse, read_events
from .file_lock import held
from .process import ProcessId, alive, look

State = Literal["queued", "running", "stopping", "finished", "failed", "stopped", "interrupted"]
"""'stopping' has been asked to leave or is just leaving; 'interrupted' died without saying so."""
WORKING: frozenset[State] = frozenset({"running", "stopping"})
"""A process is there."""

_TAIL = 64 * 1024
# Clocks are set now and then; an old pid is not used again within two seconds.
_CLOCK = 2.0
_ERROR = re.compile(r"(?:Unexpected error|[\w.]*(?:Error|Exception)|\w+\.py: error): ")


def state_of(folder: Path) -> State:
    """How a run stands.

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
        return "failed" if _error(_screen(folder)) else "interrupted"
    if (folder / names.JOB).exists():
        return "queued"
    raise ScdpoError(f"There is no training run in {folder}.")


def process_of(folder: Path) -> ProcessId | None:
    """The process that works on a run; None if none does.

    A run that a door started is known by the record of its process. For one of the command line its log
    has the pid: whoever has that pid now is the run's process if it is older than that line of the log, and
    somebody has the run's lock. The pid alone does not tell: in a container it is 1, or used again by a
    process that is as old.
    """
    launch = names.launch_of(folder)
    if launch is not None and alive(launch.process):
        return launch.process
    if held(folder / names.HOLD) is False:
        return None
    last = None
    for record in read_events(folder / names.EVENTS):
        if isinstance(record.event, Started):
            last = (record.event.pid, record.time)
    found = look(last[0]) if last is not None else None
    if last is None or found is None or found[1] > last[1] + _CLOCK:
        return None
    return found[0]


def outcome(folder: Path) -> Done | Failed | None:
    """How the latest process on a run said that it ended; None if it has said nothing (yet)."""
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
    """Why a run ended, in words for the artist; '' if there is nothing to explain."""
    state, last = state_of(folder), outcome(folder)
    if state not in ("failed", "interrupted"):
        return ""
    if isinstance(last, Failed):
        return last.message
    lines = _screen(folder)
    error = _error(lines)
    if error.startswith(("ModuleNotFoundError", "ImportError")):
        return (
            f"The trainer's Python lacks a package or has an unfit one ({error}). "
            "Set the trainer up again: python install.py --trainer"
        )
    if error:
        return error.removeprefix("Error: ")
    said = "".join(f"\n    {line[:300]}" for line in lines[-5:])
    end = f" The last lines it wrote:{said}" if said else ""
    return (
        "The training process ended without saying why: it was ended from outside, the computer was switched "
        f"off, or its memory did not suffice. Resume it to go on from its last checkpoint.{end}"
    )


def _latest(path: Path, begin: int) -> list[Event]:
    """The last events behind `begin` bytes of a log, or the log's own if it was begun anew."""
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
        # All that is wrong with a folder may be one very long line.
        if start == begin or b"\n" in text[:-1]:
            break
        tail *= 4
    records = (parse(line) for line in text.decode("utf-8", "replace").split("\n"))
    return [record.event for record in records if record is not None]


def _screen(folder: Path) -> list[str]:
    """The last lines that the latest process wrote on its screen."""
    launch, path = names.launch_of(folder), folder / names.LOG
    begin, total = 0 if launch is None else launch.log_from, names.size(path)
    try:
        with path.open("rb") as stream:
            stream.seek(max(0 if begin > total else begin, total - _TAIL))
            # Progress bars go back to the line's start.
            lines = re.split(r"[\r\n]+", stream.read().decode("utf-8", "replace"))
    except OSError:
        return []
    return [line.rstrip() for line in lines if line.strip()]


def _error(lines: list[str]) -> str:
    """The last line that names an error, '' if none of the last ones does."""
    return next((line for line in reversed(lines[-20:]) if _ERROR.match(line)), "")
