"""Whether somebody asks a job to leave: its caller, or a file named 'stop' in its run folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from .folder import RunFolder, launch_of
from .run_lock import is_ours


class StopAskedError(Exception):
    """Somebody asked to stop before training began."""


class StopRequest:
    """What asks one process to leave, from the moment it looks at its settings.

    A file that is there already when this process comes asked an earlier one, unless a door has started us:
    then it has cleared what was there before. One in the folder of a finished run that we may not touch is
    not ours at all.

    Attributes:
        refused: whether the folder holds results that nobody has asked to go on with.
    """

    def __init__(self, folder: RunFolder | None, resume: bool, asked: Callable[[], bool]) -> None:
        """Look at what is there already.

        Args:
            folder: of the run; it need not be there yet. None if nobody has said which.
            resume: whether an interrupted run is to go on.
            asked: what the caller says.
        """
        self._asked = asked
        self.refused = folder is not None and folder.has_results() and not resume
        self._file = None if folder is None or self.refused else folder.stop
        launch = None if folder is None else launch_of(folder.path)
        self._old = None if launch is not None and is_ours(launch.process) else _mark(self._file)

    def asked(self) -> bool:
        """Whether somebody asks."""
        return self._asked() or self._is_told()

    def clear_stale(self) -> None:
        """Remove the file that asked an earlier process, now that the folder is ours."""
        if self._file is not None and self._old is not None and _mark(self._file) == self._old:
            self._file.unlink(missing_ok=True)

    def acknowledge(self) -> None:
        """Remove the file that asked this process: it leaves."""
        if self._file is not None and self._is_told():
            self._file.unlink(missing_ok=True)

    def _is_told(self) -> bool:
        mark = _mark(self._file)
        return mark is not None and mark != self._old


def listener(report: Callable[[int, int], None], leave: Callable[[], bool]) -> Callable[[int, int], None]:
    """What long work tells how far it is: it reports at most every half second, and ends the work if asked.

    Args:
        report: is told how much of how much is done.
        leave: whether somebody asks to stop; then `StopAskedError` is raised.
    """
    last = 0.0

    def told(done: int, total: int) -> None:
        nonlocal last
        if leave():
            raise StopAskedError
        if done == total or time.monotonic() - last > 0.5:
            last = time.monotonic()
            report(done, total)

    return told


def _mark(path: Path | None) -> tuple[int, int] | None:
    """Tells one file of a name from a later one; None if there is none."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_ino)
