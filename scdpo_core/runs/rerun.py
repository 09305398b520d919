"""What it means to ask for the same run once more: doors whose users press the same button twice."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..io.files import write_text
from ..run_store import folder as names
from ..run_store.state import WORKING, state_of
from ..types import ScdpoError
from .jobs import Job, text_of, write

Next = Literal["begin", "go on", "watch", "done"]
"""'begin' a new run or one that has nothing yet, 'go on' from its last checkpoint, 'watch' the process that
works on it already, or nothing, for it is 'done'."""

ASKED = "asked.toml"  # what was asked for, before the trainer adds all other settings to job.toml


def prepare(job: Job, stamp: str) -> Next:
    """Make the run folder of a job ready; a run of that name goes on only if it is the very same.

    Args:
        job: what is asked for.
        stamp: changes with the images that it learns from; see `preferences.summary.stamp`.

    Returns:
        What is to be done with the run folder `job.folder`.

    Raises:
        ScdpoError: what is wrong with the job, or the name belongs to another run.
    """
    folder = job.folder
    if not (folder / names.JOB).exists():
        return _begin(job, stamp)
    state = state_of(folder)
    if _read(folder / ASKED) == _asked(job, stamp):
        if state == "finished":
            return "done" if names.result_of(folder).exists() else _begin(job, stamp)
        if state in WORKING:
            return "watch"
        return "go on" if names.has_results(folder) else "begin"
    if state in WORKING or state == "finished" or names.has_results(folder):
        raise ScdpoError(
            f"There is a run '{folder.name}' already, with other settings or other images ({folder}). "
            "Choose another output name; or give it the settings that it had, to go on with it."
        )
    # It has come to nothing yet, so nothing is lost.
    (folder / names.QUEUED).unlink(missing_ok=True)
    return _begin(job, stamp)


def _begin(job: Job, stamp: str) -> Next:
    write(job)
    write_text(job.folder / ASKED, _asked(job, stamp))
    return "begin"


def _asked(job: Job, stamp: str) -> str:
    return f"# images: {stamp}\n{text_of(job)}"


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
