"""What Ctrl-C means to a program: before it has begun, and while it works."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..telemetry import decline

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C has ended, as shells have it: 128 and the signal's number."""

_NOTHING_BEGUN = b"Stopped; nothing was begun.\n"


@contextmanager
def waking() -> Iterator[None]:
    """A block that only imports and reads what a program needs; Ctrl-C ends the process there.

    What is imported there is told first to send nothing about its user to its makers.

    Nothing has begun that would have to be tidied up, and an exception out of the middle of an import becomes
    a long traceback, or another error where a compiled module passes it on.
    """
    decline()
    ours = threading.current_thread() is threading.main_thread()
    # A shell lets what runs in its background ignore Ctrl-C.
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, _NOTHING_BEGUN)
    os._exit(INTERRUPTED)


class StopSignals:
    """Ctrl-C, SIGTERM and a closed terminal ask to stop; a second Ctrl-C leaves at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Listen from now on; `say` shows that the first one was heard."""
        self._asked = False
        self._say = say
        # Windows knows no closing of the terminal.
        names = ("SIGINT", "SIGTERM", "SIGHUP")
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            signal.signal(number, self._handle)

    def asked(self) -> bool:
        """Whether one has come."""
        return self._asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._asked:
            self._asked = True
            self._say("Finishing this step, then saving. Ctrl-C again leaves at once.")
