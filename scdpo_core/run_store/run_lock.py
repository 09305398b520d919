"""Lock a run folder for one process; the system releases the lock of a process that dies."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

from ..types import ScdpoError
from . import folder as names
from .file_lock import only_checked, try_exclusive
from .process import ProcessId, alive, look
from .state import outcome, process_of

_LOOKS, _MOST_LOOKS, _PAUSE = 4, 200, 0.05


class RunLock:
    """Keeps other processes out of a run folder until a `with` block ends."""

    def __init__(self, folder: Path, flag: str = "--output") -> None:
        """Prepare the lock without taking it.

        Args:
            folder: of the run; it need not exist yet.
            flag: command line flag that names the folder.
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
        """Take the lock; nothing if it is already taken.

        Args:
            write: whether the lock file may be created. If not, only an existing one is locked.

        Raises:
            ScdpoError: another process works in the folder. Nothing is written then.
        """
        if self._handle is not None:
            return
        launch = names.launch_of(self._folder)
        # A process that a door started is recorded at once, even if its trainer takes no lock.
        if launch is not None and alive(launch.process) and not is_ours(launch.process):
            raise self._occupied(launch.process)
        try:
            flags = os.O_RDWR | (os.O_CREAT if write else 0)
            handle = os.open(self._folder / names.HOLD, flags, 0o666)
        except OSError:
            # A read-only folder or a full disk is reported by the next write.
            return
        try:
            free, tries = try_exclusive(handle), 0
            # A check of the lock holds it for a moment, or longer on a busy machine.
            while not free and (tries < _LOOKS or (tries < _MOST_LOOKS and only_checked(handle))):
                time.sleep(_PAUSE)
                free, tries = try_exclusive(handle), tries + 1
        except OSError:
            # Some network disks do not support locks.
            worker = process_of(self._folder)
            free = worker is None or is_ours(worker) or outcome(self._folder) is not None
        if not free:
            os.close(handle)
            raise self._occupied(process_of(self._folder))
        self._handle = handle

    def _occupied(self, process: ProcessId | None) -> ScdpoError:
        # A process that still checks its images has not written its PID yet.
        number = "" if process is None else f" (process {process.pid})"
        return ScdpoError(
            f"Another process{number} is working in {self._folder}. Wait until it has ended, stop it from "
            f"the page or with a file named '{names.STOP}' in that folder, or give another {self._flag}."
        )


def is_ours(process: ProcessId) -> bool:
    """Return whether it is this process or its parent (python.exe of an environment on Windows)."""
    return any(found is not None and found[0] == process for found in map(look, (os.getpid(), os.getppid())))
