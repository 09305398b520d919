"""What a trainer needs to be followed in a run folder: its log, and its ear for the file named 'stop'."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..run_store import folder as names
from ..run_store.events import Done, EventLog, Failed, Phase, Progress, Saved, Started, Warned
from ..run_store.run_lock import RunLock
from ..types import ScdpoError

_EVERY = 0.5  # seconds between two reports
_TIMED: Mapping[names.Kind, tuple[Phase, ...]] = {
    "lora": ("train",),
    "cost": ("train",),
    "compare": ("sample",),
    "evaluate": ("sample", "score"),
    "pairs": ("sample",),
}
"""The phases of each kind of work that take long: how fast they are says when they end."""


class StopAskedError(Exception):
    """Somebody asked the trainer to leave."""


class Reporter:
    """Writes the events of one process."""

    def __init__(self, folder: Path, kind: names.Kind, stop_in: Path | None = None) -> None:
        """Report into the run folder `folder` of work of that kind.

        Args:
            folder: that is locked and gets the log.
            kind: of the work.
            stop_in: a folder whose file named 'stop' counts as well, for processes that share the work.
        """
        self.folder, self._kind = folder, kind
        self._stops = [place / names.STOP for place in (folder, stop_in) if place is not None]
        self._log = EventLog(folder / names.EVENTS)
        self._began, self._told = time.monotonic(), 0.0
        self._phase: Phase | None = None
        self._phase_began, self._phase_first = self._began, 0
        self._steps = 0

    def started(self, steps: int, examples: int, device: str) -> None:
        """All checks are passed."""
        self._steps = steps
        self._log(Started(self.folder.name, os.getpid(), 0, steps, examples, device, ""))

    def progress(self, phase: Phase, done: int, total: int, loss: float | None = None) -> None:
        """Report at most every half second; `loss` is the held-out one, while training.

        Raises:
            StopAskedError: somebody asked to leave.
        """
        if any(path.exists() for path in self._stops):
            raise StopAskedError
        now = time.monotonic()
        if phase != self._phase:
            # What an earlier process did says nothing of how fast this one is.
            self._phase, self._phase_began, self._phase_first = phase, now, done
        elif done < total and now - self._told < _EVERY:
            return
        self._told = now
        new = done - self._phase_first
        speed = new / max(now - self._phase_began, 1e-9) if new > 0 and phase in _TIMED[self._kind] else None
        left = (total - done) / speed if speed else None
        self._log(Progress(phase, done, total, {} if loss is None else {"loss": loss}, speed, left))

    def warned(self, message: str) -> None:
        """Something is odd, but the work goes on."""
        self._log(Warned(message))

    def finished(self, step: int, result: Path, report: Path | None = None) -> None:
        """The result is complete on disk."""
        if report is not None:
            self._log(Saved(step, os.path.relpath(report, self.folder), "report"))
        path = os.path.relpath(result, self.folder)
        self._log(Saved(step, path, "cost"))
        self._log(Done("finished", step, path, self._seconds()))

    def reported(self, step: int, report: Path) -> None:
        """The work is done and its report complete on disk; there is no other result."""
        self._log(Saved(step, os.path.relpath(report, self.folder), "report"))
        self._log(Done("finished", step, "", self._seconds()))

    @contextmanager
    def last_words(self) -> Iterator[None]:
        """Whatever ends the work goes into the log; a stop that was asked for is no error.

        Raises:
            ScdpoError: the folder is that of another kind of run, or another process is at work in it;
                nothing was written then.
        """
        names.check_kind(self.folder, self._kind)
        self.folder.mkdir(parents=True, exist_ok=True)
        with RunLock(self.folder, "run folder") as hold:
            hold.take()
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
            # Late: it needs torch, which not all that is reported of does.
            from ..errors import explain

            self._log(Failed(explain(error) or f"Unexpected error: {type(error).__name__}: {error}"))
            raise

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)
