"""Decide what happens when a run is requested again, as when a node is queued twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..io.files import write_text
from ..run_store import folder as names
from ..run_store.state import WORKING, state_of
from ..types import ScdpoError

Next = Literal["begin", "go on", "watch", "done"]
"""'begin' a new run or one without results, 'go on' from its last checkpoint, 'watch' the process that
works on it already, or nothing, because it is 'done'."""

ASKED = "asked.toml"  # the request, before the trainer adds all other settings to job.toml


@dataclass(frozen=True)
class Request:
    """A requested run.

    Attributes:
        folder: the run folder.
        text: settings that identify the run; inputs whose content matters are named by their hash.
        result: file that a finished run has.
        write: writes job.toml, replacing that of a run without results.
        has_results: returns whether the folder holds results that must not be overwritten.
    """

    folder: Path
    text: str
    result: Path
    write: Callable[[], object]
    has_results: Callable[[], bool]


def prepare(request: Request) -> Next:
    """Prepare a run folder; an existing run of that name continues only if its settings are the same.

    Returns:
        What to do with the run folder.

    Raises:
        ScdpoError: the settings are wrong, or the name belongs to another run.
    """
    folder = request.folder
    if not (folder / names.JOB).exists():
        return _begin(request)
    state = state_of(folder)
    if _read(folder / ASKED) == request.text:
        if state == "finished":
            return "done" if request.result.exists() else _begin(request)
        if state in WORKING:
            return "watch"
        return "go on" if request.has_results() else "begin"
    if state in WORKING or state == "finished" or request.has_results():
        raise ScdpoError(
            f"A run '{folder.name}' already exists, with other settings or other images ({folder}). "
            "Choose another output name, or restore its settings to continue it."
        )
    # It has no results yet, so nothing is lost.
    (folder / names.QUEUED).unlink(missing_ok=True)
    return _begin(request)


def _begin(request: Request) -> Next:
    request.write()
    write_text(request.folder / ASKED, request.text)
    return "begin"


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
