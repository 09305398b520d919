"""Handle Ctrl-C: at start-up, and while a program works."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..telemetry import decline

INTERRUPTED = 130
"""Exit code of a program ended by Ctrl-C, as in shells: 128 + the signal's number."""

_NOTHING_BEGUN = b"Stopped; nothing was begun.\n"


@contextmanager
def waking() -> Iterator[None]:
    """Let Ctrl-C end the process at once inside a block that only imports and reads.

    Telemetry of the imported libraries is switched off first. Nothing has begun that needs cleaning up, and
    an exception in the middle of an import becomes a long traceback, or another error where a compiled
    module passes it on.
    """
    decline()
    in_main_thread = threading.current_thread() is threading.main_thread()
    # A shell makes background processes ignore Ctrl-C.
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
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
    """Turns Ctrl-C, SIGTERM and a closed terminal into a stop request; a second Ctrl-C ends at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Install the handlers; `say` confirms the first signal."""
        self._asked = False
        self._say = say
        # Windows has no SIGHUP.
        names = ("SIGINT", "SIGTERM", "SIGHUP")
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            signal.signal(number, self._handle)

    def asked(self) -> bool:
        """Return whether a stop was requested."""
        return self._asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._asked:
            self._asked = True
            self._say("Finishing this step, then saving. Press Ctrl-C again to quit at once.")
