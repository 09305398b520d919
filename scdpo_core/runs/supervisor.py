"""Work through a queue for a host: lend the graphics card, start runs, clean up after them.

The run folders hold the state and the trainer is a separate process: a restarted host makes a new
supervisor, which finds the run that still works and lends it the card again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ..run_store.file_lock import exclusive
from ..run_store.state import WORKING, State, state_of
from ..types import ScdpoError
from . import interpreter as pythons
from .interpreter import Interpreter
from .launch import attach
from .queue import BusyError, Queue

_LAST_LINES = 4
SUPERVISOR = "supervisor.lock"


def _find(tell: Callable[[str], None]) -> Interpreter:
    return pythons.find() or pythons.prepare(tell)


class Supervisor:
    """One for each host and runs root; safe for several threads."""

    def __init__(
        self,
        root: Path,
        lend: Callable[[str], AbstractContextManager[object]] = nullcontext,
        ended: Callable[[Path, State], None] = lambda folder, state: None,
        *,
        queue: Queue | None = None,
        python: Callable[[Callable[[str], None]], Interpreter] = _find,
        every: float = 0.5,
    ) -> None:
        """Supervise `root`; nothing is started before `wake`.

        Args:
            root: the runs root.
            lend: given a run's name, a block in which the host leaves the graphics card alone.
            ended: called with each run whose process has ended, and its state.
            queue: of that root.
            python: finds or installs the trainer's Python, and reports each step as a line.
            every: seconds between two checks of a run.
        """
        self.root, self.queue = root, queue or Queue(root)
        self._lend, self._ended, self._python, self._every = lend, ended, python, every
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._lines: list[str] = []
        self._trouble = ""

    @property
    def note(self) -> str:
        """Installation progress, or why nothing can be trained; '' otherwise."""
        return self._trouble or "\n".join(self._lines[-_LAST_LINES:])

    def add(self, folder: Path, *, resume: bool = False) -> str:
        """Queue a run; one that waits or runs already stays as it is.

        Returns:
            What happens, a sentence.
        """
        try:
            before = self.queue.add(folder, resume=resume)
        except BusyError:
            return f"'{folder.name}' is already running."
        active = self.queue.view().active
        self.wake()
        # The thread may have started this run already.
        if active is not None and active != folder.absolute():
            others = f" and {before} more" if before else ""
            have = "have" if before else "has"
            return f"'{folder.name}' waits until '{active.name}'{others} {have} ended."
        return f"'{folder.name}' starts."

    def stop(self, folder: Path) -> str:
        """Remove a waiting run from the queue, or ask an active one to save and stop.

        Returns:
            What happens, a sentence.
        """
        if self.queue.remove(folder):
            return f"'{folder.name}' was removed from the queue."
        if state_of(folder) not in WORKING:
            return f"'{folder.name}' is not running."
        attach(folder).stop()
        return f"'{folder.name}' finishes its step, saves and stops."

    def wake(self) -> None:
        """Start working through the queue until it is empty."""
        with self._lock:
            if self._thread is None:
                self._trouble = ""
                self._thread = threading.Thread(target=self._run, name="scdpo-supervisor", daemon=True)
                self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the queue is empty."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _run(self) -> None:
        try:
            # One supervisor per root, also after a reload and with two hosts.
            with exclusive(self.root / SUPERVISOR):
                while self._work():
                    pass
        except Exception as error:
            sentence = str(error) if isinstance(error, ScdpoError) else f"{type(error).__name__}: {error}"
            self._trouble = f"Nothing can be trained: {sentence}"
        finally:
            with self._lock:
                self._thread = None
        # A run may have been added since the last check.
        if not self._trouble and self.queue.view().waiting:
            self.wake()

    def _work(self) -> bool:
        """Start and follow one run; False if there is none."""
        view = self.queue.view()
        if view.active is None and not view.waiting:
            return False
        python = None
        if view.active is None:
            python = self._python(self._lines.append)
            self._lines.clear()
        name = (view.active or view.waiting[0].folder).name
        with self._lend(name):
            folder = view.active
            if python is not None:
                child = self.queue.pump(python)
                folder = None if child is None else child.folder
            if folder is None:
                # Another door started it first, or the waiting run is gone.
                return True
            try:
                state = attach(folder).wait(every=self._every)
            except ScdpoError:
                # The folder was deleted.
                return True
        self._ended(folder, state)
        return True
