"""Stop requests: from the caller, or by a file named 'stop' in the run folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from .folder import RunFolder, launch_of
from .run_lock import is_ours


class StopAskedError(Exception):
    """A stop was requested."""


class StopRequest:
    """The stop requests to one process, from the moment it reads its settings.

    A file that exists when this process starts was meant for an earlier one, unless a door started this
    process: the door removes old requests first. A file in the folder of a finished run is ignored.

    Attributes:
        refused: whether the folder holds results and `resume` was not requested.
    """

    def __init__(self, folder: RunFolder | None, resume: bool, asked: Callable[[], bool]) -> None:
        """Note an existing file.

        Args:
            folder: of the run; it need not exist yet. None if unknown.
            resume: whether an interrupted run is to continue.
            asked: returns whether the caller requests a stop.
        """
        self._asked = asked
        self.refused = folder is not None and folder.has_results() and not resume
        self._file = None if folder is None or self.refused else folder.stop
        launch = None if folder is None else launch_of(folder.path)
        self._old = None if launch is not None and is_ours(launch.process) else _mark(self._file)

    def asked(self) -> bool:
        """Return whether a stop is requested."""
        return self._asked() or self._file_is_new()

    def clear_stale(self) -> None:
        """Remove a request to an earlier process, once the folder is locked."""
        if self._file is not None and self._old is not None and _mark(self._file) == self._old:
            self._file.unlink(missing_ok=True)

    def acknowledge(self) -> None:
        """Remove the request to this process, which is exiting."""
        if self._file is not None and self._file_is_new():
            self._file.unlink(missing_ok=True)

    def _file_is_new(self) -> bool:
        mark = _mark(self._file)
        return mark is not None and mark != self._old


def listener(report: Callable[[int, int], None], leave: Callable[[], bool]) -> Callable[[int, int], None]:
    """Make a progress function that reports at most every half second and stops the work if requested.

    Args:
        report: called with the amount done and the total.
        leave: returns whether a stop is requested; then `StopAskedError` is raised.
    """
    last = 0.0

    def update(done: int, total: int) -> None:
        nonlocal last
        if leave():
            raise StopAskedError
        if done == total or time.monotonic() - last > 0.5:
            last = time.monotonic()
            report(done, total)

    return update


def _mark(path: Path | None) -> tuple[int, int] | None:
    """Return a fingerprint that tells a file from a later one of the same name; None if there is none."""
    try:
        status = None if path is None else path.stat()
    except OSError:
        return None
    return None if status is None else (status.st_mtime_ns, status.st_ino)
