"""One process at a time in a run folder. The system ends the hold of a process that dies, however it dies."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

from ..types import ScdpoError
from . import folder as names
from .file_lock import only_looked_at, try_exclusive
from .process import ProcessId, alive, look
from .state import outcome, process_of

_LOOKS, _MOST_LOOKS, _PAUSE = 4, 200, 0.05


class RunLock:
    """What keeps others out of a run folder until a `with` block ends."""

    def __init__(self, folder: Path, flag: str = "--output") -> None:
        """Hold nothing yet.

        Args:
            folder: of the run; it need not be there yet.
            flag: what names the folder on the command line.
        """
        self._folder, self._flag = folder, flag
        self._handle: int | None = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def take(self, *, write: bool = True) -> None:
        """Keep others out; nothing if we do already.

        Args:
            write: whether the folder is ours to write to if nobody is at work in it. If not, this only looks.

        Raises:
            ScdpoError: another process is at work in the folder. Nothing was written then.
        """
        if self._handle is not None:
            return
        launch = names.launch_of(self._folder)
        # A door's process has a record from its birth on, also one whose trainer takes no hold.
        if launch is not None and alive(launch.process) and not is_ours(launch.process):
            raise self._occupied(launch.process)
        try:
            flags = os.O_RDWR | (os.O_CREAT if write else 0)
            handle = os.open(self._folder / names.HOLD, flags, 0o666)
        except OSError:
            # Who may not write here, or has no disk left, is told so by what comes next.
            return
        try:
            free, tries = try_exclusive(handle), 0
            # Whoever looks whether a run works has the lock for a moment, or for longer on a busy machine.
            while not free and (tries < _LOOKS or (tries < _MOST_LOOKS and only_looked_at(handle))):
                time.sleep(_PAUSE)
                free, tries = try_exclusive(handle), tries + 1
        except OSError:
            # Some network disks know no locks.
            worker = process_of(self._folder)
            free = worker is None or is_ours(worker) or outcome(self._folder) is not None
        if not free:
            os.close(handle)
            raise self._occupied(process_of(self._folder))
        self._handle = handle

    def _occupied(self, process: ProcessId | None) -> ScdpoError:
        # One that still looks at its images has not written its number down.
        number = "" if process is None else f" (process {process.pid})"
        return ScdpoError(
            f"Another process{number} is at work in {self._folder}. Wait until it has ended, stop it from "
            f"the page or with a file named '{names.STOP}' in that folder, or give another {self._flag}."
        )


def is_ours(process: ProcessId) -> bool:
    """Whether it is this process or the one that started it: python.exe of an environment on Windows."""
    return any(found is not None and found[0] == process for found in map(look, (os.getpid(), os.getppid())))
