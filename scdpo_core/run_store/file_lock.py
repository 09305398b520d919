"""One at a time, between threads and processes. The system lets go of the lock of a holder that dies.

filelock does not tell somebody who only looks from a holder, and its older versions, which hosts have, cannot
be interrupted while they wait.
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
    """Wait until nobody else is inside a block for that file, and keep others out until this one ends.

    Args:
        path: of the lock; made if it is missing.
        check: called several times a second while it waits; what it raises ends the wait and is passed on.

    Raises:
        OSError: the file cannot be written, or (on Windows, without `check`) somebody is inside for more than
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
        OSError: the disk knows no locks.
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


def only_looked_at(handle: int) -> bool:
    """Whether `try_exclusive` is refused by somebody who looks (`held`), no holder; always no on Windows.

    Raises:
        OSError: the disk knows no locks.
    """
    if sys.platform == "win32":
        return False
    try:
        # Lookers share the lock with us, a holder does not.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(handle, fcntl.LOCK_UN)
    return True


def held(path: Path) -> bool | None:
    """Whether somebody has locked a file with `try_exclusive`; None if that cannot be known."""
    try:
        handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    except OSError:
        return None
    try:
        if sys.platform == "win32":
            return not try_exclusive(handle)
        # Shared, so that two who ask at once do not take each other for a holder.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
