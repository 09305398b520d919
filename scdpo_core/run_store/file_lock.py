"""File locks between threads and processes; the system releases the lock of a process that dies.

Not filelock, which cannot tell a check from a holder, and whose older versions in hosts cannot be
interrupted while they wait.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


@contextmanager
def exclusive(path: Path, check: Callable[[], None] | None = None) -> Iterator[None]:
    """Wait for a file's lock, and hold it until the block ends.

    Args:
        path: of the lock; created if missing.
        check: called several times a second while waiting; an exception from it ends the wait.

    Raises:
        OSError: the file cannot be written, or (on Windows, without `check`) the lock is held for more than
            ten seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if check is not None:
            while not try_exclusive(handle):
                check()
                time.sleep(0.2)
        elif sys.platform == "win32":
            msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def try_exclusive(handle: int) -> bool:
    """Lock an open file until the handle is closed or the process dies; False if another handle has it.

    Raises:
        OSError: the disk does not support locks.
    """
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True


def only_checked(handle: int) -> bool:
    """Return whether `try_exclusive` fails only because of `held` in another process; False on Windows.

    Raises:
        OSError: the disk does not support locks.
    """
    if sys.platform == "win32":
        return False
    try:
        # `held` takes a shared lock, a holder an exclusive one.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(handle, fcntl.LOCK_UN)
    return True


def is_locked(path: Path) -> bool | None:
    """Return whether a file is locked with `try_exclusive`; None if that cannot be determined."""
    try:
        handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    except OSError:
        return None
    try:
        if sys.platform == "win32":
            return not try_exclusive(handle)
        # Shared, so that two simultaneous checks do not take each other for a holder.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
