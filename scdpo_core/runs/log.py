"""Write a trainer's progress to its run folder, and react to the file named 'stop'."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..run_store import folder as names
from ..run_store.events import Done, EventLog, Failed, Phase, Progress, Saved, Started, Warned
from ..run_store.run_lock import RunLock
from ..run_store.stop_request import StopAskedError
from ..types import ScdpoError

_EVERY = 0.5  # seconds between two reports
_TIMED: Mapping[names.Kind, tuple[Phase, ...]] = {
    "lora": ("train",),
    "cost": ("train",),
    "compare": ("sample",),
    "evaluate": ("sample", "score"),
    "pairs": ("sample",),
}
"""The long phases of each kind of run, whose speed gives the time left."""


class Reporter:
    """Writes the events of one process."""

    def __init__(self, folder: Path, kind: names.Kind, stop_in: Path | None = None) -> None:
        """Report into the run folder `folder` of work of that kind.

        Args:
            folder: that is locked and gets the log.
            kind: of the run.
            stop_in: a folder whose file named 'stop' counts as well, for processes that share the work.
        """
        self.folder, self._kind = folder, kind
        self._stops = [directory / names.STOP for directory in (folder, stop_in) if directory is not None]
        self._log = EventLog(folder / names.EVENTS)
        self._began, self._last_report = time.monotonic(), 0.0
        self._phase: Phase | None = None
        self._phase_began, self._phase_first = self._began, 0
        self._steps = 0

    def started(self, steps: int, examples: int, device: str) -> None:
        """Report that all checks have passed."""
        self._steps = steps
        self._log(Started(self.folder.name, os.getpid(), 0, steps, examples, device, ""))

    def progress(self, phase: Phase, done: int, total: int, loss: float | None = None) -> None:
        """Report at most every half second; `loss` is the held-out one, while training.

        Raises:
            StopAskedError: a stop was requested.
        """
        if any(path.exists() for path in self._stops):
            raise StopAskedError
        now = time.monotonic()
        if phase != self._phase:
            # Work of an earlier process does not count for this one's speed.
            self._phase, self._phase_began, self._phase_first = phase, now, done
        elif done < total and now - self._last_report < _EVERY:
            return
        self._last_report = now
        newly_done = done - self._phase_first
        speed = (
            newly_done / max(now - self._phase_began, 1e-9)
            if newly_done > 0 and phase in _TIMED[self._kind]
            else None
        )
        left = (total - done) / speed if speed else None
        self._log(Progress(phase, done, total, {} if loss is None else {"loss": loss}, speed, left))

    def warned(self, message: str) -> None:
        """Report a warning; the work continues."""
        self._log(Warned(message))

    def finished(self, step: int, result: Path, report: Path | None = None) -> None:
        """Report that the result is complete on disk."""
        if report is not None:
            self._log(Saved(step, os.path.relpath(report, self.folder), "report"))
        path = os.path.relpath(result, self.folder)
        self._log(Saved(step, path, "cost"))
        self._log(Done("finished", step, path, self._seconds()))

    def reported(self, step: int, report: Path) -> None:
        """Report the end of work whose report is its only result."""
        self._log(Saved(step, os.path.relpath(report, self.folder), "report"))
        self._log(Done("finished", step, "", self._seconds()))

    @contextmanager
    def last_words(self) -> Iterator[None]:
        """Lock the run folder and log how the block ends; a requested stop is no error.

        Raises:
            ScdpoError: the folder is of another kind of run, or another process works in it;
                nothing is written then.
        """
        names.check_kind(self.folder, self._kind)
        self.folder.mkdir(parents=True, exist_ok=True)
        with RunLock(self.folder, "run folder") as lock:
            lock.take()
            if not (self.folder / names.KIND).exists():
                names.write_kind(self.folder, self._kind)
            with self._end_in_log():
                yield

    @contextmanager
    def _end_in_log(self) -> Iterator[None]:
        try:
            yield
        except StopAskedError:
            (self.folder / names.STOP).unlink(missing_ok=True)
            self._log(Done("stopped", 0, "", self._seconds()))
        except ScdpoError as error:
            self._log(Failed(str(error)))
            raise
        except KeyboardInterrupt:
            self._log(Done("stopped", 0, "", self._seconds()))
            raise
        except BaseException as error:
            # Imported late: it needs torch, which not every run does.
            from ..errors import explain

            self._log(Failed(explain(error) or f"Unexpected error: {type(error).__name__}: {error}"))
            raise

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)
