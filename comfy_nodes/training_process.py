"""A training in its own process, from the node: free memory, wait, show, stop, fetch the result."""

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
"""The folder of runs, in ComfyUI's output folder, so that its images can be looked at there."""

_PREVIEW = 1024
_LOOK = 0.25  # seconds between two looks at the run
_DRAW = 2.0  # at least, between two images of it


def runs_root() -> Path:
    """Where runs lie."""
    return Path(folder_paths.get_output_directory()) / RUNS


def train(cls: type[io.ComfyNode], job: Job, stamp: str, kind: str) -> tuple[RunView, Path]:
    """Train, or go on, or only fetch what is finished.

    Args:
        cls: the running node.
        job: what to train.
        stamp: changes with the images that it learns from.
        kind: ComfyUI's name of the models folder that the result goes into.

    Returns:
        How the run stands, and the result in that folder.

    Raises:
        ScdpoError: what is wrong, or why the training failed.
        InterruptProcessingException: the user has interrupted; what was trained is saved.
    """
    models, *others = map(Path, folder_paths.get_folder_paths(kind))
    if wrong := install_result.name_taken(job.folder, models):
        raise ScdpoError(wrong)
    view = run(cls, jobs.request(job, stamp))
    if view.result is None:
        raise ScdpoError(view.message or f"The training ended early: {now(view)}")
    installed = install_result.install(job.folder, models, others=others)
    # Menus are made from this list.
    folder_paths.filename_list_cache.pop(kind, None)
    return view, installed


def run(cls: type[io.ComfyNode], request: rerun.Request) -> RunView:
    """Do a run in a process of its own, or go on with it, or only look at one that is finished.

    Args:
        cls: the running node.
        request: what to do.

    Raises:
        ScdpoError: what is wrong, or why the run failed.
        InterruptProcessingException: the user has interrupted; what was done is saved.
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
    """The Python that trains, set up on first use."""

    def tell(line: str) -> None:
        say(cls, f"Setting up the trainer, once; this takes some minutes. Interrupt to leave.\n{line}")

    check = comfy.model_management.throw_exception_if_processing_interrupted
    return interpreter.find() or interpreter.prepare(tell, check=check)


def _free_memory() -> None:
    """Give the training all of the GPU; ComfyUI loads its models again when it needs them."""
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
    """Start the run, when it is its turn: one is trained at a time, whoever has started it."""
    resume = todo == "go on"
    try:
        return queue.start(folder, python, resume=resume)
    except BusyError as busy:
        other = busy.active.name
    queue.add(folder, resume=resume)
    say(cls, f"{other} is being trained; {folder.name} begins when that has ended. Interrupt to leave.")
    child = Child(folder)
    try:
        while child.state == "queued":
            comfy.model_management.throw_exception_if_processing_interrupted()
            queue.pump(python)
            time.sleep(_LOOK)
    except InterruptProcessingException:
        queue.remove(folder)
        raise
    return child


def _follow(cls: type[io.ComfyNode], child: Child) -> None:
    """Show a run on the node until its process has ended.

    Raises:
        InterruptProcessingException: the user has interrupted; the process has saved and left.
    """
    display = Display(Follower(child.folder), lambda text: say(cls, text))
    child.wait(display.interrupted, tick=display.tick, every=_LOOK)
    if display.asked:
        # Which also makes ComfyUI forget it; it may have done so already.
        comfy.model_management.throw_exception_if_processing_interrupted()
        raise InterruptProcessingException()


class Display:
    """What is shown of a run on its node.

    Attributes:
        asked: whether the user has interrupted.
    """

    def __init__(self, follower: Follower, tell: Callable[[str], None]) -> None:
        """Show what `follower` sees; words go to `tell`."""
        self.asked = False
        self._follower, self._tell = follower, tell
        self._bar = comfy.utils.ProgressBar(1)
        self._told, self._drawn, self._drawn_at = "", (0, 0), 0.0

    def interrupted(self) -> bool:
        """Whether the user has interrupted, now or before."""
        self.asked = self.asked or comfy.model_management.processing_interrupted()
        return self.asked

    def tick(self) -> None:
        """Show what is new."""
        view = self._follower.view()
        text = now(view)
        if text != self._told:
            self._told = text
            self._tell(text)
        try:
            self._bar.update_absolute(view.step, max(1, view.total), self._image(view))
        except InterruptProcessingException:
            # ComfyUI raises it here and forgets it; the run has to save first.
            self.asked = True

    def _image(self, view: RunView) -> tuple[str, object, int] | None:
        """Samples and curves, when there is something new in them."""
        holds = (len(view.samples), view.trained)
        soon = time.monotonic() - self._drawn_at < _DRAW
        if holds == self._drawn or (soon and holds[0] == self._drawn[0]):
            return None
        self._drawn, self._drawn_at = holds, time.monotonic()
        return "JPEG", training_board(view.curves, view.steps, view.samples), _PREVIEW
