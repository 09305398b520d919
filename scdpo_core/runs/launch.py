"""Start a trainer in a process that outlives the one that started it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..io.files import write_text
from ..run_store import folder as names
from ..run_store.process import ProcessId, alive, end, look
from ..run_store.state import State, last_words, process_of, state_of
from ..types import ScdpoError
from .interpreter import ROOT, Interpreter, environment

_SCRIPTS: dict[names.Kind, str] = {
    "lora": "train_lora.py",
    "cost": "train_cost.py",
    "compare": "compare.py",
    "evaluate": "evaluate.py",
    "pairs": "build_pairs.py",
}


@dataclass(frozen=True)
class Child:
    """A run and its process, if any.

    Attributes:
        folder: the run folder, which holds the whole state.
    """

    folder: Path

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def state(self) -> State:
        """State of the run, see `state.state_of`."""
        return state_of(self.folder)

    @property
    def process(self) -> ProcessId | None:
        """The process that works on it; None if there is none."""
        return process_of(self.folder)

    @property
    def last_words(self) -> str:
        """Why it failed or was interrupted, a sentence for the artist; '' otherwise."""
        return last_words(self.folder)

    def stop(self) -> None:
        """Ask the process, if any, to finish its step, save and exit."""
        if self.process is not None:
            write_text(self.folder / names.STOP, "")

    def kill(self) -> None:
        """Kill the process and its children at once; files it saved before are complete."""
        process = self.process
        if process is not None:
            end(process)
            deadline = time.monotonic() + 10
            while alive(process) and time.monotonic() < deadline:
                time.sleep(0.02)
        (self.folder / names.STOP).unlink(missing_ok=True)

    def wait(
        self,
        interrupted: Callable[[], bool] = lambda: False,
        *,
        tick: Callable[[], None] = lambda: None,
        every: float = 0.25,
    ) -> State:
        """Wait until the process has ended.

        Args:
            interrupted: called every time; once it returns True, the run is asked to stop.
            tick: called every time; an exception from it ends the wait, not the process.
            every: seconds between two checks.

        Returns:
            The state of the run then.
        """
        stop_sent = False
        while self.process is not None:
            tick()
            if not stop_sent and interrupted():
                stop_sent = True
                self.stop()
            time.sleep(every)
        tick()
        return self.state


def attach(folder: Path) -> Child:
    """Return the run in a folder, whichever process started it.

    Raises:
        ScdpoError: there is no run in that folder.
    """
    state_of(folder)
    return Child(folder)


def start(
    folder: Path, interpreter: Interpreter, *, resume: bool = False, trainer: Path | None = None
) -> Child:
    """Start the trainer on a run folder that holds a job. Doors go through `queue.Queue`.

    Args:
        folder: with job.toml, as `jobs.write` makes it.
        interpreter: the Python to train with.
        resume: continue from the newest checkpoint. Only a LoRA has one; others start again.
        trainer: another script than the one for this kind of job.

    Raises:
        ScdpoError: there is no job in the folder, a process already works on it, or the Python cannot be run.
    """
    folder = folder.absolute()
    if not (folder / names.JOB).is_file():
        raise ScdpoError(f"There is no job in {folder}: {names.JOB} is missing.")
    if process_of(folder) is not None:
        raise ScdpoError(f"The run '{folder.name}' is already running.")
    kind = names.kind_of(folder)
    script = trainer or ROOT / "trainer" / _SCRIPTS[kind]
    command = [str(interpreter.python), *interpreter.flags, str(script), "--config", str(folder / names.JOB)]
    if kind == "cost":
        command += ["--run", str(folder)]
    elif kind == "lora" and resume:
        command.append("--resume")
    # A stop request that was meant for another process.
    (folder / names.STOP).unlink(missing_ok=True)
    events_from, log_from = names.size(folder / names.EVENTS), names.size(folder / names.LOG)
    try:
        process = _spawn(command, folder / names.LOG)
    except OSError as error:
        raise ScdpoError(
            f"The trainer's Python {interpreter.python} cannot be started ({error.strerror or error}). "
            "Set the trainer up again: python install.py --trainer"
        ) from error
    identified = look(process.pid)
    # A process that has ended already; its PID may be reused.
    identity = identified[0] if identified is not None else ProcessId(process.pid, "gone")
    names.write_launch(folder, names.Launch(identity, events_from, log_from))
    (folder / names.QUEUED).unlink(missing_ok=True)
    # Reap the process, which would otherwise stay as a zombie of the host.
    threading.Thread(target=process.wait, name=f"scdpo-{folder.name}", daemon=True).start()
    return Child(folder)


def _spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process that is independent of the host's Ctrl-C and exit."""
    with log.open("ab") as output:
        if sys.platform == "win32":
            # With a hidden console: without one, each child process would open its own.
            flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                creationflags=flags,
            )
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
