"""Making a run folder ours and nobody else's, and finding out where a resumed run goes on."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..config.settings import TrainSettings, to_toml
from ..io.files import write_bytes, write_text
from ..run_store.events import EventLog
from ..run_store.folder import RunFolder, launch_of, size
from ..run_store.run_lock import RunLock, is_ours
from ..types import ScdpoError
from . import checkpoint
from .distributed import ProcessGroup, identity_of


def lock_run(folder: RunFolder, lock: RunLock, team: ProcessGroup, *, write: bool) -> EventLog | None:
    """Keep other processes out of a folder that is there; its log, if we may write there already.

    Until the checks have passed, nobody knows whether the folder is ours: a refused run must not write into
    the log of one that has results, nor leave a folder behind. A door's process tells the door in any case,
    which has asked it to work there.

    Args:
        folder: of the run.
        lock: on the folder.
        team: its first process keeps others out; all of them must come here.
        write: see `RunLock.take`.

    Raises:
        ScdpoError: another process is at work there. Nothing was written then.
    """
    _occupy(lock, team, write=write)
    launch = launch_of(folder.path)
    free = not folder.has_results() or (launch is not None and is_ours(launch.process))
    return EventLog(folder.events) if write and free and os.path.isdir(folder.path) else None


def _occupy(lock: RunLock, team: ProcessGroup, *, write: bool) -> None:
    refusal = ""
    if team.rank == 0:
        try:
            lock.take(write=write)
        except ScdpoError as error:
            refusal = str(error)
    refusal = team.broadcast(refusal)
    if refusal:
        raise ScdpoError(refusal)


def begin_run(
    folder: RunFolder, settings: TrainSettings, resume: bool, lock: RunLock, team: ProcessGroup
) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    """The checkpoint to go on from, if there is one, and sentences for the artist. Then the folder is ours.

    Args:
        folder: of the run.
        settings: of the run; they become its job.toml.
        resume: whether an interrupted run is to go on.
        lock: on the folder.
        team: its first process writes, all of them read.

    Raises:
        ScdpoError: the checkpoint was made with other settings, processes do not see the same one, or
            another process has come into the folder since we looked.
    """
    state, damaged = checkpoint.latest(folder.checkpoints) if resume else (None, [])
    if state is not None:
        checkpoint.check_same_run(state, identity_of(settings, team))
    team.assert_equal(0 if state is None else state.step, "The newest checkpoint")
    if team.rank == 0:
        folder.path.mkdir(parents=True, exist_ok=True)
    _occupy(lock, team, write=True)
    if team.rank:
        return state, []
    notes = [f"The checkpoint {path.name} is damaged; an older one is used." for path in damaged]
    if resume and state is None:
        notes.append("The run was interrupted before its first checkpoint; it begins again.")
    folder.sweep()
    write_text(folder.job, to_toml(settings))
    return state, notes


class Before:
    """How the log and the settings of a run stood before a process went on with it."""

    def __init__(self, folder: RunFolder) -> None:
        """Remember the folder as it is."""
        self._events, self._length = folder.events, size(folder.events)
        self._files = {path: _content(path) for path in (folder.job, folder.relabel)}

    def restore(self) -> None:
        """Take back what was written since, for this was not the run to go on with."""
        with suppress(OSError):  # then the log says why
            if size(self._events) > self._length:
                os.truncate(self._events, self._length)
            for path, content in self._files.items():
                if content is None:
                    path.unlink(missing_ok=True)
                elif content != _content(path):
                    write_bytes(path, content)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
