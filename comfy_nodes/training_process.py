"""Run a training in its own process from a node: free memory, wait, show, stop, fetch the result."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy.model_management import InterruptProcessingException
from comfy_api.latest import io

from ..scdpo_core.reports.raster_charts import training_board
from ..scdpo_core.runs import install_result, interpreter, jobs, rerun
from ..scdpo_core.runs.follow import Follower, RunView
from ..scdpo_core.runs.jobs import Job
from ..scdpo_core.runs.launch import Child
from ..scdpo_core.runs.queue import BusyError, Queue
from ..scdpo_core.runs.summary import now
from ..scdpo_core.types import ScdpoError
from .shared import say

RUNS = "safety_runs"
"""The folder of runs, in ComfyUI's output folder, so that its images can be viewed there."""

_PREVIEW = 1024
_POLL = 0.25  # seconds between two checks of the run
_DRAW = 2.0  # seconds between two previews, at least


def runs_root() -> Path:
    """Return the folder of runs."""
    return Path(folder_paths.get_output_directory()) / RUNS


def train(cls: type[io.ComfyNode], job: Job, stamp: str, kind: str) -> tuple[RunView, Path]:
    """Train, continue a training, or only fetch a finished result.

    Args:
        cls: the running node.
        job: what to train.
        stamp: fingerprint of the training images.
        kind: ComfyUI's name of the models folder for the result.

    Returns:
        The run's state, and the result in that folder.

    Raises:
        ScdpoError: the settings are wrong, or the training failed.
        InterruptProcessingException: the user has interrupted; what was trained is saved.
    """
    models, *others = map(Path, folder_paths.get_folder_paths(kind))
    if problem := install_result.name_taken(job.folder, models):
        raise ScdpoError(problem)
    view = run(cls, jobs.request(job, stamp))
    if view.result is None:
        raise ScdpoError(view.message or f"The training ended early: {now(view)}")
    installed = install_result.install(job.folder, models, others=others)
    # Menus are made from this list.
    folder_paths.filename_list_cache.pop(kind, None)
    return view, installed


def run(cls: type[io.ComfyNode], request: rerun.Request) -> RunView:
    """Start or continue a run in its own process, or only read a finished one.

    Args:
        cls: the running node.
        request: what to do.

    Raises:
        ScdpoError: the settings are wrong, or the run failed.
        InterruptProcessingException: the user has interrupted; finished work is saved.
    """
    todo = rerun.prepare(request)
    if todo != "done":
        python = _python(cls)
        _free_memory()
        queue = Queue(request.folder.parent)
        child = Child(request.folder) if todo == "watch" else _turn(cls, queue, request.folder, python, todo)
        _follow(cls, child)
    view = Follower(request.folder).view()
    if view.state != "finished":
        raise ScdpoError(view.message or f"The run ended early: {now(view)}")
    return view


def _python(cls: type[io.ComfyNode]) -> interpreter.Interpreter:
    """Return the Python that trains, installed on first use."""

    def tell(line: str) -> None:
        say(cls, f"Installing the trainer, once; this takes some minutes. Interrupt to cancel.\n{line}")

    check = comfy.model_management.throw_exception_if_processing_interrupted
    return interpreter.find() or interpreter.prepare(tell, check=check)


def _free_memory() -> None:
    """Free the GPU for the training; ComfyUI reloads its models when it needs them."""
    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.soft_empty_cache()


def _turn(
    cls: type[io.ComfyNode],
    queue: Queue,
    folder: Path,
    python: interpreter.Interpreter,
    todo: rerun.Next,
) -> Child:
    """Start the run, or wait in the queue: one run at a time."""
    resume = todo == "go on"
    try:
        return queue.start(folder, python, resume=resume)
    except BusyError as busy:
        other = busy.active.name
    queue.add(folder, resume=resume)
    say(cls, f"{other} is being trained; {folder.name} starts when it has ended. Interrupt to cancel.")
    child = Child(folder)
    try:
        while child.state == "queued":
            comfy.model_management.throw_exception_if_processing_interrupted()
            queue.pump(python)
            time.sleep(_POLL)
    except InterruptProcessingException:
        queue.remove(folder)
        raise
    return child


def _follow(cls: type[io.ComfyNode], child: Child) -> None:
    """Show a run on the node until its process has ended.

    Raises:
        InterruptProcessingException: the user has interrupted; the process has saved and stopped.
    """
    display = Display(Follower(child.folder), lambda text: say(cls, text))
    child.wait(display.interrupted, tick=display.tick, every=_POLL)
    if display.asked:
        # This also clears ComfyUI's interrupt flag, which may be clear already.
        comfy.model_management.throw_exception_if_processing_interrupted()
        raise InterruptProcessingException()


class Display:
    """Shows a run on its node.

    Attributes:
        asked: whether the user has interrupted.
    """

    def __init__(self, follower: Follower, tell: Callable[[str], None]) -> None:
        """Show the run of `follower`; text goes to `tell`."""
        self.asked = False
        self._follower, self._tell = follower, tell
        self._bar = comfy.utils.ProgressBar(1)
        self._last_text, self._drawn, self._drawn_at = "", (0, 0), 0.0

    def interrupted(self) -> bool:
        """Return whether the user has interrupted, now or before."""
        self.asked = self.asked or comfy.model_management.processing_interrupted()
        return self.asked

    def tick(self) -> None:
        """Show what is new."""
        view = self._follower.view()
        text = now(view)
        if text != self._last_text:
            self._last_text = text
            self._tell(text)
        try:
            self._bar.update_absolute(view.step, max(1, view.total), self._image(view))
        except InterruptProcessingException:
            # ComfyUI raises it here and clears its flag; the run has to save first.
            self.asked = True

    def _image(self, view: RunView) -> tuple[str, object, int] | None:
        """Draw samples and curves, if they have changed."""
        content = (len(view.samples), view.trained)
        soon = time.monotonic() - self._drawn_at < _DRAW
        if content == self._drawn or (soon and content[0] == self._drawn[0]):
            return None
        self._drawn, self._drawn_at = content, time.monotonic()
        return "JPEG", training_board(view.curves, view.steps, view.samples), _PREVIEW
