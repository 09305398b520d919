"""A trainer in a process of its own, which outlives whoever started it."""

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
    """A run and, while there is one, the process that works on it.

    Attributes:
        folder: the run folder, which alone says how things stand.
    """

    folder: Path

    @property
    def name(self) -> str:
        """Of the run."""
        return self.folder.name

    @property
    def state(self) -> State:
        """How it stands; see `state.state_of`."""
        return state_of(self.folder)

    @property
    def process(self) -> ProcessId | None:
        """Who works on it; None if nobody does."""
        return process_of(self.folder)

    @property
    def last_words(self) -> str:
        """Why it failed or was interrupted, in words for the artist; '' otherwise."""
        return last_words(self.folder)

    def stop(self) -> None:
        """Ask the process to finish its step, save and leave; nothing if there is none."""
        if self.process is not None:
            write_text(self.folder / names.STOP, "")

    def kill(self) -> None:
        """End the process and what it has started at once. What it saved before is whole."""
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
            interrupted: asked every time; once it says yes, the run is asked to stop, and the wait goes on.
            tick: called every time; whatever it raises is passed on, and the process is left to work.
            every: seconds between two times.

        Returns:
            How the run stands then.
        """
        asked = False
        while self.process is not None:
            tick()
            if not asked and interrupted():
                asked = True
                self.stop()
            time.sleep(every)
        tick()
        return self.state


def attach(folder: Path) -> Child:
    """The run in a folder, whoever has started it, here or before a restart.

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
        resume: go on from the newest checkpoint. Only a LoRA has one; others begin again.
        trainer: another script than the one for this kind of job.

    Raises:
        ScdpoError: there is no job in the folder, a process already works on it, or the Python cannot be run.
    """
    folder = folder.absolute()
    if not (folder / names.JOB).is_file():
        raise ScdpoError(f"There is no job in {folder}: {names.JOB} is missing.")
    if process_of(folder) is not None:
        raise ScdpoError(f"The run '{folder.name}' is being trained already.")
    kind = names.kind_of(folder)
    script = trainer or ROOT / "trainer" / _SCRIPTS[kind]
    command = [str(interpreter.python), *interpreter.flags, str(script), "--config", str(folder / names.JOB)]
    if kind == "cost":
        command += ["--run", str(folder)]
    elif kind == "lora" and resume:
        command.append("--resume")
    # It was asked of another process.
    (folder / names.STOP).unlink(missing_ok=True)
    events_from, log_from = names.size(folder / names.EVENTS), names.size(folder / names.LOG)
    try:
        process = _spawn(command, folder / names.LOG)
    except OSError as error:
        raise ScdpoError(
            f"The trainer's Python {interpreter.python} cannot be started ({error.strerror or error}). "
            "Set the trainer up again: python install.py --trainer"
        ) from error
    found = look(process.pid)
    # One that has ended already is nobody's, whoever may get its number.
    identity = found[0] if found is not None else ProcessId(process.pid, "gone")
    names.write_launch(folder, names.Launch(identity, events_from, log_from))
    (folder / names.QUEUED).unlink(missing_ok=True)
    # A host that never asks would keep the dead process in the system's table.
    threading.Thread(target=process.wait, name=f"scdpo-{folder.name}", daemon=True).start()
    return Child(folder)


def _spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process that gets neither the host's Ctrl-C nor its end."""
    with log.open("ab") as screen:
        if sys.platform == "win32":
            # With a console of its own, which nobody sees: without any, each process below it would open one.
            flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=subprocess.STDOUT,
                creationflags=flags,
            )
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=screen,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
