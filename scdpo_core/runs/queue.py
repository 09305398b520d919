"""One training at a time, and those that wait for it, shared by every door that uses the same runs root.

Three files in the root: queue.lock, held for the moment of a change alone; active.json, the run that is
worked on and its process, which counts no longer once that process is gone; queue.json, who waits.
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
            f"The run '{active.name}' is being trained. Wait until it has ended, stop it, or queue this one."
        )
        self.active = active


@dataclass(frozen=True)
class Waiting:
    """A run that waits for its turn.

    Attributes:
        folder: the run folder.
        resume: go on from its newest checkpoint.
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
    """Who is worked on, and who waits, next one first."""

    active: Path | None
    waiting: tuple[Waiting, ...]


class Queue:
    """The queue of a runs root. Every method may be called by several threads and processes at once."""

    def __init__(self, root: Path, begin: Callable[..., Child] = start) -> None:
        """The queue in `root`, which is made when it is first needed; run folders may lie anywhere.

        Args:
            root: a folder that all doors on this machine share.
            begin: starts a run, with the signature of `launch.start`.
        """
        self.root = root.absolute()
        self._start = begin

    def view(self) -> QueueView:
        """How the queue stands."""
        with self._alone():
            return QueueView(self._active(), tuple(self._read()))

    def add(self, folder: Path, *, resume: bool = False) -> int:
        """Let a run wait for its turn; one that waits already keeps its place.

        Returns:
            How many wait before it.

        Raises:
            ScdpoError: there is no job in the folder.
            BusyError: this very run is being trained.
        """
        folder = folder.absolute()
        if not (folder / names.JOB).is_file():
            raise ScdpoError(f"There is no job in {folder}: {names.JOB} is missing.")
        with self._alone():
            if self._active() == folder or Child(folder).process is not None:
                raise BusyError(folder)
            waiting = self._read()
            places = [entry.folder for entry in waiting]
            if folder in places:
                place = places.index(folder)
                waiting[place] = Waiting(folder, resume)
            else:
                place = len(waiting)
                waiting.append(Waiting(folder, resume))
            self._write(waiting)
            write_text(folder / names.QUEUED, "")
            return place

    def remove(self, folder: Path) -> bool:
        """Take a waiting run out of the queue; False if it does not wait."""
        folder = folder.absolute()
        with self._alone():
            waiting = self._read()
            left = [entry for entry in waiting if entry.folder != folder]
            self._write(left)
            (folder / names.QUEUED).unlink(missing_ok=True)
            return len(left) < len(waiting)

    def move(self, folder: Path, place: int) -> bool:
        """Let a waiting run be the one with `place` others before it; False if it does not wait."""
        folder = folder.absolute()
        with self._alone():
            waiting = self._read()
            own = next((entry for entry in waiting if entry.folder == folder), None)
            if own is None:
                return False
            waiting.remove(own)
            waiting.insert(max(0, place), own)
            self._write(waiting)
            return True

    def start(self, folder: Path, interpreter: Interpreter, *, resume: bool = False) -> Child:
        """Start a run now. When it is being trained already, that is the answer: a double click does no harm.

        Raises:
            BusyError: another run is being trained; the message says which.
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
        """Start the next run if none is worked on; doors call it whenever they look.

        A run that cannot be started gets the reason into its log, and the one behind it its turn; one whose
        folder is gone is forgotten.

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
        # With the process, so that a run folder that somebody deletes does not free the GPU.
        process = None if launch is None else asdict(launch.process)
        write_json(self.root / ACTIVE, {"run": str(entry.folder), "process": process})
        return child

    def _active(self) -> Path | None:
        """The folder of the run that is worked on."""
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
    """A file of the queue; None if it is not there."""
    try:
        return read_json(path, kind)
    except FileNotFoundError:
        return None
    except SchemaError as error:
        raise ScdpoError(f"The queue's file {path} is damaged ({error}); remove it.") from error
