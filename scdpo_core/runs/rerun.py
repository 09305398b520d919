"""What it means to ask for the same run once more: doors whose users press the same button twice."""

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
"""'begin' a new run or one that has nothing yet, 'go on' from its last checkpoint, 'watch' the process that
works on it already, or nothing, for it is 'done'."""

ASKED = "asked.toml"  # what was asked for, before the trainer adds all other settings to job.toml


@dataclass(frozen=True)
class Request:
    """A run that is asked for.

    Attributes:
        folder: the run folder.
        text: settings that make it the same run; inputs whose content matters are named by their hash.
        result: file that a finished run has.
        write: writes job.toml, also over that of a run that has left nothing.
        has_results: whether the folder holds something that must not be overwritten.
    """

    folder: Path
    text: str
    result: Path
    write: Callable[[], object]
    has_results: Callable[[], bool]


def prepare(request: Request) -> Next:
    """Make a run folder ready; a run of that name goes on only if it is the very same.

    Returns:
        What is to be done with the run folder.

    Raises:
        ScdpoError: what is wrong with the settings, or the name belongs to another run.
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
            f"There is a run '{folder.name}' already, with other settings or other images ({folder}). "
            "Choose another output name; or give it the settings that it had, to go on with it."
        )
    # It has come to nothing yet, so nothing is lost.
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
