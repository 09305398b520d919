"""Queue trainings, one at a time, shared by every door that uses the same runs root.

Three files in the root: queue.lock, held only during a change; active.json, the active run
and its process, ignored once that process has ended; queue.json, the waiting runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ..io.files import write_json, write_text
from ..io.json_schema import SchemaError, T, read_json
from ..run_store import folder as names
from ..run_store.events import EventLog, Failed
from ..run_store.file_lock import exclusive
from ..run_store.process import ProcessId, alive
from ..types import ScdpoError
from .interpreter import Interpreter
from .launch import Child, start

LOCK, ACTIVE, WAITING = "queue.lock", "active.json", "queue.json"


class BusyError(ScdpoError):
    """Another run is being trained.

    Attributes:
        active: its folder.
    """

    def __init__(self, active: Path) -> None:
        super().__init__(
            f"The run '{active.name}' is running. Wait until it has ended, stop it, or queue this one."
        )
        self.active = active


@dataclass(frozen=True)
class Waiting:
    """A waiting run.

    Attributes:
        folder: the run folder.
        resume: continue from its newest checkpoint.
    """

    folder: Path
    resume: bool = False


@dataclass(frozen=True)
class _WaitingEntry:
    run: Path
    resume: bool


@dataclass(frozen=True)
class _WaitingRecord:
    """queue.json."""

    waiting: tuple[_WaitingEntry, ...] = ()


@dataclass(frozen=True)
class _ActiveRecord:
    """active.json."""

    run: Path | None = None
    process: ProcessId | None = None


@dataclass(frozen=True)
class QueueView:
    """The active run, and the waiting ones, next one first."""

    active: Path | None
    waiting: tuple[Waiting, ...]


class Queue:
    """The queue of a runs root; safe for several threads and processes."""

    def __init__(self, root: Path, begin: Callable[..., Child] = start) -> None:
        """Use the queue in `root`, which is created when first needed; run folders may lie anywhere.

        Args:
            root: a folder that all doors on this machine share.
            begin: starts a run, with the signature of `launch.start`.
        """
        self.root = root.absolute()
        self._start = begin

    def view(self) -> QueueView:
        """Return the state of the queue."""
        with self._alone():
            return QueueView(self._active(), tuple(self._read()))

    def add(self, folder: Path, *, resume: bool = False) -> int:
        """Append a run; one that waits already keeps its position.

        Returns:
            The number of runs before it.

        Raises:
            ScdpoError: there is no job in the folder.
            BusyError: this run is running.
        """
        folder = folder.absolute()
        if not (folder / names.JOB).is_file():
            raise ScdpoError(f"There is no job in {folder}: {names.JOB} is missing.")
        with self._alone():
            if self._active() == folder or Child(folder).process is not None:
                raise BusyError(folder)
            waiting = self._read()
            folders = [entry.folder for entry in waiting]
            if folder in folders:
                index = folders.index(folder)
                waiting[index] = Waiting(folder, resume)
            else:
                index = len(waiting)
                waiting.append(Waiting(folder, resume))
            self._write(waiting)
            write_text(folder / names.QUEUED, "")
            return index

    def remove(self, folder: Path) -> bool:
        """Take a waiting run out of the queue; False if it does not wait."""
        folder = folder.absolute()
        with self._alone():
            waiting = self._read()
            remaining = [entry for entry in waiting if entry.folder != folder]
            self._write(remaining)
            (folder / names.QUEUED).unlink(missing_ok=True)
            return len(remaining) < len(waiting)

    def move(self, folder: Path, index: int) -> bool:
        """Move a waiting run to a position from 0; False if it does not wait."""
        folder = folder.absolute()
        with self._alone():
            waiting = self._read()
            moved = next((entry for entry in waiting if entry.folder == folder), None)
            if moved is None:
                return False
            waiting.remove(moved)
            waiting.insert(max(0, index), moved)
            self._write(waiting)
            return True

    def start(self, folder: Path, interpreter: Interpreter, *, resume: bool = False) -> Child:
        """Start a run now; if it is running already, return it, so that a double click does no harm.

        Raises:
            BusyError: another run is running; the message names it.
            ScdpoError: see `launch.start`.
        """
        folder = folder.absolute()
        with self._alone():
            active = self._active()
            if active is not None and active != folder:
                raise BusyError(active)
            if active == folder or Child(folder).process is not None:
                return Child(folder)
            child = self._begin(Waiting(folder, resume), interpreter)
            self._write([entry for entry in self._read() if entry.folder != folder])
            return child

    def pump(self, interpreter: Interpreter) -> Child | None:
        """Start the next run if none is running; doors call it at every refresh.

        If a run cannot be started, its log gets the reason and the next one is tried; one whose
        folder is gone is dropped.

        Returns:
            The run that was started, None if none was.
        """
        with self._alone():
            if self._active() is not None:
                return None
            waiting = self._read()
            while waiting:
                entry = waiting.pop(0)
                self._write(waiting)
                if not (entry.folder / names.JOB).is_file() or Child(entry.folder).process is not None:
                    continue
                try:
                    return self._begin(entry, interpreter)
                except ScdpoError as error:
                    (entry.folder / names.QUEUED).unlink(missing_ok=True)
                    EventLog(entry.folder / names.EVENTS)(Failed(str(error)))
            return None

    def _begin(self, entry: Waiting, interpreter: Interpreter) -> Child:
        child = self._start(entry.folder, interpreter, resume=entry.resume)
        launch = names.launch_of(entry.folder)
        # With the process, so that deleting a run folder does not count as freeing the GPU.
        process = None if launch is None else asdict(launch.process)
        write_json(self.root / ACTIVE, {"run": str(entry.folder), "process": process})
        return child

    def _active(self) -> Path | None:
        """Return the folder of the active run."""
        record = _read(self.root / ACTIVE, _ActiveRecord)
        if record is None or record.run is None:
            return None
        if (record.process is not None and alive(record.process)) or Child(record.run).process is not None:
            return record.run
        return None

    def _read(self) -> list[Waiting]:
        record = _read(self.root / WAITING, _WaitingRecord)
        return [] if record is None else [Waiting(entry.run, entry.resume) for entry in record.waiting]

    def _write(self, waiting: Sequence[Waiting]) -> None:
        entries = [{"run": str(entry.folder), "resume": entry.resume} for entry in waiting]
        write_json(self.root / WAITING, {"waiting": entries})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            with exclusive(self.root / LOCK):
                yield
        except OSError as error:
            raise ScdpoError(
                f"The queue of runs in {self.root} cannot be used ({error.strerror or error}). "
                "Check that the folder can be written to and that its disk is not full."
            ) from error


def _read(path: Path, kind: type[T]) -> T | None:
    """Read a file of the queue; None if there is none."""
    try:
        return read_json(path, kind)
    except FileNotFoundError:
        return None
    except SchemaError as error:
        raise ScdpoError(f"The queue's file {path} is damaged ({error}); remove it.") from error
